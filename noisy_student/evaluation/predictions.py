# SPDX-License-Identifier: Apache-2.0
"""What a model answered to each evaluation image, kept in one small file.

    predictions-1a2b3c4d.npz    named after the fingerprint of the images
      label      unsigned (N,)        the true class
      classes    unsigned (N, k)      the k <= 5 surest classes, surest first
      probs      float16 (N, k)       their probabilities; NaN where an image
                                      could not be decoded
      about      uint8, JSON as UTF-8: name and fingerprint of the images, names
                 of the classes, sizes of the shards

Who was confused with whom, and where teacher and student disagree, is then read
and not predicted again. The same answers are the same bytes.
"""

import dataclasses
import json

import numpy as np

from noisy_student.files import write_atomically

TOP = 5
# Images that are sorted at once: N x C numbers of eight bytes.
ROWS_AT_ONCE = 1024


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The answers to all images of a source, in its order.

    Attributes:
        label: unsigned `(N,)`, the true class.
        classes: unsigned `(N, k)`, the surest classes, surest first.
        probs: float16 `(N, k)`, NaN for images that could not be decoded.
        about: Dict of `name`, `fingerprint`, `classes`, `shard_sizes`.
    """

    label: np.ndarray
    classes: np.ndarray
    probs: np.ndarray
    about: dict

    @property
    def decoded(self):
        """Bool `(N,)`: which images have an answer."""
        return ~np.isnan(self.probs[:, 0])

    @property
    def right(self):
        """Bool `(N,)`: whether the surest class is the true one."""
        return self.decoded & (self.classes[:, 0] == self.label)


def path_of(directory, fingerprint):
    """Where a model's folder holds the answers to the images of a source."""
    return directory / f"predictions-{fingerprint[:8]}.npz"


def surest(probs):
    """The highest probabilities and their classes, as accuracy ranks them.

    Args:
        probs: float32 `(N, C)`; rows of NaN for images without an answer.

    Returns:
        Pair of unsigned `(N, k)` classes and float16 `(N, k)` probabilities;
        of equal ones the lower class comes first.
    """
    num_rows, num_classes = probs.shape
    count = min(TOP, num_classes)
    classes = np.zeros((num_rows, count), np.min_scalar_type(num_classes - 1))
    values = np.empty((num_rows, count), np.float16)
    for start in range(0, num_rows, ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        order = np.argsort(-probs[part], axis=1, kind="stable")[:, :count]
        classes[part] = order
        values[part] = np.take_along_axis(probs[part], order, axis=1)
    return classes, values


def save(path, shards, about):
    """Write the answers to all shards of a source.

    Args:
        path: Of `path_of`.
        shards: List of triples of `surest`, in order, each with the labels in
            front: integer `(N_i,)`, -1 where there is none.
        about: As in `Predictions`.
    """
    labels, classes, probs = (
        np.concatenate(parts) for parts in zip(*shards, strict=True)
    )
    arrays = {
        # Images without a label are those without an answer.
        "label": np.maximum(labels, 0).astype(classes.dtype),
        "classes": classes,
        "probs": probs,
        "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
    }
    # NumPy dates what it puts into the file 1980.
    write_atomically(path, lambda file: np.savez(file, **arrays))


def load(path):
    """Read a file of `save`.

    Returns:
        `Predictions`.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is something else, or damaged.
    """
    with np.load(path, allow_pickle=False) as file:
        about = json.loads(file["about"].tobytes())
        return Predictions(file["label"], file["classes"], file["probs"], about)
