# SPDX-License-Identifier: Apache-2.0
"""Sources whose images are files: class folders, and any tree of images.

The listing is the work of this file: it must give the same order on every
machine, whatever the locale and the file system, survive links that loop and
names that are no valid text, and notice every mistake that a person can make
with folders before a run has cost an hour. Paths are bytes throughout.
"""

import dataclasses
import glob
import hashlib
import os
import stat

import tensorflow as tf
from absl import logging

from noisy_student.data.sources import NO_LABEL
from noisy_student.data.sources import fingerprint_of
from noisy_student.data.sources import printable
from noisy_student.data.sources import source_in_memory
from noisy_student.errors import UserError
from noisy_student.files import literal_part

# Nothing that is decoded needs more: `decoding.MAX_PIXELS` of 16 bits, four
# channels and no compression are 0.7 of it.
MAX_BYTES = 2**30
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")
# What phones and scanners write as well: TensorFlow cannot decode it, but its
# owner believes it to be among the images.
OTHER_EXTENSIONS = (".heic", ".heif", ".avif", ".tif", ".tiff")
_ARCHIVE_EXTENSIONS = (b".tar", b".tgz", b".gz", b".zip")
_SPLITS = (b"train", b"training", b"val", b"valid", b"validation", b"test")


def class_folders(directory, *, evaluation=False):
    """Labeled images: one sub-folder per class, images anywhere below it.

    Classes are numbered in the order of the bytes of their folders' names.
    Hidden files and folders are ignored. Links to folders are followed, but no
    folder is visited twice for one class. Links that lead nowhere, files of
    more than `MAX_BYTES` and images of `OTHER_EXTENSIONS` are left out. The
    order of the images mixes classes.

    Args:
        directory: path of the folder that holds the class folders.
        evaluation: whether these images are for the evaluation of a model with
            classes of its own: then a single class is enough, and an empty
            folder is a class without images, in `absent`, and no mistake.

    Returns:
        A `Source` whose references are absolute paths.

    Raises:
        UserError: if the directory is missing or no directory, or has fewer
            than two class folders, or one of them has no image.
    """
    root = absolute_directory(directory)
    name = printable(directory)
    entries = visible_entries(root)
    folders = [entry for entry in entries if is_folder(entry)]
    strays = sum(
        _ends_like_image(entry.name) and not is_folder(entry)
        for entry in entries
    )
    if not folders and strays:
        raise UserError(
            f"{name} holds images directly: each class needs a folder of its "
            "own there, named like the class"
        )
    if _are_splits(folders):
        names = [printable(folder.name) for folder in folders]
        train = next((n for n in names if n.lower()[:5] == "train"), names[0])
        raise UserError(
            f"{name} holds {' and '.join(names)}, which are no classes: give "
            f"--labeled_dir={os.path.join(name, train)}, and another of them "
            "as --eval_dir"
        )
    archives = [e.name for e in entries if e.name.endswith(_ARCHIVE_EXTENSIONS)]
    if not folders and archives:
        raise UserError(
            f"{name} holds archives such as {printable(archives[0])} and no "
            "folders: unpack them first"
        )
    if not folders:
        raise UserError(
            f"{name} has no sub-folders: put the images of each class in a "
            "folder of its own there, named like the class"
        )
    if strays:
        logging.warning(
            "%s: ignoring %d images beside the class folders", name, strays
        )

    images, labels, class_names, left_out = [], [], [], []
    for folder in folders:
        # A link back to the root would bring in the other classes' images.
        found = list(
            images_below(folder.path, {os.path.realpath(root)}, left_out)
        )
        if not found and not evaluation:
            raise UserError(
                f"the class folder {printable(folder.path)} has no image "
                f"({' '.join(IMAGE_EXTENSIONS)}): add some or remove the folder"
            )
        images += found
        labels += [len(class_names)] * len(found)
        class_names.append(printable(folder.name))
    class_names = tuple(class_names)
    if not images:
        raise UserError(
            f"no class folder of {name} has an image "
            f"({' '.join(IMAGE_EXTENSIONS)}): add some"
        )
    if len(class_names) == 1 and not evaluation:
        raise UserError(
            f"{name} has only one class folder, {class_names[0]!r}, and "
            "there must be two or more: give the folder that holds them all"
        )
    pairs = zip(images, labels, strict=True)
    pairs = sorted(pairs, key=lambda pair: _place(root, pair[0]))
    images, labels = zip(*pairs, strict=True)
    source = folder_source(root, name, images, labels, class_names, left_out)
    there = set(labels)
    absent = (n for k, n in enumerate(class_names) if k not in there)
    return dataclasses.replace(source, absent=tuple(absent))


