# SPDX-License-Identifier: Apache-2.0
"""Which pseudo-labeled images a student sees, and how often: pure NumPy.

Images on which the teacher is unsure are out of its domain and are dropped;
then every class gets the same number of images: of a large class the most
confident ones, of a small one all, some of them several times.

`select` does so to the image, `select_official_bins` as the official code
does; `subsample` then thins what either kept.

There may be hundreds of millions of rows, so every pass looks at a few of them
at a time (`grouping.py`), and only classes are sorted whose order counts.
"""

import numpy as np

from noisy_student.errors import UserError
from noisy_student.pseudo_labels.grouping import between
from noisy_student.pseudo_labels.grouping import count_per_class
from noisy_student.pseudo_labels.grouping import group_by_class
from noisy_student.pseudo_labels.grouping import slices
from noisy_student.pseudo_labels.grouping import surest

# Where the official bins of confidence begin: 0, 0.01 ... 1. A quotient of
# whole numbers is the float64 nearest to it, and so is a decimal: 30 / 100 is
# the 0.3 of a flag.
_EDGES = np.arange(101) / 100


def select(
    confidence,
    predicted_class,
    *,
    num_classes,
    threshold,
    images_per_class,
    seed,
    ceiling=None,
    duplicate=True,
):
    """Filter by confidence and balance the classes.

    Args:
        confidence: float `(N,)`, the teacher's highest probability for each
            image, in `[0, 1]`; NaN where there is no prediction.
        predicted_class: integer `(N,)`, the class it belongs to.
        num_classes: C.
        threshold: Images at or below this confidence are dropped.
        images_per_class: K; every class that keeps any image gets exactly K
            in a pass. `None` leaves the classes as they are.
        seed: Integer; decides which images of a small class are shown once
            more than the others.
        ceiling: Images above this confidence are dropped; `None` for no limit
            (official `max_prob`; for the paper's intervals of confidence).
        duplicate: Whether a class of fewer than K is filled up with copies;
            if not, it stays as it is (official `upsample`).

    Returns:
        uint32 `(N,)`: how often each image appears in a pass over the
        unlabeled set. 0 = dropped. Equal confidences are ranked by position.

    Reference: arXiv:1911.04252, section 3.1 (threshold 0.3, K = 130,000).
    Differs: the official filter_unlabel.py keeps whole 0.01-wide bins of
    confidence and thins them by coin flips; here the K are exact.
    """
    confidence = np.asarray(confidence)
    predicted_class = np.asarray(predicted_class)
    copies = np.zeros(len(confidence), np.uint32)
    if images_per_class is None:
        for part in slices(len(confidence)):
            copies[part] = between(confidence[part], threshold, ceiling)
        return copies

    grouped, bounds = group_by_class(
        confidence, predicted_class, num_classes, threshold, ceiling
    )
    rng = np.random.default_rng(seed)
    for first, last in zip(bounds[:-1], bounds[1:], strict=True):
        rows = grouped[first:last]
        if not len(rows):
            continue
        if len(rows) > images_per_class:
            rows = surest(rows, confidence, images_per_class)
        if not duplicate:
            copies[rows] = 1
            continue
        times, remainder = divmod(images_per_class, len(rows))
        copies[rows] = times
        if remainder:
            # The draw is among the rows from sure to unsure, then by position.
            rows = rows[np.argsort(-confidence[rows], kind="stable")]
            copies[rng.choice(rows, remainder, replace=False)] += 1
    return copies


def select_official_bins(
    confidence,
    predicted_class,
    *,
    num_classes,
    threshold,
    images_per_class,
    seed,
    ceiling=None,
    duplicate=True,
):
    """Filter and balance by bins and coin flips, as the official code does.

    A class is cut at the first of the confidences 1.00, 0.99 ... at or above
    which it has K images, at the lowest at `threshold`, and keeps all `count`
    images there. Each is shown K / count times: the whole part for certain,
    and once more with the probability of the fraction. So K is the mean of a
    class's copies, and an image of a full class may be left out.

    Args:
        confidence: As in `select`.
        predicted_class: As in `select`.
        num_classes: C.
        threshold: Images below this confidence are dropped; a multiple of
            0.01. An image at it is kept, other than in `select`.
        images_per_class: K. `None` shows every image that passes once
            (official `use_all`).
        seed: Integer; decides every fraction, independently.
        ceiling: As in `select`.
        duplicate: Whether a class of fewer than K is filled up with copies;
            if not, no image is shown more than once (official `upsample`).

    Returns:
        uint32 `(N,)`: how often each image appears in a pass over the
        unlabeled set.

    Raises:
        UserError: As `official_thresholds`.

    Reference: noisystudent/filter_unlabel.py, `get_keep_image_idx`.
    """
    lowest, count = official_thresholds(
        confidence,
        predicted_class,
        num_classes=num_classes,
        threshold=threshold,
        images_per_class=images_per_class,
        ceiling=ceiling,
    )
    confidence = np.asarray(confidence)
    predicted_class = np.asarray(predicted_class)
    if images_per_class is not None:
        expected = images_per_class / np.maximum(count, 1)  # (C,)
        if not duplicate:
            expected = np.minimum(expected, 1)
    rng = np.random.default_rng(seed)
    copies = np.zeros(len(confidence), np.uint32)
    for part in slices(len(confidence)):
        values = confidence[part].astype(np.float64)  # as in `_bin_counts`
        passes = values >= lowest[predicted_class[part]]
        if ceiling is not None:
            passes &= values <= ceiling
        if images_per_class is None:
            copies[part] = passes
            continue
        mean = expected[predicted_class[part][passes]]
        copies[part][passes] = _round_at_random(mean, rng.random(len(mean)))
    return copies


