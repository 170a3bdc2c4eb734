# SPDX-License-Identifier: Apache-2.0
"""Sources whose images lie in TFRecord files, one shard a file.

The layout is that of Google's ImageNet scripts, which the official Noisy
Student code reads too. A reference is the encoded image itself. What holds for
every record file is in `record_source`, on which `tfds_source.py` builds.
"""

import array
import concurrent.futures
import contextlib
import json
import os
import re
import threading

import numpy as np
import tensorflow as tf
from absl import logging

from noisy_student.data.sources import NO_LABEL
from noisy_student.data.sources import Source
from noisy_student.data.sources import fingerprint_of
from noisy_student.data.sources import printable
from noisy_student.data.sources import wrong_features
from noisy_student.errors import UserError
from noisy_student.files import matching_files
from noisy_student.files import split_patterns
from noisy_student.files import write_text

_IMAGE = "image/encoded"
_LABEL = "image/class/label"


class FileIndex:
    """What has been found out about record files, to find it out once.

    To count the records of a file one has to go from each to the next, which
    on a remote disk reads all of it. An entry holds as long as the file has its
    size and its time.

    Args:
        path: of a JSON file that remembers; None for none. It is made by
            `save`, and what is damaged or cannot be written is done without.
    """

    def __init__(self, path=None):
        self._path = path
        self._changed = False
        self._records, self._labels = {}, {}
        if path is None:
            return
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            with open(path, encoding="utf-8") as file:
                content = json.load(file)
            records, labels = content["records"], content["labels"]
            self._records = {
                name: (*map(int, stamp), int(count))
                for name, (*stamp, count) in records.items()
            }
            self._labels = {
                key: [int(label) for label in found]
                for key, found in labels.items()
            }

    def count(self, path):
        """Number of records of a TFRecord file."""
        stamp = _stamp(path)
        name = os.fsdecode(path)
        *known, count = self._records.get(name, (None, None))
        if tuple(known) != stamp:
            count = _count_records(path, stamp[0])
            self._records[name] = (*stamp, count)
            self._changed = True
        return count

    def labels(self, paths, read):
        """Labels that occur in some files; `read` finds them, a sorted list."""
        stamps = ((os.fsdecode(path), *_stamp(path)) for path in paths)
        key = fingerprint_of(stamps)
        if key not in self._labels:
            self._labels[key] = read()
            self._changed = True
        return self._labels[key]

    def save(self):
        """Write what is new, where the folder exists."""
        if not (self._changed and self._path and self._path.parent.is_dir()):
            return
        content = {"records": self._records, "labels": self._labels}
        # Several processes may find out the same; a folder may be read-only.
        with contextlib.suppress(OSError):
            write_text(self._path, json.dumps(content), f".{os.getpid()}")
            self._changed = False


def tfrecords(
    pattern,
    *,
    labeled,
    num_classes=None,
    class_names=None,
    first_label=0,
    index=None,
):
    """Images in TFRecord files with `image/encoded` and `image/class/label`.

    Args:
        pattern: one or more globs, separated by commas; `gs://` paths work.
            The files are read in the order of their names.
        labeled: whether to read the labels.
        num_classes: number of classes. If neither this nor `class_names` is
            given, all files are read once to find the labels in use. Where
            these have gaps, the classes are the labels in use, named by them.
        class_names: names of the classes; "0", "1", ... if not given. Names
            that are other numbers are those of the labels in the files.
        first_label: the number that the first class has in the files; 1 in
            ImageNet as Google's script writes it.
        index: `FileIndex` of what is known of the files.

    Returns:
        A `Source` with one shard per file that holds a record, and labels
        from 0. Reading a label of no class fails with
        `tf.errors.InvalidArgumentError`.

    Raises:
        UserError: if no file matches, none holds a record, one is cut off or
            has other features, or the first label is not `first_label`.
    """
    index = index or FileIndex()
    name = printable(pattern)
    paths = _matching_files(pattern)
    files = [(path, n) for path, n in counted(paths, index) if n]
    if not files:
        raise UserError(
            f"the files that match {name} hold no record: write them again or "
            "correct the pattern"
        )
    _check_first_record(files[0][0], _features(labeled))
    if labeled and class_names is None:
        if num_classes is None:
            class_names = _classes_in_use(name, files, first_label, index)
        else:
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
    in_files = _labels_in_files(class_names, first_label)
    out_of_range = (
        f"the label {{}} of {name} is outside the {len(class_names)} classes: "
        f"{way_out}"
    )

    def parse(record):
        example = tf.io.parse_single_example(record, features)
        if not labeled:
            return example[_IMAGE], tf.constant(NO_LABEL, tf.int64)
        label = _class_of(example[_LABEL], in_files)
        return example[_IMAGE], checked_label(
            label, class_names, out_of_range, shown=example[_LABEL]
        )

    return record_source(
        name=name,
        class_names=class_names,
        about=("tfrecords", labeled, first_label),
        slices=slices,
        parse=parse,
    )


