# SPDX-License-Identifier: Apache-2.0
"""Unlabeled images with their pseudo-labels, as often as they were selected.

Nothing is joined by name: row k of a shard's arrays belongs to its k-th image.
Copies stay numbers: the rows of a shard are read in blocks, and a block comes
up once for each round j, showing its rows with more than j copies. A pass
visits these (block, round) pairs in random order, so the copies of an image
lie apart, and none of them exists before it is its turn. Rows that are not
shown are dropped before their image or label is read.
"""

import functools

import numpy as np
import tensorflow as tf

from noisy_student.data import pipelines
from noisy_student.pseudo_labels import rows

# Rows of a block. Small, so that what is opened at the same time is a small
# part of a pass; large, so that opening it costs little per image.
BLOCK = 512


def pseudo_labeled_examples(
    source, labels, *, kind="soft", temperature=1.0, label_smoothing=0.1
):
    """Open an unlabeled source together with its pseudo-labels.

    Args:
        source: The `Source` that was labeled.
        labels: The `LabelStore` with its probabilities and copies.
        kind: `soft` for the teacher's distribution; `hard` for its top class,
            label-smoothed like a real label.
        temperature: T; a soft target is `p ** (1 / T)`, normalized. Of labels
            that hold k classes alone, p is made whole first: what they leave
            of 1 is shared evenly among the others.
        label_smoothing: s, for hard labels alone, as in the official code.

    Returns:
        `pipelines.Examples`; an image counts as often as it was selected.
    """
    num_classes = labels.num_classes
    decode, top_class = _decoders(num_classes, labels.top_k)
    pairs = _Pairs(labels)

    def target(record):
        if kind == "hard":
            return pipelines.smooth_one_hot(
                top_class(record), num_classes, label_smoothing
            )
        probs = decode(record)
        if temperature != 1:
            probs = probs ** (1 / temperature)
        # Also mends what float16 lost.
        return probs / tf.reduce_sum(probs)

    def open_pair(pair):
        values = tf.numpy_function(
            pairs.read, [pair], (tf.int64, tf.int64, tf.int64, tf.string)
        )
        # TensorFlow crashes where it skips a number without a shape.
        shard, first, shown, records = (
            tf.ensure_shape(value, [None] * rank)
            for value, rank in zip(values, (0, 0, 1, 1), strict=True)
        )
        block = source.open_shard(shard).skip(first).take(BLOCK).batch(BLOCK)
        return block.map(
            lambda references, _: (tf.gather(references, shown), records)
        ).unbatch()

    return pipelines.Examples(
        open_shard=open_pair,
        num_shards=pairs.count,
        num_examples=pairs.num_shown,
        load=source.load,
        target=target,
    )


class _Pairs:
    """The (block, round) pairs of a selection, numbered.

    Attributes:
        count: How many there are.
        num_shown: Images in a pass, repeats counted.
    """

    def __init__(self, labels):
        self._labels = labels
        first_blocks, rounds, num_shown = [0], [], 0
        for shard, size in enumerate(labels.shard_sizes):
            labels.read_probs(shard)  # damaged files are told now
            copies = labels.read_copies(shard)
            starts = np.arange(0, size, BLOCK)
            rounds.append(np.maximum.reduceat(copies, starts))
            first_blocks.append(first_blocks[-1] + len(starts))
            num_shown += int(copies.sum(dtype=np.int64))
        self._first_blocks = np.array(first_blocks)
        # One number per block, however often its images are repeated.
        self._ends = np.cumsum(np.concatenate(rounds), dtype=np.int64)
        self.count = int(self._ends[-1])
        self.num_shown = num_shown
        # Per object, so that it goes with it.
        self._arrays = functools.lru_cache(64)(self._open)

    def _open(self, shard):
        return self._labels.read_copies(shard), self._labels.read_probs(shard)

    def read(self, pair):
        """What a pair shows.

        Args:
            pair: Integer in `[0, count)`.

        Returns:
            Tuple (shard; its row at which the block begins; int64 `(n,)`, the
            rows that are shown, counted from there; n labels as bytes).
        """
        block = np.searchsorted(self._ends, pair, side="right")
        past = pair - (self._ends[block - 1] if block else 0)
        shard = np.searchsorted(self._first_blocks, block, side="right") - 1
        first = (block - self._first_blocks[shard]) * BLOCK
        copies, probs = self._arrays(int(shard))
        shown = np.flatnonzero(copies[first : first + BLOCK] > past)
        # Rounds of a block that are open together must not run in step; by
        # the golden ratio, any number of them is far from each other.
        shown = np.roll(shown, -int(len(shown) * (past * 0.618034 % 1)))
        records = [row.tobytes() for row in probs[first + shown]]
        return shard, first, shown, np.array(records, object)


def _decoders(num_classes, top_k):
    """Functions from a stored row to its distribution, and its top class.

    Of the k highest probabilities, float32 `(C,)` is made again by sharing out
    what they leave of 1 evenly among the other classes.
    """
    if top_k is None:

        def decode(record):
            probs = tf.io.decode_raw(record, tf.float16)
            return tf.cast(tf.ensure_shape(probs, [num_classes]), tf.float32)

        return decode, lambda record: tf.argmax(decode(record))

    row = rows.row_dtype(num_classes, top_k)
    types = {1: tf.uint8, 2: tf.uint16, 4: tf.int32}  # decodes no uint32
    class_type = types[row["classes"].base.itemsize]

    def field(record, name, dtype):
        begin, size = row.fields[name][1], row[name].itemsize
        values = tf.io.decode_raw(tf.strings.substr(record, begin, size), dtype)
        return tf.ensure_shape(values, [top_k])

    def decode(record):
        probs = tf.cast(field(record, "probs", tf.float16), tf.float32)
        classes = tf.cast(field(record, "classes", class_type), tf.int32)
        rest = (1 - tf.reduce_sum(probs)) / (num_classes - top_k)
        # None of the others was higher than the last, nor below zero, whatever
        # float16 made of the sum.
        rest = tf.clip_by_value(rest, 0.0, probs[-1])
        return tf.tensor_scatter_nd_update(
            tf.fill([num_classes], rest), classes[:, tf.newaxis], probs
        )

    return decode, lambda record: tf.cast(
        field(record, "classes", class_type)[0], tf.int64
    )
