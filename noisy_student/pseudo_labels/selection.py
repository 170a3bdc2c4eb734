# SPDX-License-Identifier: Apache-2.0
"""Which pseudo-labeled images a student sees, and how often: pure NumPy.

Images on which the teacher is unsure are out of its domain and are dropped;
then every class gets the same number of images: of a large class the most
confident ones, of a small one all, some of them several times.
"""

import numpy as np


def select(
    confidence,
    predicted_class,
    *,
    num_classes,
    threshold,
    images_per_class,
    seed,
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

    Returns:
        uint32 `(N,)`: how often each image appears in a pass over the
        unlabeled set. 0 = dropped. Equal confidences are ranked by position.

    Reference: arXiv:1911.04252, section 3.2 (threshold 0.3, K = 130,000).
    Differs: the official filter_unlabel.py keeps whole 0.01-wide bins of
    confidence and thins them by coin flips; here the K are exact.
    """
    confidence = np.asarray(confidence)
    predicted_class = np.asarray(predicted_class)
    # A comparison with NaN is false: no prediction, no copy.
    kept = np.flatnonzero(confidence > threshold)
    copies = np.zeros(len(confidence), np.uint32)
    if images_per_class is None:
        copies[kept] = 1
        return copies

    # By class, then from sure to unsure, then by position (lexsort is stable).
    kept = kept[np.lexsort((-confidence[kept], predicted_class[kept]))]
    bounds = np.searchsorted(predicted_class[kept], np.arange(num_classes + 1))
    rng = np.random.default_rng(seed)
    for first, last in zip(bounds[:-1], bounds[1:], strict=True):
        rows = kept[first:last][:images_per_class]
        if not len(rows):
            continue
        times, remainder = divmod(images_per_class, len(rows))
        copies[rows] = times
        copies[rng.choice(rows, remainder, replace=False)] += 1
    return copies


def average_per_class(confidence, predicted_class, *, num_classes, threshold):
    """The K that keeps a balanced pass as long as an unbalanced one.

    Args:
        confidence: As in `select`.
        predicted_class: As in `select`.
        num_classes: C.
        threshold: As in `select`.

    Returns:
        Integer: kept images / classes that keep any, rounded up; 0 if none.
    """
    kept = np.asarray(predicted_class)[np.asarray(confidence) > threshold]
    num_filled = int(np.count_nonzero(np.bincount(kept, minlength=num_classes)))
    return -(-len(kept) // num_filled) if num_filled else 0
