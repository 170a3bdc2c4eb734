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
import re
import stat

import tensorflow as tf
from absl import logging

from noisy_student.data.sources import NO_LABEL
from noisy_student.data.sources import class_name
from noisy_student.data.sources import fingerprint_of
from noisy_student.data.sources import printable
from noisy_student.data.sources import same_looking
from noisy_student.data.sources import source_in_memory
from noisy_student.errors import UserError
from noisy_student.files import literal_part

NO_IMAGE = "no image"  # the reason that is no fault of the file
# Nothing that is decoded needs more: `decoding.MAX_PIXELS` of 16 bits, four
# channels and no compression are 0.7 of it.
MAX_BYTES = 2**30
IMAGE_EXTENSIONS = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp"),
    *(".jpe", ".jfif", ".jfi", ".jif", ".pjpeg", ".pjp", ".apng", ".dib"),
)
# What phones, cameras and scanners write as well: it cannot be decoded here,
# but its owner believes it to be among the images.
OTHER_EXTENSIONS = (
    *(".heic", ".heif", ".avif", ".tif", ".tiff", ".jp2", ".j2k", ".jxl"),
    *(".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".raf", ".rw2"),
    *(".srw", ".pef", ".3fr", ".raw", ".tga", ".psd", ".xcf", ".svg", ".eps"),
    *(".ai", ".ico", ".pdf", ".dcm", ".dicom", ".nii", ".exr", ".hdr", ".npy"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".mp4", ".m4v", ".mov", ".avi", ".mkv"),
    *(".webm", ".wmv", ".3gp"),
)
_UNFINISHED_EXTENSIONS = (".part", ".partial", ".crdownload", ".download")
# Beside many a data set's images, one for each, and never one of them. The
# last is a thumbnail of a video.
_SIDECAR_EXTENSIONS = (".txt", ".xml", ".json", ".csv", ".thm")
# Thumbnails, deleted and foreign files, as NAS, Windows, macOS and disks call
# them where they do not hide them.
_SYSTEM_FOLDERS = (
    *(b"@eadir", b"@__thumb", b"@recycle", b"@recently-snapshot", b"@tmp"),
    *(b"@sharebin", b"#recycle", b"#snapshot", b"~snapshot", b"$recycle.bin"),
    *(b"recycler", b"system volume information", b"found.000"),
    *(b"network trash folder", b"temporary items"),
    *(b"__macosx", b"lost+found", b"__pycache__"),
)
_ARCHIVE_EXTENSIONS = (b".tar", b".tgz", b".gz", b".zip")
# Parts of a data set, which nobody calls a class if there are two of them.
_PARTS = (
    rb"(train(ing)?|val(id(ation)?)?|test(ing)?|dev|eval(uation)?|hold[-_ ]?out"
    rb"|(un)?labell?ed|images?|imgs?|masks?|labels?|annotations?|data(set)?"
    rb"|(fold|split)[-_ ]?\d+)"
    rb"([-_ ]?(set|data|images|\d{4}))?"
)


def class_folders(directory, *, evaluation=False):
    """Labeled images: one sub-folder per class, images anywhere below it.

    Classes are numbered in the order of the bytes of their names, which are
    those of the folders in Unicode's composed form, without outer spaces.
    Files whose names do not tell are images if they begin like one. Hidden
    files and folders are ignored. Links to folders are followed, but no
    folder is visited twice for one class. Links that lead nowhere, files of
    more than `MAX_BYTES`, images of `OTHER_EXTENSIONS`, unfinished downloads
    and folders of thumbnails are left out. The order of the images mixes
    classes.

    Args:
        directory: path of the folder that holds the class folders.
        evaluation: whether these images are for the evaluation of a model with
            classes of its own: then a single class is enough, and an empty
            folder is a class without images, in `absent`, and no mistake.

    Returns:
        A `Source` whose references are absolute paths.

    Raises:
        UserError: if the directory is missing or no directory, or has fewer
            than two class folders, or one of them has no image, or two have
            the same name; or if what it holds are no classes, but parts such
            as train and val, or one folder that holds all classes.
    """
    root = absolute_directory(directory)
    name = printable(directory)
    left_out = []
    entries = visible_entries(root, left_out)
    folders = [entry for entry in entries if is_folder(entry)]
    folders.sort(key=lambda entry: class_name(entry.name).encode())
    files = [entry for entry in entries if not is_folder(entry)]
    strays = sum(_ends_like_image(entry.name) for entry in files)
    if not folders and strays:
        raise UserError(
            f"{name} holds images directly: each class needs a folder of its "
            "own there, named like the class"
        )
    _check_level(name, folders, evaluation)
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

    for entry in files:
        is_stray = _ends_like_image(entry.name)
        why = "beside the class folders" if is_stray else NO_IMAGE
        left_out.append((entry.path, why))
    _check_names(name, folders)

    images, labels, class_names = [], [], []
    is_nested = True
    for folder in folders:
        # A link back to the root would bring in the other classes' images.
        before = len(left_out)
        found = list(
            images_below(folder.path, {os.path.realpath(root)}, left_out)
        )
        if not found and not evaluation:
            raise UserError(
                f"the class folder {printable(folder.path)} has no image "
                f"({' '.join(IMAGE_EXTENSIONS)}){_but(left_out[before:])}: add "
                "some or remove the folder"
            )
        is_nested &= all(os.path.dirname(p) != folder.path for p, _ in found)
        images += found
        labels += [len(class_names)] * len(found)
        class_names.append(class_name(folder.name))
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
    if is_nested:
        logging.warning(
            "%s: no class folder holds images directly; all below %s, such as "
            "%s, are one class%s",
            name,
            class_names[0],
            printable(os.path.dirname(images[0][0])),
            _likely_classes(name, folders),
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


def _check_level(name, folders, evaluation):
    """Refuses folders that are no classes, but hold them."""

    def holds_folders_alone(folder):
        inside = visible_entries(folder.path)
        return any(map(is_folder, inside)) and not any(
            _ends_like_image(entry.name) for entry in inside
        )

    def is_part(folder):
        return re.fullmatch(_PARTS, folder.name, re.IGNORECASE)

    parts = list(filter(is_part, folders))
    if len(parts) >= 2 and (
        len(parts) == len(folders) or sum(map(holds_folders_alone, parts)) >= 2
    ):
        names = [printable(folder.name) for folder in parts]
        likely = ("train", "labele", "labelle", "image")
        if evaluation:
            likely = ("eval", "val", "test")
        first = next(
            (n for n in names if n.lower().startswith(likely)), names[0]
        )
        flag = "eval" if evaluation else "labeled"
        other = "" if evaluation else ", and another of them as --eval_dir"
        raise UserError(
            f"{name} holds {' and '.join(names)}, which are no classes: give "
            f"--{flag}_dir={os.path.join(name, first)}{other}, or rename them "
            "if they are"
        )
    if len(folders) == 1 and not evaluation and holds_folders_alone(folders[0]):
        inner = os.path.join(name, printable(folders[0].name))
        raise UserError(
            f"{name} has only one class folder, {inner}, which holds no images "
            f"but folders: give --labeled_dir={inner} if these are the classes"
        )


def _likely_classes(name, folders):
    """For a warning: whether class folders hold the same folders as others."""
    first, *others = (
        {e.name for e in visible_entries(folder.path) if is_folder(e)}
        for folder in folders
    )
    same = sorted(first.intersection(*others))
    if len(folders) < 2 or len(same) < 2:
        return ""
    path = os.path.join(name, printable(folders[0].name))
    return (
        f", though all classes have {', '.join(map(printable, same[:3]))} "
        f"below them: if these are the classes, give a folder such as {path}"
    )


def _check_names(name, folders):
    """Refuses folders whose names look the same, warns of almost the same."""
    if pair := same_looking([folder.name for folder in folders]):
        one, other = (ascii(os.fsdecode(folder)) for folder in pair)
        raise UserError(
            f"{name} holds two folders whose names look the same, {one} and "
            f"{other}: move the images of both into one"
        )
    cases = {}
    for folder in folders:
        text = class_name(folder.name)
        other = cases.setdefault(text.casefold(), text)
        if other != text:
            logging.warning(
                "%s: the classes %s and %s differ in case alone",
                name,
                other,
                text,
            )


def _but(left_out):
    """For a message that there is no image: what was taken for none."""
    unread = [(path, why) for path, why in left_out if why != NO_IMAGE]
    if not unread:
        return ""
    path, why = unread[0]
    count = f"{len(unread)} files such as " if len(unread) > 1 else ""
    return f", but {count}{printable(os.path.basename(path))} ({why})"


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
            f"{printable(directory)} holds no image{_but(left_out)}: put files "
            f"that end in {' '.join(IMAGE_EXTENSIONS)} there, in any sub-folder"
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
        else:
            status = os.stat(match) if os.path.exists(match) else None
            why = _why_no_image(match, status)
            if why is None:
                found[match] = status.st_size
            else:
                left_out.append((match, why))
    if not found:
        raise UserError(
            f"{name} matches no image ({' '.join(IMAGE_EXTENSIONS)})"
            f"{_but(left_out)} and no folder with one: give another glob, in "
            "quotes"
        )
    images = list(found.items())
    left_out = dict.fromkeys(left_out)  # `**` matches what is below, too
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

    def is_hidden(part):
        system = os.fsencode(part).lower() in _SYSTEM_FOLDERS
        return system or part.startswith(".")

    hidden = any(map(is_hidden, wild))
    return sorted(
        (
            os.fsencode(match)
            for match in matches
            if hidden or not any(map(is_hidden, match.relative_to(root).parts))
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
        left_out: list of (path, reason), `NO_IMAGE` for what is to be counted
            and not named.
    """
    ignored = [path for path, why in left_out if why == NO_IMAGE]
    if ignored:
        endings = {os.path.splitext(path)[1].lower() for path in ignored}
        some = " ".join(map(printable, sorted(endings - {b""})[:5]))
        logging.warning(
            "%s: ignoring %d hidden or non-image file%s%s",
            name,
            len(ignored),
            "" if len(ignored) == 1 else "s",
            some and f" ({some})",
        )
    relative = ((path.removeprefix(root), size) for path, size in images)
    return source_in_memory(
        name=name,
        class_names=class_names,
        fingerprint=fingerprint_of(["folder", class_names, *relative]),
        references=[path for path, _ in images],
        labels=labels,
        load=tf.io.read_file,
        row_name=lambda row: printable(images[row][0]),
        left_out=tuple(
            (printable(path), why) for path, why in left_out if why != NO_IMAGE
        ),
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


def visible_entries(folder, left_out=None):
    """Entries of a folder by the bytes of their names.

    Args:
        folder: path in bytes.
        left_out: list that gets (path, reason) of those that are not among
            them: hidden ones, and the folders of thumbnails and of deleted
            files that a system has put there.
    """
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(
            f"{printable(folder)} cannot be listed ({error.strerror}): make "
            "it readable or move it away"
        ) from error
    visible, others = [], []
    for entry in found:
        if entry.name.startswith(b"."):
            others.append((entry.path, NO_IMAGE))
        elif entry.name.lower() in _SYSTEM_FOLDERS and is_folder(entry):
            others.append((entry.path, "thumbnails or files of the system"))
        else:
            visible.append(entry)
    if left_out is not None:
        left_out += others
    return visible


def is_folder(entry):
    """Whether there is a folder behind an entry, or behind its link."""
    status = _status(entry)
    return status is not None and stat.S_ISDIR(status.st_mode)


def _extension(name):
    return os.fsdecode(os.path.splitext(name)[1]).lower()


def _ends_like_image(name):
    return _extension(name) in IMAGE_EXTENSIONS


def _why_no_image(path, status):
    """Why a file is not taken; None for an image.

    Args:
        path: in bytes.
        status: of `os.stat`, links followed; None if there is nothing.

    Returns:
        `NO_IMAGE` for what nobody would believe to be one.
    """
    extension = _extension(path)
    if extension in OTHER_EXTENSIONS:
        return "not read: convert it to JPEG or PNG"
    if extension in _UNFINISHED_EXTENSIONS:
        return "an unfinished download"
    is_file = status is not None and stat.S_ISREG(status.st_mode)
    if extension not in IMAGE_EXTENSIONS and not (
        is_file
        and extension not in _SIDECAR_EXTENSIONS
        and _begins_like_image(path)
    ):
        return NO_IMAGE
    if status is None:
        return "a link that leads nowhere"
    if not is_file:
        return "not a file but a device"
    if status.st_size > MAX_BYTES:
        return f"larger than {MAX_BYTES // 2**30} GB"
    return None


def _begins_like_image(path):
    """Whether a file whose name does not tell is one that can be decoded."""
    try:
        with open(path, "rb", 0) as file:
            start = file.read(14)
    except OSError:
        return False
    return (
        start.startswith(
            (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF87a", b"GIF89a")
        )
        or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")
        or (start[:2] == b"BM" and start[6:10] == bytes(4))
    )


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
        left_out: list that gets (path, reason) of everything else.
    """
    real_path = os.path.realpath(folder)
    if real_path in visited:
        return
    visited.add(real_path)
    for entry in visible_entries(folder, left_out):
        if is_folder(entry):
            yield from images_below(entry.path, visited, left_out)
            continue
        status = _status(entry)
        why = _why_no_image(entry.path, status)
        if why is None:
            yield entry.path, status.st_size
        else:
            left_out.append((entry.path, why))
