# SPDX-License-Identifier: Apache-2.0
"""ArrayRecord files, which tensorflow-datasets also writes, in tf.data.

TensorFlow has no operation that reads them. The array_record package does, in
Python, so this one format is read by a Python function, many records at a time.
An image of 110 kB takes 0.25 ms of a core (measured; 0.2 in a TFRecord file),
and its decoding 2.8.
"""

import os

import numpy as np
import tensorflow as tf

from noisy_student.data.sources import printable
from noisy_student.errors import UserError

# Read by one call of Python, whose cost, with opening the file, they share.
RECORDS_AT_ONCE = 64


def check_installed():
    """Imports the reader.

    Raises:
        UserError: if it is not installed.
    """
    try:
        from array_record.python import array_record_module
    except ImportError as error:
        raise UserError(
            "ArrayRecord files need the array_record package: pip install "
            "array_record, or prepare the data set again with "
            "file_format='tfrecord'"
        ) from error
    return array_record_module


def open_array_records(path, skip, take):
    """Records of an ArrayRecord file, one after the other.

    Args:
        path: string scalar tensor, of a local file.
        skip: int64 scalar tensor: records before the first.
        take: int64 scalar tensor: how many.

    Returns:
        `tf.data.Dataset` of string scalars. Reading it fails with a
        `tf.errors.OpError` that `sources.read_error` explains, if the file is
        damaged or has vanished.
    """

    def read(start):
        stop = tf.minimum(start + RECORDS_AT_ONCE, skip + take)
        records = tf.numpy_function(_read, [path, start, stop], tf.string)
        return tf.ensure_shape(records, [None])

    starts = tf.data.Dataset.range(skip, skip + take, RECORDS_AT_ONCE)
    return starts.map(read).unbatch()


def array_record_positions(path):
    """Where each record of an ArrayRecord file is, int64 `(N,)`: its number."""
    reader = check_installed().ArrayRecordReader(os.fsdecode(path))
    try:
        return np.arange(reader.num_records())
    finally:
        reader.close()


def read_array_record(path, position):
    """The record at a position of an ArrayRecord file, from tensors."""
    records = tf.numpy_function(
        _read, [path, position, position + 1], tf.string
    )
    return tf.ensure_shape(records, [1])[0]


# As `tfrecord_source.TFRECORD`.
ARRAY_RECORD = open_array_records, array_record_positions, read_array_record


def _read(path, start, stop):
    """Records of a file as a NumPy array of bytes."""
    name = printable(path)
    # What is raised here reaches `sources.read_error` as a text.
    try:
        # A reader that stays open would be one of a thousand: ImageNet's.
        reader = check_installed().ArrayRecordReader(
            os.fsdecode(path), options="readahead_buffer_size:0"
        )
        try:
            records = reader.read(int(start), int(stop))
        finally:
            reader.close()
    except (RuntimeError, IndexError, UnicodeError) as error:
        if not os.path.exists(path):
            raise UserError(
                f"{name} has vanished: bring it back, and the same command "
                "goes on"
            ) from None
        reason = printable(str(error).partition(";")[0])
        raise UserError(
            f"the record file {name} cannot be read ({reason}): replace it, "
            "and the same command goes on"
        ) from None
    return np.array(records, object)