def _labels_in_files(class_names, first_label):
    """The number that each class has in the files, an int64 array.

    By their order, unless their names are other numbers: then by these.
    """
    numbers = [int(n) for n in class_names if re.fullmatch(r"-?\d+", n)]
    expected = np.arange(len(class_names))
    if len(numbers) < len(class_names) or len(set(numbers)) < len(numbers):
        return expected + first_label
    if sorted(numbers) == expected.tolist():
        return np.array(numbers, np.int64) + first_label
    return np.array(numbers, np.int64)


def _class_of(label, in_files):
    """The class of a label in the files, an int64 scalar; -1 for none."""
    if (np.diff(in_files) == 1).all():
        return label - in_files[0]
    order = np.argsort(in_files)
    place = tf.searchsorted(in_files[order], [label])[0]
    place = tf.minimum(place, len(order) - 1)
    found = tf.gather(order, place)
    return tf.where(tf.equal(tf.gather(in_files, found), label), found, -1)


def open_tfrecords(path, skip, take):
    """Records of a TFRecord file, from tensors: which, from where, how many."""
    return tf.data.TFRecordDataset(path).skip(skip).take(take)


def tfrecord_positions(path):
    """Where each record of a TFRecord file begins, int64 `(N,)`, in bytes."""
    return _record_positions(path, _stamp(path)[0])


def read_tfrecord(path, position):
    """The record at a position of a TFRecord file, from tensors."""
    # What `tf.data.TFRecordDataset` does not offer.
    records = tf.raw_ops.TFRecordDatasetV2(
        filenames=[path],
        compression_type="",
        buffer_size=0,
        byte_offsets=[position],
    )
    kind = {"output_types": [tf.string], "output_shapes": [[]]}
    record = tf.raw_ops.TakeDataset(input_dataset=records, count=1, **kind)
    return tf.raw_ops.DatasetToSingleElement(dataset=record, **kind)[0]


TFRECORD = open_tfrecords, tfrecord_positions, read_tfrecord


def record_source(
    *, name, class_names, about, slices, parse, file_format=TFRECORD
):
    """A source of slices of record files, one shard a slice.

    Args:
        name: as in `Source`.
        class_names: as in `Source`.
        about: tuple of what else makes the examples what they are.
        slices: list of (path, records to skip, records to take).
        parse: serialized record -> (encoded image, int64 label), in a graph.
        file_format: functions as those of `TFRECORD`, for another format.

    Returns:
        A `Source`. Images of local files can be read at their positions.

    Raises:
        UserError: if a file is missing.
    """
    open_records, find_positions, read_record = file_format
    paths, skips, takes = zip(*slices, strict=True)
    with concurrent.futures.ThreadPoolExecutor() as pool:  # waits for the disk
        sizes = [size for size, _ in pool.map(_stamp, paths)]
    # Tensors, for the index of a shard may be one.
    path_tensor = tf.constant([os.fsencode(path) for path in paths])
    skip_tensor = tf.constant(skips, tf.int64)
    take_tensor = tf.constant(takes, tf.int64)

    def open_shard(shard):
        tensors = path_tensor, skip_tensor, take_tensor
        return open_records(*(tensor[shard] for tensor in tensors)).map(parse)

    # Found when it is needed; files are opened by several threads.
    lock, found = threading.Lock(), {}

    def find(shard, rows):
        path = paths[shard]
        with lock:
            if path not in found:
                found[path] = find_positions(path)
        return found[path][skips[shard] + rows]

    def positions(shard, rows):
        places = tf.numpy_function(find, [shard, rows], tf.int64)
        shards = tf.fill(tf.shape(rows), shard)
        return tf.stack([shards, tf.ensure_shape(places, [None])], axis=1)

    def load(reference):
        reference = tf.convert_to_tensor(reference)
        if reference.dtype == tf.string:
            return reference
        record = read_record(path_tensor[reference[0]], reference[1])
        return parse(record)[0]

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
        load=load,
        example_name=example_name,
        positions=positions if all(map(_is_local, paths)) else None,
    )


def checked_label(label, class_names, message, shown=None):
    """The label; reading one outside the classes fails with `message`.

    Args:
        label: int64 scalar, symbolic.
        class_names: names of the classes that there are.
        message: what a person is told, with {} for the label.
        shown: the label as it is in the files, if it is another there.
    """
    inside = (label >= 0) & (label < len(class_names))
    with tf.control_dependencies(
        [
            tf.debugging.Assert(
                inside, [message, label if shown is None else shown]
            )
        ]
    ):
        return tf.identity(label)


def counted(paths, index=None):
    """Pairs of a TFRecord file and how many records it holds.

    Args:
        paths: list of them.
        index: `FileIndex` of what is known already.

    Raises:
        UserError: if a file cannot be read, or is cut off.
    """
    count = (index or FileIndex()).count
    with concurrent.futures.ThreadPoolExecutor() as pool:  # waits for the disk
        return list(zip(paths, pool.map(count, paths), strict=True))


