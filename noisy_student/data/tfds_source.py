# SPDX-License-Identifier: Apache-2.0
"""Sources prepared by tensorflow-datasets, read straight from their files.

`tfds.load` interleaves files, so the place of an example depends on how it is
read. Here the order is plain: file by file, record by record, as written. The
library finds the files, cuts splits and parses records, and the network is
touched only on request.
"""

import os
import re

import numpy as np
import tensorflow as tf

from noisy_student.data import array_records
from noisy_student.data import tfds_splits
from noisy_student.data.sources import NO_LABEL
from noisy_student.data.sources import class_name
from noisy_student.data.sources import printable
from noisy_student.data.sources import same_looking
from noisy_student.data.tfrecord_source import TFRECORD
from noisy_student.data.tfrecord_source import checked_label
from noisy_student.data.tfrecord_source import record_source
from noisy_student.errors import UserError

# Of the data sets of the recipes, so that a run can be planned before they are
# here. Images in each split: the catalog of tensorflow-datasets.
_KNOWN = {
    "imagenet2012": (1000, {"train": 1_281_167, "validation": 50_000}),
    "svhn_cropped": (
        10,
        {"train": 73_257, "test": 26_032, "extra": 531_131},
    ),
    "cifar10": (10, {"train": 50_000, "test": 10_000}),
    "cifar100": (100, {"train": 50_000, "test": 10_000}),
}


def tfds_split(
    name, split, *, labeled, data_dir=None, download=False, manual_dir=None
):
    """A split of a data set that tensorflow-datasets has prepared.

    Args:
        name: as for `tfds.builder`: "cifar10", "imagenet_v2/matched-frequency",
            "my_data:1.0.0". The files alone are enough, without the code.
        split: as for `tfds.load`: "train", "train[:10%]", "train[10%:]+test".
        labeled: whether to read the labels.
        data_dir: folder of prepared data sets; tfds's own default if `None`.
        download: whether to download and prepare what is missing. Nothing
            touches the network otherwise.
        manual_dir: folder of what a person has to fetch, to be prepared;
            tfds's own default, `data_dir/downloads/manual`, if `None`.

    Returns:
        A `Source` with one shard per file that the split touches. Reading a
        labeled example that has no label fails with
        `tf.errors.InvalidArgumentError`.

    Raises:
        UserError: if the data set or the split is unknown, not prepared or
            empty, has no image of 8 or 16 bits or no label, or is stored as
            neither TFRecord nor, on a local disk, ArrayRecord.
    """
    import tensorflow_datasets as tfds

    builder = _prepared_builder(name, data_dir, download, manual_dir)
    info = builder.info
    file_format = _file_format(name, builder)
    instructions = tfds_splits.instructions(name, info.splits, split)
    image_key = _feature_key(name, info, "image", tfds.features.Image)
    dtype = np.dtype(info.features[image_key].np_dtype).name
    if dtype not in ("uint8", "uint16"):
        # Its PNG holds the bytes of each number as if they were colors.
        raise UserError(
            f"the images of {name} are {dtype}, whose range nobody knows: "
            "prepare it again with tfds.features.Image(dtype=np.uint8), and "
            "pixels from 0 to 255"
        )
    keys = [image_key]
    class_names = ()
    if labeled:
        label_key = _feature_key(name, info, "label", tfds.features.ClassLabel)
        keys.append(label_key)
        class_names = _class_names(name, info.features[label_key].names)
    # Only what is asked for is parsed; the image stays encoded.
    features = tfds.features.FeaturesDict({k: info.features[k] for k in keys})
    decoders = {image_key: tfds.decode.SkipDecoding()}

    def parse(record):
        example = features.deserialize_example(record, decoders=decoders)
        if not labeled:
            return example[image_key], tf.constant(NO_LABEL, tf.int64)
        label = checked_label(
            tf.cast(example[label_key], tf.int64),
            class_names,
            f"the split {split!r} of {name} has images without a label",
        )
        return example[image_key], label

    return record_source(
        name=f"{name}/{split}",
        class_names=class_names,
        about=("tfds", info.full_name, keys),
        slices=[(i.filename, i.skip, i.take) for i in instructions],
        parse=parse,
        file_format=file_format,
    )


