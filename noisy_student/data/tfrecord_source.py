# SPDX-License-Identifier: Apache-2.0
"""Sources whose images lie in TFRecord files, one shard a file.

The layout is that of Google's ImageNet scripts, which the official Noisy
Student code reads too. A reference is the encoded image itself. What holds for
every record file is in `record_source`, on which `tfds_source.py` builds.
"""

import concurrent.futures
import glob
import os

import tensorflow as tf
from absl import logging

from noisy_student.data.sources import NO_LABEL
from noisy_student.data.sources import Source
from noisy_student.data.sources import fingerprint_of
from noisy_student.data.sources import printable
from noisy_student.errors import UserError

_IMAGE = "image/encoded"
_LABEL = "image/class/label"


def tfrecords(
    pattern, *, labeled, num_classes=None, class_names=None, first_label=0
):
    """Images in TFRecord files with `image/encoded` and `image/class/label`.

    Args:
        pattern: one or more globs, separated by commas; `gs://` paths work.
            The files are read in the order of their names.
        labeled: whether to read the labels.
        num_classes: number of classes. If neither this nor `class_names` is
            given, all files are read once to find the labels in use.
        class_names: names of the classes; "0", "1", ... if not given.
        first_label: the number that the first class has in the files; 1 in
            ImageNet as Google's script writes it.

    Returns:
        A `Source` with one shard per file that holds a record, and labels
        from 0. Reading a label outside `[0, num_classes)` fails with
        `tf.errors.InvalidArgumentError`.

    Raises:
        UserError: if no file matches, none holds a record, one is cut off or
            has other features, or the first label is not `first_label`.
    """
    name = printable(pattern)
    files = [(path, n) for path, n in counted(_matching_files(pattern)) if n]
    if not files:
        raise UserError(
            f"the files that match {name} hold no record: write them again or "
            "correct the pattern"
        )
    _check_first_record(files[0][0], _features(labeled))
    if labeled and class_names is None:
        if num_classes is None:
            num_classes = _count_classes(name, files, first_label)
        class_names = map(str, range(num_classes))
    return example_source(
        name=name,
        slices=[(path, 0, count) for path, count in files],
        class_names=class_names if labeled else None,
        first_label=first_label,
        way_out=f"correct --tfrecord_first_label={first_label} or "
        "--num_classes",
    )


def example_source(*, name, slices, class_names, first_label, way_out):
    """A source of slices of files in the layout of `tfrecords`.

    Args:
        name: as in `Source`.
        slices: list of (path, records to skip, records to take).
        class_names: names of the classes; None not to read the labels.
        first_label: as in `tfrecords`.
        way_out: what to do about a label that is no class's.

    Returns:
        A `Source`, as of `tfrecords`.

    Raises:
        UserError: if a file is missing.
    """
    labeled = class_names is not None
    class_names = tuple(class_names or ())
    features = _features(labeled)
    out_of_range = (
        f"a label of {name} is outside the {len(class_names)} classes: "
        f"{way_out}"
    )

    def parse(record):
        example = tf.io.parse_single_example(record, features)
        if not labeled:
            return example[_IMAGE], tf.constant(NO_LABEL, tf.int64)
        label = example[_LABEL] - first_label
        return example[_IMAGE], checked_label(label, class_names, out_of_range)

    return record_source(
        name=name,
        class_names=class_names,
        about=("tfrecords", labeled, first_label),
        slices=slices,
        parse=parse,
    )


def open_tfrecords(path, skip, take):
    """Records of a TFRecord file, from tensors: which, from where, how many."""
    return tf.data.TFRecordDataset(path).skip(skip).take(take)


def record_source(
    *, name, class_names, about, slices, parse, open_records=open_tfrecords
):
    """A source of slices of record files, one shard a slice.

    Args:
        name: as in `Source`.
        class_names: as in `Source`.
        about: tuple of what else makes the examples what they are.
        slices: list of (path, records to skip, records to take).
        parse: serialized record -> (encoded image, int64 label), in a graph.
        open_records: as `open_tfrecords`, for files of another format.

    Raises:
        UserError: if a file is missing.
    """
    paths, skips, takes = zip(*slices, strict=True)
    sizes = [_size(path) for path in paths]
    # Tensors, for the index of a shard may be one.
    path_tensor = tf.constant([os.fsencode(path) for path in paths])
    skip_tensor = tf.constant(skips, tf.int64)
    take_tensor = tf.constant(takes, tf.int64)

    def open_shard(shard):
        tensors = path_tensor, skip_tensor, take_tensor
        return open_records(*(tensor[shard] for tensor in tensors)).map(parse)

    def example_name(shard, row):
        file_name = printable(os.path.basename(paths[shard]))
        return f"{file_name} record {skips[shard] + row}"

    # The folder that they share is no part of what the files are.
    shared = os.path.commonprefix([os.path.dirname(path) for path in paths])
    relative = [printable(path.removeprefix(shared)) for path in paths]
    contents = zip(relative, sizes, skips, takes, strict=True)
    return Source(
        name=name,
        shard_sizes=takes,
        class_names=class_names,
        fingerprint=fingerprint_of([about, class_names, *contents]),
        open_shard=open_shard,
        load=tf.identity,
        example_name=example_name,
    )


