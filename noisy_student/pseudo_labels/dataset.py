# SPDX-License-Identifier: Apache-2.0
"""Unlabeled images with their pseudo-labels, as often as they were selected.

Nothing is joined by name: row k of a shard's arrays belongs to its k-th image.

Copies stay numbers: the rows of a shard are read in blocks, and a block comes
up once for each round j, showing its rows with more than j copies. A pass
visits these (block, round) pairs in random order, so the copies of an image
lie apart, and none of them exists before it is its turn. Rows that are not
shown are dropped before their image is read.
"""

import functools

import numpy as np
import tensorflow as tf

from noisy_student.data import pipelines
from noisy_student.pseudo_labels import rows

# Rows of a block. Small, so that what is open at the same time is a small part
# of a pass; large, so that opening it costs little per image.
BLOCK = 512
# Rows of a file that are masked at once, where it is read as a whole.
ROWS_AT_ONCE = 64


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
    # A record file that can only be read from its beginning is one block.
    whole = source.positions is None and max(labels.shard_sizes) > BLOCK
    pairs = _Pairs(labels, max(labels.shard_sizes) if whole else BLOCK)

    def target(record):
        if kind == "hard":
            return pipelines.smooth_one_hot(
                top_class(record), num_classes, label_smoothing
            )
        probs = decode(record)
        if temperature != 1:
            # Powers would underflow, for a low temperature all of them.
            return tf.nn.softmax(tf.math.log(probs) / temperature)
        # Also mends what float16 lost.
        return probs / tf.reduce_sum(probs)

    def open_block(pair):
        values = tf.numpy_function(
            pairs.read, [pair], (tf.int64, tf.int64, tf.string)
        )
        shard, shown, records = (
            tf.ensure_shape(value, [None] * rank)
            for value, rank in zip(values, (0, 1, 1), strict=True)
        )
        if source.positions:
            references = source.positions(shard, shown)
        else:
            block = source.open_shard(shard).batch(BLOCK)
            references = tf.gather(block.get_single_element()[0], shown)
        return tf.data.Dataset.from_tensor_slices((references, records))

    def open_file(pair):
        values = tf.numpy_function(
            pairs.place, [pair], (tf.int64, tf.int64, tf.int64, tf.int64)
        )
        # TensorFlow crashes where it skips a number without a shape.
        shard, _, past, begin = (tf.ensure_shape(v, []) for v in values)
        rows = tf.data.Dataset.zip(
            (source.open_shard(shard), open_probs(shard), open_copies(shard))
        )
        rows = rows.skip(begin).concatenate(rows.take(begin))

        def mask(example, record, copies):
            # TensorFlow decodes no uint32; nothing is shown 2**31 times.
            copies = tf.io.decode_raw(copies, tf.int32)[:, 0]
            shown = tf.cast(copies, tf.int64) > past
            return tf.boolean_mask(example[0], shown), record[shown]

        return rows.batch(ROWS_AT_ONCE).map(mask).unbatch()

    if whole:
        shards = range(len(labels.shard_sizes))
        open_probs = _record_reader(map(labels.read_probs, shards))
        open_copies = _record_reader(map(labels.read_copies, shards))

    return pipelines.Examples(
        open_shard=open_file if whole else open_block,
        num_shards=pairs.count,
        num_examples=pairs.num_shown,
        load=source.load,
        target=target,
    )


