# SPDX-License-Identifier: Apache-2.0
"""Sections of the page that show images of a source."""

from noisy_student.reporting import pictures
from noisy_student.reporting.report import answers
from noisy_student.reporting.report import collect
from noisy_student.reporting.report import sections


def gallery(source, labeled):
    """Pseudo-labeled images of each class.

    Args:
        source: The unlabeled `Source`, or None.
        labeled: Of `collect.rounds`, with a selection.
    """
    wanted = labeled["manifest"]["source"]["fingerprint"]
    if source is None or source.fingerprint != wanted:
        return sections.lacking(
            "The unlabeled images are not here, or are others than those that "
            "were labeled, so none is shown."
        )
    positions = collect.choose(labeled)
    return sections.gallery(labeled, pictures.album(source, tuple(positions)))


def answers_of(source, models, given, command):
    """What the models answer to the evaluation images.

    Args:
        source: The evaluation `Source`, or None.
        models: Of `facts.models`.
        given: Of `collect.answers`.
        command: Function from a mode to the command for it.

    Returns:
        Dict of the sections `confusion` and `agreement`; None for what can
        never come.
    """
    nothing = {"confusion": None, "agreement": None}
    # A finetuned model stands for its iteration, as it does when it labels.
    best = {model["iteration"]: model for model in models}
    asked = {k: m for k, m in best.items() if (m["phase"], k) in given}
    lacks = [
        f"{command('evaluate')} --iteration={k}" for k in best if k not in asked
    ]
    if not asked:
        if source is None or not models:
            return nothing
        text = "What the models answer to evaluation images is not stored yet."
        return {**nothing, "confusion": sections.lacking(text, lacks[-1])}
    answer_of = {k: given[m["phase"], k] for k, m in asked.items()}
    pairs = [(k - 1, k) for k in asked if k - 1 in asked]
    both = [(answer_of[first], answer_of[second]) for first, second in pairs]
    newest = answer_of[max(asked)]
    shown, no_pictures = _evaluation_pictures(
        source, newest, answers.wanted(newest, both)
    )
    agreement = None
    if pairs:
        roles = [tuple(asked[k]["role"] for k in pair) for pair in pairs]
        agreement = answers.agreement(both, roles, shown)
        agreement["no_pictures"] = no_pictures
    return {
        "confusion": {
            **answers.confusion(asked[max(asked)]["role"], newest, shown),
            "no_pictures": no_pictures,
            "lacks": lacks,
        },
        "agreement": agreement,
    }


def _evaluation_pictures(source, answer, numbers):
    """(dict of image number -> picture, why there is none or None)."""
    if source is None or source.fingerprint != answer.about["fingerprint"]:
        return {}, "The evaluation images are not here, so none is shown."
    where = tuple(pictures.locate(numbers, source.shard_sizes))
    album = pictures.album(source, where)
    found = zip(numbers, where, strict=True)
    return {n: album[place] for n, place in found if place in album}, None