def checked_label(label, class_names, message):
    """The label; reading one outside the classes fails with `message`.

    Args:
        label: int64 scalar, symbolic.
        class_names: names of the classes that there are.
        message: what a person is told, beside the label.
    """
    inside = (label >= 0) & (label < len(class_names))
    with tf.control_dependencies(
        [tf.debugging.Assert(inside, [message, label])]
    ):
        return tf.identity(label)


def counted(paths):
    """Pairs of a TFRecord file and how many records it holds.

    Raises:
        UserError: if a file cannot be read, or is cut off.
    """
    with concurrent.futures.ThreadPoolExecutor() as pool:  # waits for the disk
        return list(zip(paths, pool.map(_count_records, paths), strict=True))


def _features(labeled):
    features = {_IMAGE: tf.io.FixedLenFeature((), tf.string)}
    if labeled:
        features[_LABEL] = tf.io.FixedLenFeature((), tf.int64)
    return features


def _matching_files(pattern):
    """Paths that match comma-separated globs, each once, sorted."""
    paths = set()
    for part in filter(None, map(str.strip, pattern.split(","))):
        if "://" in part:
            paths.update(tf.io.gfile.glob(part))
        else:
            matches = glob.glob(os.path.abspath(os.path.expanduser(part)))
            paths.update(filter(os.path.isfile, matches))
    if not paths:
        raise UserError(
            f"no file matches {printable(pattern)}: give the path of TFRecord "
            "files, where * stands for any characters"
        )
    return sorted(paths, key=os.fsencode)


def _size(path):
    """Bytes of a file, local or not."""
    try:
        if "://" in path:
            return tf.io.gfile.stat(path).length
        return os.path.getsize(path)
    except (OSError, tf.errors.OpError) as error:
        raise UserError(
            f"the file {printable(path)} is missing or cannot be read: "
            "restore it or prepare the data set again"
        ) from error


def _count_records(path):
    """Number of records of a TFRecord file, found without reading them."""
    size = _size(path)
    local = "://" not in path
    # Unbuffered: a buffer would read more of every record than its header.
    file = open(path, "rb", 0) if local else tf.io.gfile.GFile(path, "rb")
    count = position = 0
    with file:
        while position < size:
            file.seek(position)
            # A record: its length (8 bytes), a checksum (4), data, another (4).
            position += int.from_bytes(file.read(8), "little") + 16
            count += 1
    if position != size:
        raise UserError(
            f"{printable(path)} is cut off or is no uncompressed TFRecord "
            "file: write it again or leave it out of the pattern"
        )
    return count


def _check_first_record(path, features):
    """Tells a file of another layout before a pipeline trips over it."""
    records = tf.data.TFRecordDataset(os.fsencode(path))
    try:
        tf.io.parse_single_example(next(iter(records)), features)
    except tf.errors.OpError as error:
        raise UserError(
            f"the first record of {printable(path)} is no tf.train.Example "
            f"with {' and '.join(features)}: write the files in the layout of "
            "Google's ImageNet script"
        ) from error


def _count_classes(name, files, first_label):
    """Number of classes, found by reading every label."""
    logging.info("reading all labels of %s to count classes", name)
    features = {_LABEL: tf.io.FixedLenFeature((), tf.int64)}
    labels = tf.data.TFRecordDataset(
        [os.fsencode(path) for path, _ in files],
        num_parallel_reads=tf.data.AUTOTUNE,
    ).map(lambda record: tf.io.parse_single_example(record, features)[_LABEL])
    try:
        lowest, highest = labels.reduce(
            (tf.int64.max, tf.int64.min),
            lambda seen, label: (
                tf.minimum(seen[0], label),
                tf.maximum(seen[1], label),
            ),
        )
    except tf.errors.OpError as error:
        raise UserError(
            f"a record of {name} is damaged or has no {_LABEL}: "
            "write the files again"
        ) from error
    lowest, highest = int(lowest), int(highest)
    if lowest != first_label:
        raise UserError(
            f"the labels in {name} start at {lowest}, not at "
            f"{first_label}: set --tfrecord_first_label={lowest} if that is "
            "the number of the first class"
        )
    return highest - first_label + 1
