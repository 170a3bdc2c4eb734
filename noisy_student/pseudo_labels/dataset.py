# SPDX-License-Identifier: Apache-2.0
"""Shard + probabilities + copies, zipped: what the student reads.

Nothing is joined by name: row k of a shard's arrays belongs to its k-th image.
TensorFlow reads the `.npy` files itself, record by record, and an image that
was not selected is dropped before its file is even opened.
"""

import numpy as np
import tensorflow as tf

from noisy_student.data import pipelines

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
        temperature: T; a soft target is `p ** (1 / T)`, normalized.
        label_smoothing: s, for hard labels alone, as in the official code.

    Returns:
        `pipelines.Examples`; an image counts as often as it was selected.
    """
    num_classes = labels.num_classes
    shards = range(len(source.shard_sizes))
    open_probs = _record_reader(
        [labels.probs_path(shard) for shard in shards], 2 * num_classes
    )
    open_copies = _record_reader([labels.copies_path(s) for s in shards], 4)

    def target(record):
        probs = tf.io.decode_raw(record, tf.float16)
        probs = tf.cast(tf.ensure_shape(probs, [num_classes]), tf.float32)
        if kind == "hard":
            return pipelines.smooth_one_hot(
                tf.argmax(probs), num_classes, label_smoothing
            )
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
        rows = (source.open_shard(shard), open_probs(shard), open_copies(shard))
        return (
            tf.data.Dataset.zip(rows).batch(ROWS_AT_ONCE).map(expand).unbatch()
        )

    return pipelines.Examples(
        open_shard=open_shard,
        num_shards=len(shards),
        num_examples=labels.num_selected(),
        load=source.load,
        target=target,
    )


def _record_reader(paths, record_bytes):
    """Function that opens the rows of one of several `.npy` files."""
    headers = tf.constant([_header_bytes(path) for path in paths], tf.int64)
    paths = tf.constant([str(path) for path in paths])
    return lambda number: tf.data.FixedLengthRecordDataset(
        paths[number], record_bytes, header_bytes=headers[number]
    )


def _header_bytes(path):
    """Where the data of a `.npy` file begins."""
    with open(path, "rb") as file:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            np.lib.format.read_array_header_1_0(file)
        else:
            np.lib.format.read_array_header_2_0(file)
        return file.tell()