def known_split(name, split, *, data_dir=None):
    """How large a split is, whether or not its data are here.

    Args:
        name: as in `tfds_split`.
        split: as in `tfds_split`.
        data_dir: as in `tfds_split`.

    Returns:
        Pair (examples, classes), of the prepared data set if there is one, of
        a table of the recipes' data sets otherwise; None if the data set is
        neither prepared nor in the table. Classes are None if it is prepared
        without labels.

    Raises:
        UserError: if the data set has no such split.
    """
    import tensorflow_datasets as tfds

    try:
        info = _prepared_builder(name, data_dir, download=False).info
    except UserError:
        num_classes, sizes = _KNOWN.get(name.split(":")[0], (None, {}))
        # How many files they are cut into is not in the table.
        if not sizes or "shard" in split:
            return None
        splits = tfds_splits.of_sizes(
            name, {key: [sizes[key]] for key in sizes}
        )
    else:
        splits = info.splits
        try:
            key = _feature_key(name, info, "label", tfds.features.ClassLabel)
            num_classes = info.features[key].num_classes
        except UserError:
            num_classes = None
    return tfds_splits.part(name, splits, split).num_examples, num_classes


def place(name, data_dir=None):
    """Where a data set is looked for.

    Args:
        name: as in `tfds_split`.
        data_dir: as in `tfds_split`.

    Returns:
        Pair (folder of the prepared data set, whether it is there).

    Raises:
        UserError: if the data set is unknown.
    """
    builder = _builder(name, data_dir)
    return os.fspath(builder.data_path), bool(builder.info.splits)


def _file_format(name, builder):
    """How the files of a data set are read, as `TFRECORD`."""
    file_format = builder.info.file_format.value
    if file_format == "tfrecord":
        return TFRECORD
    if file_format != "array_record" or "://" in os.fspath(builder.data_path):
        raise UserError(
            f"{name} is stored as {file_format}, and only tfrecord and, on a "
            "local disk, array_record can be read: prepare it again with "
            "file_format='tfrecord'"
        )
    array_records.check_installed()
    return array_records.ARRAY_RECORD


def _builder(name, data_dir):
    """The builder of a data set, prepared or not."""
    import tensorflow_datasets as tfds

    if re.match(r"[\w-]+:[A-Za-z_]", name):
        # Looking such a name up would ask the network.
        raise UserError(
            f"{name} is a data set of a community: prepare it with "
            "tensorflow-datasets, then give its name without the prefix, and "
            "--data_dir=DIR"
        )
    if data_dir is not None and "://" not in os.fspath(data_dir):
        data_dir = os.path.abspath(os.path.expanduser(data_dir))
    try:
        return tfds.builder(name, data_dir=data_dir, try_gcs=False)
    except tfds.core.DatasetNotFoundError as error:
        guess = re.search(r"Did you mean: .* -> (\S+)", str(error))
        hint = f" (did you mean {guess[1]}?)" if guess else ""
        raise UserError(
            f"tensorflow-datasets knows no data set {name!r}{hint} and "
            f"{data_dir or 'its data directory'} holds no prepared one: "
            "choose one of tfds.list_builders(), or give --data_dir=DIR"
        ) from error
    except Exception as error:
        raise UserError(
            f"tensorflow-datasets cannot open {name!r}: {_one_line(error)}"
        ) from error


def _prepared_builder(name, data_dir, download, manual_dir=None):
    """The builder of a data set that is prepared; made so if asked."""
    import tensorflow_datasets as tfds

    builder = _builder(name, data_dir)
    if download:
        config = tfds.download.DownloadConfig(manual_dir=manual_dir)
        try:
            builder.download_and_prepare(download_config=config)
        except Exception as error:
            raise UserError(
                f"tensorflow-datasets could not prepare {name}: "
                f"{_one_line(error)}"
            ) from error
    if not builder.info.splits:
        raise UserError(
            f"{name} is not prepared in {printable(builder.data_path)}: add "
            "--download to fetch and prepare it, or --data_dir=DIR if it lies "
            "elsewhere"
        )
    return builder


def _feature_key(name, info, preferred, kind):
    """Key of the only feature of a kind, or of the one of the usual name."""
    # Exactly of it: a mask, for instance, is a kind of image, too.
    keys = sorted(k for k, f in info.features.items() if type(f) is kind)
    if preferred in keys:
        return preferred
    if len(keys) != 1:
        all_features = ", ".join(
            f"{key}: {type(feature).__name__}"
            for key, feature in sorted(info.features.items())
        )
        found = f"several ({', '.join(keys)})" if keys else "none"
        raise UserError(
            f"{name} should have one {kind.__name__} feature, or several with "
            f"one called {preferred!r}, but has {found} ({all_features}): "
            "choose another data set, or prepare it again with such a feature"
        )
    return keys[0]


def _class_names(name, names):
    """What the classes are called, of which no two may look the same."""
    if pair := same_looking(names):
        raise UserError(
            f"{name} has two classes whose names look the same, "
            f"{' and '.join(map(ascii, pair))}: prepare it again with other "
            "names"
        )
    return tuple(map(class_name, names))


def _one_line(error):
    """The message of an exception of tfds, on one line that is not endless."""
    text = " ".join(str(error).split())
    return text if len(text) <= 500 else text[:499] + "…"
