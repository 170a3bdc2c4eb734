# SPDX-License-Identifier: Apache-2.0
"""Shard + probabilities + copies, zipped: what the student reads.

Nothing is joined by name: row k of a shard's arrays belongs to its k-th image.
TensorFlow reads the `.npy` files itself, record by record, and an image that
was not selected is dropped before its file is even opened.
"""

import numpy as np
import tensorflow as tf


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
        Pair of a function that opens a shard (int64 scalar) as a dataset of
        (reference, target float32 `(C,)`), for `pipelines.stream`, and the
        number of examples in a pass, duplicates counted.
    """
    num_classes = labels.num_classes
    shards = range(len(source.shard_sizes))
    probs_paths = tf.constant([str(labels.probs_path(s)) for s in shards])
    probs_headers = tf.constant(
        [_header_bytes(labels.probs_path(s)) for s in shards], tf.int64
    )
    copies_paths = tf.constant([str(labels.copies_path(s)) for s in shards])
    copies_headers = tf.constant(
        [_header_bytes(labels.copies_path(s)) for s in shards], tf.int64
    )

    def target_of(record):
        probs = tf.io.decode_raw(record, tf.float16)
        probs = tf.cast(tf.ensure_shape(probs, [num_classes]), tf.float32)
        if kind == "hard":
            one_hot = tf.one_hot(tf.argmax(probs), num_classes)
            smoothed = one_hot * (1 - label_smoothing)
            return smoothed + label_smoothing / num_classes
        if temperature != 1:
            probs = probs ** (1 / temperature)
        # Also mends what float16 lost.
        return probs / tf.reduce_sum(probs)

    def open_shard(shard):
        probs = tf.data.FixedLengthRecordDataset(
            probs_paths[shard],
            record_bytes=2 * num_classes,
            header_bytes=probs_headers[shard],
        )
        copies = tf.data.FixedLengthRecordDataset(
            copies_paths[shard],
            record_bytes=4,
            header_bytes=copies_headers[shard],
            # TensorFlow decodes no uint32; nothing is shown 2**31 times.
        ).map(lambda record: tf.io.decode_raw(record, tf.int32)[0])

        def repeat(example, record, times):
            reference, _ = example
            pair = (reference, target_of(record))
            return tf.data.Dataset.from_tensors(pair).repeat(
                tf.cast(times, tf.int64)
            )

        return (
            tf.data.Dataset.zip((source.open_shard(shard), probs, copies))
            .filter(lambda example, record, times: times > 0)
            .flat_map(repeat)
        )

    return open_shard, labels.num_selected()


def _header_bytes(path):
    """Where the data of a `.npy` file begins."""
    with open(path, "rb") as file:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            np.lib.format.read_array_header_1_0(file)
        else:
            np.lib.format.read_array_header_2_0(file)
        return file.tell()
