# SPDX-License-Identifier: Apache-2.0
"""Passes over many rows of (confidence, class), a few of them at a time.

What they hold beside their arguments: 4 bytes for each row that is grouped,
and for a moment 5 more for each row of the class that `surest` is asked about.
Sorting all rows at once (`np.lexsort`) would take 24 bytes a row.
"""

import numpy as np

# Rows that are looked at together. What a pass works with then fits into the
# processor's cache, and is little beside even a million rows.
ROWS_AT_ONCE = 1 << 16


def slices(count):
    """Slices that cover the rows 0 to `count - 1`, in order."""
    for start in range(0, count, ROWS_AT_ONCE):
        yield slice(start, min(start + ROWS_AT_ONCE, count))


def between(confidence, threshold, ceiling, inclusive=False):
    """Whether each is above the threshold, and not above the ceiling.

    Args:
        confidence: float `(N,)`, NaN where there is no prediction.
        threshold: Lower limit, in the precision of `confidence`.
        ceiling: Upper limit, or `None`.
        inclusive: Whether what is at the threshold passes, both in float64,
            as the official code compares.

    Returns:
        bool `(N,)`; false for NaN.
    """
    # A comparison with NaN is false: no prediction, no copy.
    if inclusive:
        confidence = confidence.astype(np.float64)
        passes = confidence >= threshold
    else:
        passes = confidence > threshold
    return passes if ceiling is None else passes & (confidence <= ceiling)


def count_per_class(
    confidence,
    predicted_class,
    num_classes,
    threshold,
    ceiling,
    inclusive=False,
):
    """Images of each class that pass.

    Args:
        confidence: float `(N,)`.
        predicted_class: integer `(N,)`, in `[0, C)`.
        num_classes: C.
        threshold: As in `between`.
        ceiling: As in `between`.
        inclusive: As in `between`.

    Returns:
        int64 `(C,)`.

    Raises:
        ValueError: If an image that passes is of no such class.
    """
    counts = np.zeros(num_classes, np.int64)
    for part in slices(len(confidence)):
        passes = between(confidence[part], threshold, ceiling, inclusive)
        counts += _bincount(predicted_class[part][passes], num_classes)
    return counts


def group_by_class(
    confidence, predicted_class, num_classes, threshold, ceiling
):
    """The rows that pass, class after class, within a class by position.

    Args:
        confidence: As in `count_per_class`.
        predicted_class: As in `count_per_class`.
        num_classes: C.
        threshold: As in `between`.
        ceiling: As in `between`.

    Returns:
        Pair of unsigned integers `(M,)`, the rows, and int64 `(C + 1,)`:
        those of class k begin at place k of it and end before place k + 1.

    Raises:
        ValueError: As `count_per_class`.
    """
    counts = count_per_class(
        confidence, predicted_class, num_classes, threshold, ceiling
    )
    bounds = np.concatenate(([0], np.cumsum(counts)))
    grouped = np.empty(bounds[-1], np.min_scalar_type(len(confidence)))
    next_place = bounds[:-1].copy()
    narrow = np.min_scalar_type(num_classes - 1)  # NumPy sorts 16 bits by radix
    for part in slices(len(confidence)):
        kept = np.flatnonzero(between(confidence[part], threshold, ceiling))
        classes = predicted_class[part][kept].astype(narrow)
        order = np.argsort(classes, kind="stable")
        counts = _bincount(classes, num_classes)
        # From the place in this order to the one among all rows.
        shift = next_place - (np.cumsum(counts) - counts)
        places = np.arange(len(kept)) + np.repeat(shift, counts)
        grouped[places] = part.start + kept[order]
        next_place += counts
    return grouped, bounds


def surest(rows, confidence, count):
    """Those of some rows that the teacher is most sure of.

    Args:
        rows: Integers, increasing.
        confidence: float `(N,)`, of all rows.
        count: How many are wanted, from 1 to all.

    Returns:
        Integers `(count,)` in no order; of equal confidences, the first rows.
    """
    values = confidence[rows]
    values.partition(len(rows) - count)
    lowest = values[len(rows) - count]
    values = confidence[rows]  # again: a copy would be held at the same time
    above = rows[values > lowest]
    equal = rows[values == lowest]
    return np.concatenate((above, equal[: count - len(above)]))


def _bincount(values, num_classes):
    """`np.bincount`, of uint64 too."""
    values = values.astype(np.int64, copy=False)
    return np.bincount(values, minlength=num_classes)
