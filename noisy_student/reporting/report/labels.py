# SPDX-License-Identifier: Apache-2.0
"""What became of the unlabeled images: counted, and some of them chosen.

Shard by shard: there may be hundreds of millions.
"""

import numpy as np

from noisy_student.pseudo_labels.grouping import between

BINS = 50
# Up to so many classes are shown one by one, others by a rule.
ALL_CLASSES = 10
# Images that are looked at for the gallery. A shard of records must be read up
# to its last image that is shown.
CANDIDATES = 20_000


def count(shards, num_classes, threshold, ceiling=None, inclusive=False):
    """Count the labeled images of a round.

    Args:
        shards: Iterable of triples: float32 `(N_i,)` confidence, NaN where an
            image could not be decoded; integer `(N_i,)` predicted class;
            integer `(N_i,)` copies, or None before the selection.
        num_classes: C.
        threshold: Confidence that is needed.
        ceiling: Confidence not to be passed, or None.
        inclusive: Whether an image at the threshold passes.

    Returns:
        Dict: `histogram`, int64 `(BINS,)` of confidence over [0, 1]; and
        int64 `(C,)` by predicted class: `predicted`, `above` of those that
        passed the filter, `kept` of those that a student sees, `selected` with
        their copies; float64 `(C,)` `mean_confidence`, NaN where there is no
        image; `num_images` and `num_undecodable`.
    """
    histogram = np.zeros(BINS, np.int64)
    predicted, above, kept, selected = np.zeros((4, num_classes), np.int64)
    total = np.zeros(num_classes)
    num_images = num_undecodable = 0

    def add_up(classes, weights=None):
        return np.bincount(classes, weights, minlength=num_classes)

    for confidence, classes, copies in shards:
        num_images += len(confidence)
        decoded = ~np.isnan(confidence)
        num_undecodable += int((~decoded).sum())
        confidence, classes = confidence[decoded], classes[decoded]
        bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
        histogram += np.bincount(bins, minlength=BINS)
        predicted += add_up(classes)
        total += add_up(classes, confidence)
        passed = between(confidence, threshold, ceiling, inclusive)
        above += add_up(classes[passed])
        if copies is not None:
            copies = copies[decoded]
            kept += add_up(classes[copies > 0])
            selected += add_up(classes, copies).astype(np.int64)
    with np.errstate(invalid="ignore"):
        mean_confidence = total / predicted
    return {
        "histogram": histogram,
        "predicted": predicted,
        "above": above,
        "kept": kept,
        "selected": selected,
        "mean_confidence": mean_confidence,
        "num_images": num_images,
        "num_undecodable": num_undecodable,
    }


def choose_classes(counts):
    """The classes whose images are shown.

    Args:
        counts: Of `count`.

    Returns:
        Dict of class -> why it is there; all classes, with no reason, if they
        are few.
    """
    predicted = counts["predicted"]
    if len(predicted) <= ALL_CLASSES:
        return dict.fromkeys(range(len(predicted)), "")
    seen = np.flatnonzero(predicted)
    by_size = seen[np.argsort(-predicted[seen], kind="stable")]
    mean = counts["mean_confidence"]
    by_doubt = seen[np.argsort(mean[seen], kind="stable")]
    reasons = {}
    for classes, reason in (
        (by_size[:3], "among the largest"),
        (by_size[::-1][:3], "among the smallest"),
        (by_doubt, "the teacher is least sure of it"),
    ):
        for number in classes:
            if len(reasons) < ALL_CLASSES:
                reasons.setdefault(int(number), reason)
    return reasons


def candidate_shards(shard_sizes):
    """Shards, spread over all, that hold about `CANDIDATES` images."""
    count = len(shard_sizes)
    mean = max(1, sum(shard_sizes) / count)
    number = min(count, max(1, int(CANDIDATES / mean)))
    return [k * count // number for k in range(number)]


def choose_images(
    shards, classes, threshold, ceiling=None, inclusive=False, each=6
):
    """Images of some classes that the teacher is sure and unsure of.

    Args:
        shards: Iterable of the triples of `count`, each with the number of its
            shard in front.
        classes: The classes.
        threshold: As in `count`.
        ceiling: As in `count`.
        inclusive: As in `count`.
        each: Images of a kind.

    Returns:
        Dict of class -> dict of `sure`, `unsure`, `left_out` and `dropped`,
        lists of dicts of `shard`, `row`, `confidence`, `copies`: the surest
        that were kept, the least sure that were kept, the surest that passed
        the filter and were not kept, and the surest that did not pass.
    """
    columns = [[], [], [], [], []]
    wanted = np.array(sorted(classes), int)
    for shard, confidence, predicted, copies in shards:
        rows = np.flatnonzero(np.isin(predicted, wanted) & (confidence >= 0))
        values = (np.full(len(rows), shard), rows, confidence[rows],
                  predicted[rows], copies[rows])  # fmt: skip
        for column, part in zip(columns, values, strict=True):
            column.append(part)
    if not columns[0]:
        return {number: _no_images() for number in classes}
    shard, row, confidence, predicted, copies = map(np.concatenate, columns)
    # Of equally sure ones the first, whatever came of the sorting.
    order = np.lexsort((row, shard, -confidence))
    chosen = {}
    for number in classes:
        own = order[predicted[order] == number]
        kept, others = own[copies[own] > 0], own[copies[own] == 0]
        passed = between(confidence[others], threshold, ceiling, inclusive)
        sure = kept[:each]
        groups = {
            "sure": sure,
            "unsure": kept[len(sure) :][-each:][::-1],
            "left_out": others[passed][:each],
            "dropped": others[~passed][:each],
        }
        chosen[number] = {
            name: [
                {
                    "shard": int(shard[k]),
                    "row": int(row[k]),
                    "confidence": float(confidence[k]),
                    "copies": int(copies[k]),
                }
                for k in numbers
            ]
            for name, numbers in groups.items()
        }
    return chosen


def _no_images():
    return {"sure": [], "unsure": [], "left_out": [], "dropped": []}