def _place(root, image):
    """What to sort by for an order that every machine agrees on, but no name.

    On a disk classes, films and days lie one after the other, and training
    shuffles no further than its buffer.
    """
    relative = image[0].removeprefix(root)
    return hashlib.md5(relative, usedforsecurity=False).digest()


def _are_splits(folders):
    """Whether folders are no classes, but train, with classes in it, and val.

    One of them may hold images directly, as ImageNet's val does.
    """
    if any(folder.name.lower() not in _SPLITS for folder in folders):
        return False
    inside = (visible_entries(folder.path) for folder in folders)
    return any(
        any(map(is_folder, entries))
        and not any(_ends_like_image(entry.name) for entry in entries)
        for entries in inside
    )


def image_folder(directory):
    """Unlabeled images: a folder and everything below it.

    Args:
        directory: path of a tree of any shape; hidden files and folders and
            links are treated as in `class_folders`.

    Returns:
        A `Source` without labels whose references are absolute paths.

    Raises:
        UserError: if the directory is missing, no directory or has no image.
    """
    root, images, left_out = _tree(directory)
    images.sort(key=lambda image: _place(root, image))
    labels = [NO_LABEL] * len(images)
    name = printable(directory)
    return folder_source(root, name, images, labels, (), left_out)


def _tree(directory):
    """A folder, the images below it by name, and what is left out."""
    root = absolute_directory(directory)
    left_out = []
    images = list(images_below(root, set(), left_out))
    if not images:
        raise UserError(
            f"{printable(directory)} holds no image: put files that end in "
            f"{' '.join(IMAGE_EXTENSIONS)} there, in any sub-folder"
        )
    return root, images, left_out


def images_at(path):
    """Images to be predicted: a file, a folder, or what a glob matches.

    What exists is taken as it is, whatever its name; otherwise `*`, `?`,
    `[...]` and `**` have their meaning. A folder, also one that a glob matches,
    brings in everything below it. A file that is named itself need not end like
    an image. The order is that of the bytes of the names, folder by folder;
    hidden files and folders and links are treated as in `class_folders`, but
    what is named itself may be hidden.

    Args:
        path: str, bytes or path-like.

    Returns:
        A `Source` without labels whose references are absolute paths.

    Raises:
        UserError: if there is no such file, or no image.
    """
    name = printable(path)
    absolute = os.path.abspath(os.path.expanduser(os.fsencode(path)))
    if os.path.isdir(absolute):
        root, images, left_out = _tree(path)
        labels = [NO_LABEL] * len(images)
        return folder_source(root, name, images, labels, (), left_out)
    if os.path.isfile(absolute):
        images = [(absolute, os.path.getsize(absolute))]
        return folder_source(b"", name, images, [NO_LABEL], (), ())
    if not glob.has_magic(absolute):
        state = "is no file" if os.path.exists(absolute) else "is missing"
        raise UserError(
            f"{name} {state}: give an image, a folder of images, or a glob in "
            "quotes"
        )
    found, visited, left_out = {}, set(), []
    for match in _matches(absolute):
        if os.path.isdir(match):
            found.update(images_below(match, visited, left_out))
        elif _ends_like_image(match) and os.path.isfile(match):
            found[match] = os.path.getsize(match)
    if not found:
        raise UserError(
            f"{name} matches no image ({' '.join(IMAGE_EXTENSIONS)}) and no "
            "folder with one: give another glob, in quotes"
        )
    images = list(found.items())
    labels = [NO_LABEL] * len(images)
    return folder_source(b"", name, images, labels, (), left_out)


