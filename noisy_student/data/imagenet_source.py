# SPDX-License-Identifier: Apache-2.0
"""ImageNet (ILSVRC 2012) in the forms in which people have it.

What tensorflow-datasets has prepared, Google's TFRecords, folders as the
archives unpack, or the two archives, to be prepared. Class k is the k-th synset
by name in all of them, as in the released weights.
"""

import functools
import os
import re

import tensorflow as tf

from noisy_student.data import imagenet_folders
from noisy_student.data import tfds_source
from noisy_student.data import tfds_splits
from noisy_student.data import tfrecord_source
from noisy_student.data.imagenet_folders import NAME
from noisy_student.data.sources import printable
from noisy_student.errors import UserError

ARCHIVES = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")

_RECORD_FILES = {"train": 1024, "validation": 128}
_WEB = "https://image-net.org/download-images"


def imagenet_split(
    split, *, labeled, data_dir=None, download=False, index=None
):
    """A split of ImageNet, in whichever form it is in a folder.

    Looked for in this order: prepared by tensorflow-datasets, TFRecords,
    folders, archives.

    Args:
        split: "train" or "validation", or parts and sums of these as for
            `tfds.load`.
        labeled: whether to read the labels.
        data_dir: the folder; tfds's own default if `None`.
        download: whether tensorflow-datasets shall prepare the archives. The
            network is not touched.
        index: `tfrecord_source.FileIndex` of what is known of the files.

    Returns:
        A `Source`.

    Raises:
        UserError: if nothing is there, naming the paths that were looked for,
            or something is incomplete.
    """
    prepared, is_there = tfds_source.place(NAME, data_dir)
    options = {"labeled": labeled, "data_dir": data_dir}
    if is_there:
        return tfds_source.tfds_split(NAME, split, **options)
    root = os.path.dirname(os.path.dirname(prepared))
    named = [key for key in _RECORD_FILES if key in str(split)]
    if not named:
        raise UserError(
            f"{NAME} has no split {split!r}: choose from train, validation, "
            "or parts and sums of these such as 'train[:10%]'"
        )
    records_source = functools.partial(_records_source, index)
    for find, read in (
        (_find_records, records_source),
        (imagenet_folders.find, imagenet_folders.folders_source),
    ):
        found = {key: find(root, key) for key in named}
        if any(found.values()):
            _check_complete(root, found)
            return read(root, split, found, labeled)
    manual_dir = _find_archives(root)
    if not manual_dir:
        raise UserError(_nothing(root, prepared))
    if not download:
        raise UserError(
            f"{printable(manual_dir)} holds the archives of ImageNet: add "
            "--download, and tensorflow-datasets prepares them, once and "
            f"without the network, in {printable(prepared)} (150 GB)"
        )
    return tfds_source.tfds_split(
        NAME, split, download=True, manual_dir=manual_dir, **options
    )


def _find_records(root, key):
    """Paths of Google's files of a split, none missing, or `None`."""
    for folder in (root, os.path.join(root, key)):
        names = {
            name
            for name in _names(folder)
            if re.fullmatch(rf"{key}-\d{{5}}-of-\d{{5}}", name)
        }
        if not names:
            continue
        total = int(min(names)[-5:])
        expected = [f"{key}-{i:05}-of-{total:05}" for i in range(total)]
        wrong = sorted(names.symmetric_difference(expected))
        if wrong:
            state = "is missing" if wrong[0] in expected else "is one too many"
            raise UserError(
                f"{printable(os.path.join(folder, wrong[0]))} {state}: there "
                f"should be {expected[0]} to {expected[-1]}, and no more"
            )
        return [os.path.join(folder, name) for name in expected]
    return None


def _names(folder):
    """Names of what is in a folder, local or not, if there is one."""
    try:
        local = "://" not in folder
        return os.listdir(folder) if local else tf.io.gfile.listdir(folder)
    except (FileNotFoundError, NotADirectoryError, tf.errors.NotFoundError):
        return []


def _records_source(index, root, split, files, labeled):
    """A source of TFRecord files, given as a dict from splits to paths."""
    sizes = {
        key: [count for _, count in tfrecord_source.counted(files[key], index)]
        for key in files
    }
    return tfrecord_source.example_source(
        name=f"{NAME}/{split}",
        slices=[
            (files[key][shard], skip, take)
            for key, shard, skip, take in tfds_splits.cut(NAME, sizes, split)
        ],
        class_names=imagenet_folders.synsets() if labeled else None,
        first_label=1,
        way_out="if they count from 0, give --labeled_tfrecords and "
        "--eval_tfrecords instead of --dataset",
    )


def _find_archives(root):
    """The folder that holds both archives, or `None`."""
    for folder in (root, os.path.join(root, "downloads", "manual")):
        paths = [os.path.join(folder, name) for name in ARCHIVES]
        missing = [path for path in paths if not os.path.exists(path)]
        if not missing:
            return folder
        if len(missing) < len(paths):
            raise UserError(
                f"{printable(missing[0])} is missing, and ImageNet's two "
                f"archives are prepared together: get it from {_WEB}"
            )
    return None


def _check_complete(root, found):
    for key, where in found.items():
        if not where:
            raise UserError(
                f"{printable(root)} has ImageNet's images of "
                f"{' and '.join(k for k in found if found[k])}, but not of "
                f"{key}: there is no {_expected(root, key)}"
            )


def _expected(root, key):
    """Where the images of a split are expected, in words."""
    folder = imagenet_folders.FOLDERS[key][0]
    if key == "train":
        folder += "/n01440764"
    paths = [f"{where}/{folder}" for where in imagenet_folders.ROOTS[:2]]
    paths.append(f"{key}-00000-of-{_RECORD_FILES[key]:05}")
    return " or ".join(
        printable(os.path.join(root, path.lstrip("/"))) for path in paths
    )


def _nothing(root, prepared):
    manual_dir = os.path.join(root, "downloads", "manual")
    return (
        f"ImageNet is not in {printable(root)}: there is no "
        f"{printable(prepared)} (of tensorflow-datasets), no "
        f"{_expected(root, 'train')}, and no {ARCHIVES[0]} with {ARCHIVES[1]} "
        f"there or in {printable(manual_dir)}; get these two from {_WEB} and "
        "add --download, or give --data_dir=DIR"
    )