def _features(labeled):
    features = {_IMAGE: tf.io.FixedLenFeature((), tf.string)}
    if labeled:
        features[_LABEL] = tf.io.FixedLenFeature((), tf.int64)
    return features


def _matching_files(pattern):
    """Paths that match comma-separated globs, each once, sorted."""
    found = {}

    def matches(part):
        if part not in found:
            found[part] = _matches(part)
        return found[part]

    parts = split_patterns(pattern, matches)
    for part in parts:
        if not matches(part):
            raise UserError(
                f"no file matches {printable(part)}: give the path of TFRecord "
                "files, where * stands for any characters"
            )
    return sorted(
        {path for part in parts for path in found[part]}, key=os.fsencode
    )


def _matches(pattern):
    """Files that one glob matches; what exists is meant as it is named."""
    if "://" not in pattern.removeprefix("file://"):
        return matching_files(pattern)
    found = tf.io.gfile.glob(pattern)
    if not found and tf.io.gfile.exists(pattern):
        return [pattern]
    return found


def _is_local(path):
    return "://" not in os.fsdecode(path)


def _stamp(path):
    """Bytes of a file, local or not, and its time in nanoseconds."""
    try:
        if "://" in path:
            found = tf.io.gfile.stat(path)
            return found.length, found.mtime_nsec
        found = os.stat(path)
        return found.st_size, found.st_mtime_ns
    except (OSError, tf.errors.OpError) as error:
        raise UserError(
            f"the file {printable(path)} is missing or cannot be read: "
            "restore it or prepare the data set again"
        ) from error


def _count_records(path, size):
    """Number of records of a TFRecord file, found without reading them."""
    return len(_record_positions(path, size))


def _record_positions(path, size):
    """Where each record of a TFRecord file begins, found by their lengths."""
    local = _is_local(path)
    # Unbuffered: a buffer would read more of every record than its header.
    file = open(path, "rb", 0) if local else tf.io.gfile.GFile(path, "rb")
    found, position = array.array("q"), 0
    with file:
        while position < size:
            found.append(position)
            file.seek(position)
            # A record: its length (8 bytes), a checksum (4), data, another (4).
            position += int.from_bytes(file.read(8), "little") + 16
    if position != size:
        raise UserError(
            f"{printable(path)} is cut off or is no uncompressed TFRecord "
            "file: write it again or leave it out of the pattern"
        )
    return np.array(found, np.int64)


def _check_first_record(path, features):
    """Tells a file of another layout before a pipeline trips over it."""
    records = tf.data.TFRecordDataset(os.fsencode(path))
    try:
        tf.io.parse_single_example(next(iter(records)), features)
    except tf.errors.OpError as error:
        raise UserError(
            f"the first record of {printable(path)} is no tf.train.Example "
            f"with {' and '.join(features)}"
            f"{_why(error)}: write the files in the layout of Google's "
            "ImageNet script"
        ) from error


def _why(error):
    """What is wrong with the features of a record, in brackets, if that is."""
    wrong = wrong_features(str(error))
    return f" (it {wrong})" if wrong else ""


def _classes_in_use(name, files, first_label, index):
    """Names of the classes, found by reading every label once."""
    features = {_LABEL: tf.io.FixedLenFeature((), tf.int64)}
    paths = [path for path, _ in files]

    def read():
        logging.info("reading all labels of %s to count classes", name)
        records = tf.data.TFRecordDataset(
            [os.fsencode(path) for path in paths],
            num_parallel_reads=tf.data.AUTOTUNE,
        )
        labels = records.map(
            lambda record: tf.io.parse_single_example(record, features)[_LABEL]
        )
        found = set()
        for some in labels.batch(1024).as_numpy_iterator():
            found.update(np.unique(some).tolist())
        return sorted(found)

    try:
        found = index.labels(paths, read)
    except tf.errors.OpError as error:
        what = f"is damaged or has no {_LABEL}"
        raise UserError(
            f"a record of {name} {wrong_features(str(error)) or what}: "
            "write the files again"
        ) from error
    span = found[-1] - found[0] + 1
    has_gaps = span > len(found)
    if found[0] < 0:
        raise UserError(
            f"the labels in {name} start at {found[0]}, and there is no class "
            "below 0: write the files again without the images that have none"
        )
    if found[0] < first_label or (found[0] > first_label and not has_gaps):
        raise UserError(
            f"the labels in {name} start at {found[0]}, not at "
            f"{first_label}: set --tfrecord_first_label={found[0]} if that is "
            "the number of the first class"
        )
    if len(found) == 1:
        raise UserError(
            f"all labels in {name} are {found[0]}, and there must be two "
            "classes or more: give files of all classes, or --num_classes"
        )
    if not has_gaps:
        return map(str, range(len(found)))
    logging.warning(
        "%s: the labels from %d to %d have gaps, so the %d that occur are the "
        "classes; with --num_classes=%d the others would be classes without "
        "images",
        name,
        found[0],
        found[-1],
        len(found),
        found[-1] - first_label + 1,
    )
    return map(str, found)
