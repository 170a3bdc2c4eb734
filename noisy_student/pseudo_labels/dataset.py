# SPDX-License-Identifier: Apache-2.0
"""Shard + probabilities + copies, zipped: what the student reads.

Nothing is joined by name: row k of a shard's arrays belongs to its k-th image.
TensorFlow reads the `.npy` files itself, record by record, and an image that
was not selected is dropped before its file is even opened.
"""

import tensorflow as tf

from noisy_student.data import pipelines
from noisy_student.pseudo_labels import rows

# Rows that are expanded at once: enough to forget what a function call costs.
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
    shards = range(len(source.shard_sizes))
    open_probs = _record_reader(labels.read_probs(shard) for shard in shards)
    open_copies = _record_reader(labels.read_copies(shard) for shard in shards)
    decode, top_class = _decoders(num_classes, labels.top_k)

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

    def expand(example, record, copies):
        reference, _ = example
        # TensorFlow decodes no uint32; nothing is shown 2**31 times.
        times = tf.io.decode_raw(copies, tf.int32)[:, 0]
        return tf.repeat(reference, times), tf.repeat(record, times)

    def open_shard(shard):
        parts = source.open_shard(shard), open_probs(shard), open_copies(shard)
        zipped = tf.data.Dataset.zip(parts)
        return zipped.batch(ROWS_AT_ONCE).map(expand).unbatch()

    return pipelines.Examples(
        open_shard=open_shard,
        num_shards=len(shards),
        num_examples=labels.num_selected(),
        load=source.load,
        target=target,
    )


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