def _matches(pattern):
    """Paths in bytes that a glob matches, in order; hidden names left out."""
    root, wild = literal_part(os.fsdecode(pattern))
    try:
        # Unlike glob.glob it follows no links below `**`, which may loop.
        matches = list(root.glob(os.path.join(*wild)))
    except ValueError as error:
        raise UserError(f"{printable(pattern)}: {error}") from None
    hidden = any(part.startswith(".") for part in wild)
    return sorted(
        (
            os.fsencode(match)
            for match in matches
            if hidden
            or not any(
                part.startswith(".") for part in match.relative_to(root).parts
            )
        ),
        key=lambda match: match.split(os.fsencode(os.sep)),
    )


def folder_source(root, name, images, labels, class_names, left_out):
    """A source of image files.

    Args:
        root: path, in bytes, that is no part of what the files are.
        name: as in `Source`.
        images: list of (absolute path in bytes, size in bytes).
        labels: list of their labels.
        class_names: as in `Source`.
        left_out: list of (path, reason).
    """
    relative = ((path.removeprefix(root), size) for path, size in images)
    return source_in_memory(
        name=name,
        class_names=class_names,
        fingerprint=fingerprint_of(["folder", class_names, *relative]),
        references=[path for path, _ in images],
        labels=labels,
        load=tf.io.read_file,
        row_name=lambda row: printable(images[row][0]),
        left_out=tuple((printable(path), why) for path, why in left_out),
    )


def absolute_directory(directory):
    """Absolute path, in bytes, of a directory that exists."""
    path = os.path.abspath(os.path.expanduser(os.fsencode(directory)))
    if not os.path.isdir(path):
        state = "is not a directory" if os.path.exists(path) else "is missing"
        raise UserError(
            f"{printable(directory)} {state}: give the path of a local folder "
            "of images"
        )
    return path


def visible_entries(folder):
    """Entries of a folder by the bytes of their names, hidden ones left out."""
    try:
        with os.scandir(folder) as entries:
            visible = [e for e in entries if not e.name.startswith(b".")]
    except OSError as error:
        raise UserError(
            f"{printable(folder)} cannot be listed ({error.strerror}): make "
            "it readable or move it away"
        ) from error
    return sorted(visible, key=lambda entry: entry.name)


def is_folder(entry):
    """Whether there is a folder behind an entry, or behind its link."""
    status = _status(entry)
    return status is not None and stat.S_ISDIR(status.st_mode)


def _ends_like_image(name, extensions=IMAGE_EXTENSIONS):
    extension = os.fsdecode(os.path.splitext(name)[1])
    return extension.lower() in extensions


def _status(entry):
    """What `stat` says, links followed; None if there is nothing behind it."""
    try:
        return entry.stat()
    except OSError:  # a link to nothing, or in a circle
        return None


def images_below(folder, visited, left_out):
    """Yields (path, size) of the images of a tree, in the order of the names.

    Args:
        folder: path in bytes.
        visited: set of real paths not to enter; grows on the way.
        left_out: list that gets (path, reason) of what only looks like one.
    """
    real_path = os.path.realpath(folder)
    if real_path in visited:
        return
    visited.add(real_path)
    for entry in visible_entries(folder):
        if is_folder(entry):
            yield from images_below(entry.path, visited, left_out)
        elif _ends_like_image(entry.name, OTHER_EXTENSIONS):
            left_out.append((entry.path, "not read: convert it to JPEG"))
        elif _ends_like_image(entry.name):
            status = _status(entry)
            if status is None:
                left_out.append((entry.path, "a link that leads nowhere"))
            elif not stat.S_ISREG(status.st_mode):
                left_out.append((entry.path, "not a file but a device"))
            elif status.st_size > MAX_BYTES:
                left_out.append(
                    (entry.path, f"larger than {MAX_BYTES // 2**30} GB")
                )
            else:
                yield entry.path, status.st_size
