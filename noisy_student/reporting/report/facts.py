# SPDX-License-Identifier: Apache-2.0
"""What happened in a run, as plain values: models, curves, times.

Nothing here knows of HTML; the arguments are what lies in the workdir's files.
"""

import json

from noisy_student.evaluation.accuracy import interval

TRAINING = ("teach", "distill", "finetune")
CURVES = {
    "labeled_loss": "Loss on labeled images",
    "unlabeled_loss": "Loss on pseudo-labeled images",
    "labeled_accuracy": "Right on labeled images",
    "unlabeled_agreement": "Agrees with the pseudo-labels",
}


def role(iteration, phase=""):
    """What a model is to the run."""
    name = f"student {iteration}" if iteration else "teacher"
    return f"{name}, finetuned" if phase == "finetune" else name


def the_role(iteration, phase=""):
    """A role in a sentence: there is one teacher, and there are students."""
    article = "" if iteration else "the "
    return article + role(iteration, phase)


def models(records, predictions):
    """The models of a run, in the order in which they come.

    Args:
        records: Of `results.json`.
        predictions: Dict of (phase, iteration) -> `Predictions` on the run's
            evaluation images. They say more than a record, and may be newer.

    Returns:
        List of dicts: `phase`, `iteration`, `role`, `variant`, `image_size`,
        `steps`, and `top1`, `top5`, `low`, `high` in [0, 1], `num_right`,
        `num_examples`; these are None where nobody knows.
    """
    newest = {}
    for record in records:
        phase = "weights" if "init_from" in record else record["phase"]
        if phase in (*TRAINING, "weights"):
            newest[phase, record["iteration"]] = record
    order = sorted(newest, key=lambda key: (key[1], key[0] == "finetune"))
    return [_model(key, newest[key], predictions.get(key)) for key in order]


def _model(key, record, predictions):
    phase, iteration = key
    top1, top5 = record["top1"], record["top5"]
    num_examples = record["num_examples"]
    if predictions is not None and predictions.decoded.any():
        num_examples = int(predictions.decoded.sum())
        top1 = int(predictions.right.sum()) / num_examples
        among = (predictions.classes == predictions.label[:, None]).any(axis=1)
        top5 = int((among & predictions.decoded).sum()) / num_examples
    num_right = low = high = None
    if top1 is not None:
        num_right = round(top1 * num_examples)
        low, high = interval(num_right, num_examples)
    return {
        "phase": phase,
        "iteration": iteration,
        "role": "weights" if phase == "weights" else role(iteration, phase),
        "variant": record["variant"],
        "image_size": record.get("image_size"),
        "steps": record.get("steps"),
        "top1": top1,
        "top5": top5,
        "low": low,
        "high": high,
        "num_right": num_right,
        "num_examples": num_examples,
    }


def curve(text):
    """The training curves of a model.

    Args:
        text: Of `metrics.jsonl`; a line that was not finished is left out.

    Returns:
        Dict of names -> list of (step, value), of those in `CURVES`.
    """
    curves = {}
    for line in text.splitlines():
        try:
            values = json.loads(line)
            step = int(values["step"])
        except (ValueError, KeyError, TypeError):
            continue
        for name in CURVES:
            value = values.get(name)
            # Neither NaN nor infinity can be drawn.
            if isinstance(value, float | int) and abs(value) < float("inf"):
                curves.setdefault(name, []).append((step, value))
    return curves


def luck(num_first, num_second):
    """How likely chance is to make two models differ so, or more.

    The sign test: of the images that only one of the two has right, as many
    should be the one's as the other's if they were equally good.

    Args:
        num_first: Images that only the first has right.
        num_second: Images that only the second has right.

    Returns:
        Probability, or None if there is no such image.
    """
    from scipy import stats

    total = num_first + num_second
    if not total:
        return None
    return float(stats.binomtest(num_first, total).pvalue)


def unfinished(phase, iteration, curve):
    """A sentence on the phase that a run has not ended yet.

    Args:
        phase: `teach`, `label`, `distill` or `finetune`.
        iteration: Of it.
        curve: Of `curve`, for the model of that iteration, or None.

    Returns:
        Text.
    """
    what = the_role(iteration, phase)
    if phase == "label":
        what = f"labels for student {iteration}"
    if phase in ("teach", "distill") and curve:
        step = max(line[-1][0] for line in curve.values())
        return f"Not finished: {what} is at step {step:,}."
    return f"Not finished: next comes {what} (--mode={phase})."
