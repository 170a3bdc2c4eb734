# SPDX-License-Identifier: Apache-2.0
"""ImageNet's images in folders, as its archives and Kaggle's unpack.

Training images lie in a folder for each class, called by its synset. The
validation images lie in one folder, and their classes are not among them: they
are in a list that tensorflow-datasets brings. Who has sorted them into folders
of classes is welcome too.
"""

import hashlib
import os
import pathlib
import re

from absl import logging

from noisy_student.data import folder_sources
from noisy_student.data import tfds_splits
from noisy_student.data.sources import NO_LABEL
from noisy_student.data.sources import printable
from noisy_student.errors import UserError

NAME = "imagenet2012"
# Below --data_dir: the archives' own names, and Kaggle's places.
ROOTS = ("", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")
FOLDERS = {"train": ("train",), "validation": ("val", "validation")}

_SYNSET = rb"n\d{8}"
_VALIDATION_IMAGE = rb"(?i)ILSVRC2012_val_(\d{8})\.jpe?g"


def synsets():
    """Names of the 1000 classes, in order: "n01440764", ..., "n15075141"."""
    return tuple(_lines("labels.txt"))


def labeled_folder(directory, *, evaluation=False):
    """Class folders, or the validation images of ImageNet as they come.

    Args:
        directory: as in `folder_sources.class_folders`. If it holds files such
            as ILSVRC2012_val_00000001.JPEG and no folders, their labels are
            those of ImageNet.
        evaluation: as in `folder_sources.class_folders`.

    Returns:
        A `Source` whose references are absolute paths.

    Raises:
        UserError: as `folder_sources.class_folders`.
    """
    path = folder_sources.absolute_directory(directory)
    entries = folder_sources.visible_entries(path)
    if any(re.match(rb"ILSVRC2012_img_.*\.tar", e.name) for e in entries):
        raise UserError(
            f"{printable(directory)} holds archives of ImageNet: give "
            f"--dataset={NAME} --data_dir={printable(directory)} instead"
        )
    left_out, found = [], []
    if any(
        re.fullmatch(_VALIDATION_IMAGE, entry.name) for entry in entries
    ) and not any(map(folder_sources.is_folder, entries)):
        found = _numbered(path, left_out)
    if not found:
        return folder_sources.class_folders(directory, evaluation=evaluation)
    images, labels = zip(*found, strict=True)
    return folder_sources.folder_source(
        path, printable(directory), images, labels, synsets(), left_out
    )


def find(root, key):
    """The folder of a split's images.

    Args:
        root: what `ROOTS` are below.
        key: "train" or "validation".

    Returns:
        Its path in bytes, or `None`.
    """
    for parts in ROOTS:
        for name in FOLDERS[key]:
            folder = os.fsencode(os.path.join(root, parts, name))
            if os.path.isdir(folder) and any(
                re.match(_SYNSET + rb"|ILSVRC2012_val_", entry.name)
                for entry in folder_sources.visible_entries(folder)
            ):
                return folder
    return None


def folders_source(root, split, folders, labeled):
    """A source of a part of the images.

    Their order is the one that tensorflow-datasets would give them, so that
    "train[:10%]" are the same images.

    Args:
        root: as in `find`.
        split: as for `tfds.load`.
        folders: dict from the names of splits to what `find` has found.
        labeled: whether to read the labels.

    Returns:
        A `Source` whose references are absolute paths.

    Raises:
        UserError: if the part is empty, or a folder is not as it should be.
    """
    left_out, found = [], {}
    for key, folder in folders.items():
        images = list(_classes(folder, left_out))
        if not images and key == "validation":
            images = _numbered(folder, left_out)
        _check_classes(folder, images)
        found[key] = sorted(images, key=_order(key))
    sizes = {key: [len(images)] for key, images in found.items()}
    chosen = [
        image
        for key, _, skip, take in tfds_splits.cut(NAME, sizes, split)
        for image in found[key][skip : skip + take]
    ]
    images, labels = zip(*chosen, strict=True)
    return folder_sources.folder_source(
        os.fsencode(root),
        f"{NAME}/{split}",
        images,
        labels if labeled else [NO_LABEL] * len(images),
        synsets() if labeled else (),
        left_out,
    )


def _order(key):
    """How tensorflow-datasets orders a split: by what its names hash to."""
    salted = hashlib.md5(key.encode(), usedforsecurity=False)

    def place(image):
        (path, _), _ = image
        digest = salted.copy()
        digest.update(os.path.basename(path))
        return digest.digest(), path

    return place


def _classes(folder, left_out):
    """Yields ((path, size), label) of the images in folders of classes."""
    numbers = {os.fsencode(name): k for k, name in enumerate(synsets())}
    visited = {os.path.realpath(folder)}
    for entry in folder_sources.visible_entries(folder, left_out):
        if re.fullmatch(_SYNSET + rb"\.tar", entry.name):
            raise UserError(
                f"{printable(entry.path)} is an archive: unpack each of them "
                "into a folder of its name, and move it away"
            )
        if not folder_sources.is_folder(entry):
            continue
        if entry.name not in numbers:
            raise UserError(
                f"{printable(entry.path)} is no class of ImageNet 2012: move "
                "it away"
            )
        for image in folder_sources.images_below(entry.path, visited, left_out):
            yield image, numbers[entry.name]


def _numbered(folder, left_out):
    """List of ((path, size), label) of the validation images, by name."""
    labels = _lines("validation_labels.txt")
    numbers = {name: k for k, name in enumerate(synsets())}
    found = []
    for path, size in folder_sources.images_below(folder, set(), left_out):
        match = re.fullmatch(_VALIDATION_IMAGE, os.path.basename(path))
        if match and 1 <= int(match[1]) <= len(labels):
            found.append(((path, size), numbers[labels[int(match[1]) - 1]]))
        else:
            left_out.append((path, "no validation image of ImageNet"))
    return found


def _check_classes(folder, images):
    if not images:
        raise UserError(
            f"{printable(folder)} has no image where ImageNet's should be, as "
            "in n01440764/n01440764_18.JPEG: unpack the archives again"
        )
    missing = len(synsets()) - len({label for _, label in images})
    if missing:
        logging.warning(
            "%s: %d of ImageNet's 1000 classes have no image",
            printable(folder),
            missing,
        )


def _lines(name):
    """A list of tensorflow-datasets about ImageNet."""
    import tensorflow_datasets as tfds

    folder = pathlib.Path(tfds.core.tfds_path("datasets/imagenet2012"))
    return (folder / name).read_text().split()
