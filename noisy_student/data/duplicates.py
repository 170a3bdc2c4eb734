# SPDX-License-Identifier: Apache-2.0
"""Exact duplicates: images whose files hold the same bytes.

An accuracy on images that a model was trained on says little. The paper took
ImageNet's validation images out of its unlabeled set; here evaluation images
are taken out of the labeled and the unlabeled set. Of each evaluation image
two hashes are kept: one of 64 bits, which costs a graph next to nothing where
the bytes of an image pass by, and a part of its SHA-256, which decides.
"""

import dataclasses
import hashlib

import numpy as np
import tensorflow as tf

from noisy_student.data import undecodable
from noisy_student.data.sources import image_hash

REASON = "also an evaluation image"
UNREADABLE = -1  # no image has this hash

_DIGEST_BYTES = 16


@dataclasses.dataclass(frozen=True)
class Digests:
    """What is kept of the images of a source, in its order.

    Attributes:
        hashes: int64 `(N,)`, of `image_hash`; `UNREADABLE` where a file is.
        digests: uint8 `(N, 16)`, the first bytes of their SHA-256.
    """

    hashes: np.ndarray
    digests: np.ndarray


def digests_of(source, on_images=None):
    """Reads each image of a source once, without decoding it.

    Args:
        source: a `Source`.
        on_images: function that is told how many images have been read.

    Returns:
        `Digests`.

    Raises:
        UserError: as `undecodable.find`.
    """
    count = source.num_examples
    hashes = np.full(count, UNREADABLE, np.int64)
    digests = np.zeros((count, _DIGEST_BYTES), np.uint8)
    first = _first_rows(source)
    for shards, rows, _, some, images in undecodable.batches_read(
        source, lambda image: (image_hash(image), image), 2, 64
    ):
        places = first[shards] + rows
        hashes[places] = some
        digests[places] = [_digest(image) for image in images]
        if on_images:
            on_images(len(rows))
    return Digests(hashes, digests)


def without(source, digests):
    """The same source, but images with a known hash fail to load.

    Args:
        source: a `Source`.
        digests: `Digests` of the images that are not wanted.

    Returns:
        A `Source` of the same shards, for whoever leaves out what fails.
    """
    known = np.unique(digests.hashes[digests.hashes != UNREADABLE])
    if not len(known):
        return source

    def load(reference):
        image = source.load(reference)
        found = image_hash(image)
        place = tf.searchsorted(known, [found])[0]
        place = tf.minimum(place, len(known) - 1)
        new = tf.not_equal(tf.gather(known, place), found)
        # In the same words in a graph and out of it.
        check = tf.raw_ops.Assert(condition=new, data=[REASON])
        with tf.control_dependencies([check] if check is not None else []):
            return tf.identity(image)

    return dataclasses.replace(source, load=load)


def originals(source, positions, evaluation, digests):
    """Which evaluation images some images are, by all of their bytes.

    Args:
        source: a `Source`.
        positions: pairs (shard, row) of images with a known hash.
        evaluation: the `Source` of the evaluation images.
        digests: its `Digests`.

    Returns:
        Dict from those of the positions that are duplicates to the name of the
        evaluation image.
    """
    places = {row.tobytes(): k for k, row in enumerate(digests.digests)}
    first = _first_rows(evaluation)
    found = {}
    for position, image, _ in undecodable.examples_at(source, positions):
        place = places.get(_digest(image or b"").tobytes())
        if place is not None:
            shard = int(np.searchsorted(first, place, "right")) - 1
            row = place - int(first[shard])
            found[position] = evaluation.example_name(shard, row)
    return found


def copies(hashes, labels):
    """How many images of a set are copies of others.

    Args:
        hashes: int64 `(N,)`, of `image_hash`; `UNREADABLE` ones are left out.
        labels: int64 `(N,)`.

    Returns:
        Pair of numbers: images that are not the first with their bytes, and
        different images that have several labels.
    """
    there = hashes != UNREADABLE
    pairs = np.stack([hashes[there], labels[there]], axis=1)
    images = np.unique(pairs[:, 0])
    labeled = np.unique(pairs, axis=0)[:, 0]
    _, kinds = np.unique(labeled, return_counts=True)
    return len(pairs) - len(images), int((kinds > 1).sum())


def _digest(image):
    digest = hashlib.sha256(image).digest()[:_DIGEST_BYTES]
    return np.frombuffer(digest, np.uint8)


def _first_rows(source):
    """int64 `(number of shards,)`: where each begins among all images."""
    sizes = np.array(source.shard_sizes, np.int64)
    return np.cumsum(sizes) - sizes
