# SPDX-License-Identifier: Apache-2.0
"""Which images of a source cannot be decoded, and why."""

import re

import numpy as np
import tensorflow as tf

from noisy_student.data import sources
from noisy_student.errors import UserError

NO_SUCH_FILE = "no such file"  # the reason that is no fault of the image

# Python fails on TensorFlow's message if it names a file that is not UTF-8.
_READ_ERRORS = (tf.errors.OpError, UnicodeDecodeError)


def find(source, decode, num_parallel_calls=tf.data.AUTOTUNE, on_batch=None):
    """Finds the images that cannot be decoded, by decoding each once.

    Args:
        source: a `Source`.
        decode: string scalar -> tensors, eagerly and in a graph; it fails
            with a TensorFlow error if the bytes are no image.
        num_parallel_calls: number of images decoded at a time.
        on_batch: function of shards, rows, labels and hashes of some images
            that can be decoded, int64 `(N,)` each; the hashes are those of
            `sources.image_hash`.

    Returns:
        Dict of (shard, row) -> short reason, in order. A file that is gone
        counts as undecodable; one that decodes at a second try does not.

    Raises:
        UserError: if a file that holds many images cannot be read to its end.
    """

    def read(image_bytes):
        return decode(image_bytes), sources.image_hash(image_bytes)

    failed = [np.ones(size, bool) for size in source.shard_sizes]
    for shards, rows, labels, hashes in batches_read(
        source, read, 1, 1024, num_parallel_calls
    ):
        for shard, row in zip(shards, rows, strict=True):
            failed[shard][row] = False
        if on_batch:
            on_batch(shards, rows, labels, hashes)
    return reasons(
        source,
        [
            (shard, int(row))
            for shard, rows in enumerate(failed)
            for row in np.flatnonzero(rows)
        ],
        decode,
    )


def batches_read(
    source, read, keep, batch_size, num_parallel_calls=tf.data.AUTOTUNE
):
    """Reads each image of a source once, in no order, but for those that fail.

    Args:
        source: a `Source`.
        read: function of an encoded image, string scalar, to a tuple of
            tensors, in a graph.
        keep: how many of these, from the last, are wanted. The others are
            computed all the same.
        batch_size: images at a time.
        num_parallel_calls: images read at a time.

    Yields:
        Tuples of arrays: shards, rows, labels, int64 `(N,)`, and what is kept.

    Raises:
        UserError: if a file that holds many images cannot be read to its end.
    """

    def examples(shard):
        numbered = source.open_shard(shard).enumerate()
        return numbered.map(lambda row, example: (shard, row, *example))

    # ignore_errors surrounds the reading alone: a record file that cannot be
    # opened fails again at every attempt, and would be ignored for ever.
    def images(*examples):
        batch = tf.data.Dataset.from_tensor_slices(examples)
        # Two maps, because TensorFlow skips the decoding in a function that
        # does not return the image.
        found = batch.map(lambda *e: (*e[:2], e[3], *read(source.load(e[2]))))
        return found.map(lambda *e: (*e[:3], *e[-keep:])).ignore_errors()

    parallel = {
        "num_parallel_calls": num_parallel_calls,
        "deterministic": False,
    }
    batches = (
        tf.data.Dataset.range(len(source.shard_sizes))
        .interleave(examples, **parallel)
        .batch(16)
        .interleave(images, **parallel)
        .batch(batch_size)
    )
    try:
        yield from batches.as_numpy_iterator()
    except _READ_ERRORS as error:
        raise sources.read_error(error) or UserError(
            f"{source.name} cannot be read to its end "
            f"({_reason(error)}): repair or replace the damaged file"
        ) from error


def examples_at(source, positions):
    """Yields some images of a source, as far as they can be read.

    Args:
        source: a `Source`.
        positions: pairs (shard, row).

    Yields:
        Triples ((shard, row); the encoded image, bytes, or None; its label).
    """
    rows_of = {}
    for shard, row in sorted(positions):
        rows_of.setdefault(shard, []).append(row)
    for shard, rows in rows_of.items():
        numbered = source.open_shard(shard).enumerate()
        is_wanted = among([(0, row) for row in rows])
        wanted = numbered.filter(lambda row, _, f=is_wanted: f(0, row))
        for row, (reference, label) in wanted:
            try:
                image = source.load(reference).numpy()
            except _READ_ERRORS:
                image = None
            yield (shard, int(row)), image, int(label)


def reasons(source, positions, decode):
    """Why some images cannot be decoded.

    Args:
        source: a `Source`.
        positions: pairs (shard, row).
        decode: as in `find`.

    Returns:
        Dict of (shard, row) -> short reason, in order; without the images that
        can be decoded after all.
    """

    def read(reference):
        return decode(source.load(reference))

    rows_of = {}
    for shard, row in sorted(positions):
        rows_of.setdefault(shard, []).append(row)
    found = {}
    for shard, rows in rows_of.items():
        numbered = source.open_shard(shard).enumerate()
        is_wanted = among([(0, row) for row in rows])
        failing = numbered.filter(lambda row, _, f=is_wanted: f(0, row))
        # In a graph, as the images were read before.
        images = iter(failing.map(lambda _, example: read(example[0])))
        for row in rows:
            try:
                next(images)
            except _READ_ERRORS as error:
                found[shard, row] = _reason(error)
    return found


def among(positions):
    """Whether an image is one of some, asked in a graph.

    Args:
        positions: pairs (shard, row), at least one.

    Returns:
        Function of shard and row, int64 scalars, to a bool scalar.
    """
    rows_in_shard = 2**32  # more than any shard has
    keys = sorted(shard * rows_in_shard + row for shard, row in positions)
    keys = tf.constant(keys, tf.int64)

    def is_among(shard, row):
        wanted = tf.cast(shard, tf.int64) * rows_in_shard + row
        place = tf.searchsorted(keys, [wanted])[0]
        return keys[tf.minimum(place, len(keys) - 1)] == wanted

    return is_among


def _reason(error):
    """What TensorFlow says of an error, on one line, without the frame."""
    undecoded = isinstance(error, UnicodeDecodeError)
    message = sources.printable(error.object) if undecoded else error.message
    if isinstance(error, tf.errors.NotFoundError) or "No such file" in message:
        return NO_SUCH_FILE
    cut = r"pos \d+ out of range for string|slice index|with expected shape"
    if re.search(cut, message):
        return "its header is cut off"
    if re.search("Input to reshape|Input size should match", message):
        return "its pixels are cut off"  # of a BMP
    line = sources.without_frame(message.partition("\n")[0])
    line = re.sub(r"^assertion failed: \[(.*)\]$", r"\1", line)
    return line if len(line) <= 200 else line[:199] + "…"