def official_thresholds(
    confidence,
    predicted_class,
    *,
    num_classes,
    threshold,
    images_per_class,
    ceiling=None,
):
    """Where the official code cuts each class, and what that leaves.

    Args:
        confidence: As in `select`.
        predicted_class: As in `select`.
        num_classes: C.
        threshold: As in `select_official_bins`.
        images_per_class: As in `select_official_bins`.
        ceiling: As in `select`.

    Returns:
        Pair of float64 `(C,)`, the lowest confidence that is kept, and int64
        `(C,)`, the number of images from there to the ceiling.

    Raises:
        UserError: If the threshold is no multiple of 0.01, or if no
            confidence lies between it and the ceiling.

    Reference: noisystudent/filter_unlabel.py, `get_threshold`.
    Differs: a ceiling inside of a bin cuts it, and one on an edge belongs to
    the bin below; the official count is of whole bins below the ceiling.
    """
    first = min(max(round(threshold * 100), 0), 100)
    if threshold != _EDGES[first]:
        raise UserError(
            f"--confidence_threshold={threshold} is not a multiple of 0.01, "
            f"where the official bins begin: give {_EDGES[first]}"
        )
    if ceiling is not None and ceiling <= threshold:
        raise UserError(
            f"--confidence_threshold={threshold} must be below the ceiling of "
            f"the confidence, which is {ceiling}: give a lower threshold"
        )
    counts = _bin_counts(confidence, predicted_class, num_classes, ceiling)
    at_or_above = np.cumsum(counts[:, ::-1], axis=1)[:, ::-1]
    wanted = np.inf if images_per_class is None else images_per_class
    # Higher edges leave fewer: those that leave enough are the lowest ones.
    num_enough = np.count_nonzero(at_or_above[:, first:] >= wanted, axis=1)
    edge = first + np.maximum(num_enough - 1, 0)
    return _EDGES[edge], at_or_above[np.arange(num_classes), edge]


def subsample(copies, max_images, *, seed):
    """Keep a random part of the selected images, with all their copies.

    Args:
        copies: uint32 `(N,)`, of `select` or `select_official_bins`.
        max_images: How many different images may stay.
        seed: Integer; decides which, each with the same probability.

    Returns:
        uint32 `(N,)`: `copies`, 0 at the images that were left out.

    Reference: arXiv:1911.04252, the study of the unlabeled set's size.
    """
    num_selected = int(np.count_nonzero(copies))
    if num_selected <= max_images:
        return copies.copy()
    # Of the selected images counted alone: NumPy draws the same, and needs no
    # list of them beside its own.
    rng = np.random.default_rng(seed)
    drawn = rng.choice(num_selected, max_images, replace=False, shuffle=False)
    stays = np.zeros(num_selected, bool)
    stays[drawn] = True
    del drawn
    fewer = np.zeros_like(copies)
    done = 0
    for part in slices(len(copies)):
        selected = np.flatnonzero(copies[part])
        chosen = selected[stays[done : done + len(selected)]]
        fewer[part][chosen] = copies[part][chosen]
        done += len(selected)
    return fewer


def average_per_class(
    confidence,
    predicted_class,
    *,
    num_classes,
    threshold,
    ceiling=None,
    inclusive=False,
):
    """The K that keeps a balanced pass as long as an unbalanced one.

    Args:
        confidence: As in `select`.
        predicted_class: As in `select`.
        num_classes: C.
        threshold: As in `select`.
        ceiling: As in `select`.
        inclusive: Whether an image at the threshold is kept, as in
            `select_official_bins`.

    Returns:
        Integer: kept images / classes that keep any, rounded up; 0 if none.
    """
    counts = count_per_class(
        np.asarray(confidence),
        np.asarray(predicted_class),
        num_classes,
        threshold,
        ceiling,
        inclusive,
    )
    num_filled = int(np.count_nonzero(counts))
    return -(-int(counts.sum()) // num_filled) if num_filled else 0


def _bin_counts(confidence, predicted_class, num_classes, ceiling=None):
    """Images of a class from one edge to below the next, int64 `(C, 101)`."""
    confidence = np.asarray(confidence)
    predicted_class = np.asarray(predicted_class)
    counts = np.zeros(num_classes * len(_EDGES), np.int64)
    for part in slices(len(confidence)):
        # Compared in float64, like the official float32 with Python's i /
        # 100.: the float32 nearest to 0.7 lies below that edge, in the bin of
        # 0.69.
        values = confidence[part].astype(np.float64)
        counted = values >= 0  # which NaN is not
        if ceiling is not None:
            counted &= values <= ceiling
        bins = np.searchsorted(_EDGES, values[counted], side="right") - 1
        bins += len(_EDGES) * predicted_class[part][counted].astype(np.int64)
        counts += np.bincount(bins, minlength=len(counts))
    return counts.reshape(num_classes, len(_EDGES))


def _round_at_random(expected, draws):
    """Round up where a draw from [0, 1) is below the fraction, else down."""
    return (np.floor(expected) + (draws < expected % 1)).astype(np.uint32)
