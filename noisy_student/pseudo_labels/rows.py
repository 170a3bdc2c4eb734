# SPDX-License-Identifier: Apache-2.0
"""How the prediction for an image is stored: all classes, or the k surest.

    all classes    float16 (C,)
    the k surest   float16 (k,) and their classes (k,), from sure to unsure

Beside it stands its first entry alone, which is all that a selection reads:
3 to 6 bytes an image instead of 2 C.
"""

import numpy as np


def class_dtype(num_classes):
    """The smallest unsigned integer that can number C classes."""
    return np.min_scalar_type(num_classes - 1)


def row_dtype(num_classes, top_k=None):
    """What is stored of an image, as NumPy and `np.save` describe it.

    Args:
        num_classes: C.
        top_k: k, below C; `None` for all classes.

    Returns:
        `np.dtype`, of a plain row or of a record of `probs` and `classes`.
    """
    if top_k is None:
        return np.dtype((np.float16, (num_classes,)))
    classes = class_dtype(num_classes)
    return np.dtype(
        [("probs", np.float16, (top_k,)), ("classes", classes, (top_k,))]
    )


def top_dtype(num_classes):
    """The `np.dtype` of an image's `confidence` and its `class`."""
    return np.dtype(
        [("confidence", np.float16), ("class", class_dtype(num_classes))]
    )


def bytes_per_image(num_classes, top_k=None):
    """Bytes that labels take on disk for each image, its copies included.

    Args:
        num_classes: C.
        top_k: As in `row_dtype`; C or more is `None`.

    Returns:
        Integer.
    """
    top_k = effective_top_k(num_classes, top_k)
    prediction = row_dtype(num_classes, top_k).itemsize
    return prediction + top_dtype(num_classes).itemsize + 4  # uint32


def effective_top_k(num_classes, top_k):
    """k, or `None` if that is all classes."""
    return None if top_k is None or top_k >= num_classes else top_k


def pack(probs, top_k=None):
    """Probabilities as they are stored.

    Args:
        probs: float `(N, C)`; a row of NaN where there is no prediction.
        top_k: As in `row_dtype`.

    Returns:
        float16 `(N, C)`, or records `(N,)` of the k highest; of equal ones,
        as float16, the first classes. NaN is higher than all.
    """
    probs = np.ascontiguousarray(probs, np.float16)
    if top_k is None:
        return probs
    num_rows, num_classes = probs.shape
    packed = np.empty(num_rows, row_dtype(num_classes, top_k))
    # Rounded first, so that the top class is that of a row of all classes.
    left = probs.astype(np.float32)
    each = np.arange(num_rows)
    for place in range(top_k):
        highest = left.argmax(axis=1)
        packed["classes"][:, place] = highest
        packed["probs"][:, place] = left[each, highest]
        left[each, highest] = -1
    return packed


def top_of(rows, num_classes):
    """The highest probability of each row and its class.

    Args:
        rows: Of `pack`.
        num_classes: C.

    Returns:
        Records `(N,)` as `top_dtype` describes them.
    """
    top = np.empty(len(rows), top_dtype(num_classes))
    if rows.dtype.names:
        top["confidence"] = rows["probs"][:, 0]
        top["class"] = rows["classes"][:, 0]
    else:
        # In float32: NumPy compares float16 an order of magnitude slower.
        probs = rows.astype(np.float32)
        top["confidence"] = probs.max(axis=1)
        top["class"] = probs.argmax(axis=1)
    return top