class _Pairs:
    """The (block, round) pairs of a selection, numbered.

    A block has as many rounds as the most copies in it: no pair is empty.

    Attributes:
        count: How many there are.
        num_shown: Images in a pass, repeats counted.
    """

    def __init__(self, labels, block):
        self._labels, self._block = labels, block
        first_blocks, rounds, self.num_shown = [0], [[0]], 0
        for shard, size in enumerate(labels.shard_sizes):
            labels.read_probs(shard)  # what is damaged is told now
            copies = labels.read_copies(shard)
            starts = np.arange(0, size, block)
            rounds.append(np.maximum.reduceat(copies, starts))
            first_blocks.append(first_blocks[-1] + len(starts))
            self.num_shown += int(copies.sum(dtype=np.int64))
        # One number per block, however often its images are repeated.
        first_pairs = np.cumsum(np.concatenate(rounds), dtype=np.int64)
        self.count = int(first_pairs[-1])
        self._first_pairs = first_pairs
        self._first_blocks = np.array(first_blocks)
        # Per object, so that it goes with it.
        self._open = functools.lru_cache(64)(
            lambda shard: (labels.read_copies(shard), labels.read_probs(shard))
        )

    def place(self, pair):
        """Where a pair is: int64 (shard, first row, round, row to begin at).

        Rounds of a block that are open together must not run in step, so each
        begins elsewhere: by the golden ratio, however many they are, no two of
        them are close.
        """
        block = np.searchsorted(self._first_pairs, pair, "right") - 1
        shard = np.searchsorted(self._first_blocks, block, "right") - 1
        first = (block - self._first_blocks[shard]) * self._block
        size = min(self._block, self._labels.shard_sizes[shard] - first)
        past = pair - self._first_pairs[block]
        begin = first + np.int64(size * (past * 0.6180339887498949 % 1))
        return shard, first, past, begin

    def read(self, pair):
        """What a pair shows.

        Args:
            pair: Integer in `[0, count)`.

        Returns:
            Tuple (shard; int64 `(n,)`, the rows; n labels as bytes).
        """
        shard, first, past, begin = self.place(pair)
        copies, probs = self._open(int(shard))
        shown = first + np.flatnonzero(
            copies[first : first + self._block] > past
        )
        shown = np.roll(shown, -np.searchsorted(shown, begin))
        records = [row.tobytes() for row in probs[shown]]
        return shard, shown, np.array(records, object)


def _decoders(num_classes, top_k):
    """Functions from a stored row to its distribution, and its top class.

    Of the k highest probabilities, float32 `(C,)` is made again by sharing out
    what they leave of 1 evenly among the other classes.

    float16 is cast at once: where a CPU has no such arithmetic, TensorFlow
    calls any other operation on it an error on stderr, and goes on.
    """
    if top_k is None:

        def decode(record):
            probs = tf.io.decode_raw(record, tf.float16)
            return tf.ensure_shape(tf.cast(probs, tf.float32), [num_classes])

        return decode, lambda record: tf.argmax(decode(record))

    row = rows.row_dtype(num_classes, top_k)
    types = {1: tf.uint8, 2: tf.uint16, 4: tf.int32}  # decodes no uint32
    class_type = types[row["classes"].base.itemsize]

    def field(record, name, stored, dtype):
        begin, size = row.fields[name][1], row[name].itemsize
        part = tf.strings.substr(record, begin, size)
        values = tf.cast(tf.io.decode_raw(part, stored), dtype)
        return tf.ensure_shape(values, [top_k])

    def decode(record):
        probs = field(record, "probs", tf.float16, tf.float32)
        classes = field(record, "classes", class_type, tf.int32)
        rest = (1 - tf.reduce_sum(probs)) / (num_classes - top_k)
        # None of the others was higher than the last, nor below zero, whatever
        # float16 made of the sum.
        rest = tf.clip_by_value(rest, 0.0, probs[-1])
        return tf.tensor_scatter_nd_update(
            tf.fill([num_classes], rest), classes[:, tf.newaxis], probs
        )

    return decode, lambda record: field(
        record, "classes", class_type, tf.int64
    )[0]


def _record_reader(arrays):
    """Function that opens the rows of one of several memory-mapped files."""
    files = [
        (str(array.filename), array.offset, array[:1].nbytes)
        for array in arrays
    ]
    paths, headers, (record_bytes, *_) = zip(*files, strict=True)
    paths, headers = tf.constant(paths), tf.constant(headers, tf.int64)
    return lambda number: tf.data.FixedLengthRecordDataset(
        paths[number], record_bytes, header_bytes=headers[number]
    )
