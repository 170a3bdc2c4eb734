# SPDX-License-Identifier: Apache-2.0
"""Paths in one spelling, files that are whole, folders with one owner."""

import contextlib
import errno
import glob
import json
import os
import pathlib
import platform
import re
import shutil
import unicodedata
import urllib.parse

import filelock

from noisy_student.errors import UserError

LOCK = ".lock"  # in a folder that has an owner
# What a spreadsheet takes for the beginning of a formula.
FORMULA = ("=", "+", "-", "@", "\t", "\r")
# Folders that this process owns -> `os.stat` of their lock files.
_owned = {}
# What a file system says when it cannot read, whatever is in the file.
NOT_READABLE = tuple(
    getattr(errno, name)
    for name in (
        "EIO", "EMFILE", "ENFILE", "ENODEV", "ENOMEM", "ENOTCONN", "ENXIO",
        "ESTALE", "ETIMEDOUT",
    )
    if hasattr(errno, name)
)  # fmt: skip
# How file systems say that they have no locks, or flush no folders.
NOT_SUPPORTED = (errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


def absolute(path):
    """The one spelling of a path, however it was typed.

    Args:
        path: str, bytes or path-like. A remote one, such as `gs://bucket//x`,
            stays as it is; the shell has replaced its variables.

    Returns:
        str without `~`, `.`, `..`, `//`, a slash at the end and `file://`. A
        name in another Unicode form than on the disk takes that of the disk.
    """
    path = os.fsdecode(path)
    if path.startswith("file://"):
        path = path.removeprefix("file://")
        path = path if os.path.exists(path) else urllib.parse.unquote(path)
    if "://" in path:
        return path
    path = os.path.expanduser(path)
    if os.name == "posix":
        path = re.sub("^//+", "/", path)  # POSIX leaves two of them alone
    # Behind a link, `..` is not the folder that the link lies in.
    through_links = ".." in path.split(os.sep)
    path = os.path.realpath(path) if through_links else os.path.abspath(path)
    return path if path.isascii() else _as_on_disk(path)


def _as_on_disk(path):
    """A path whose names have the Unicode form (NFC, NFD) of the disk."""
    parent, name = os.path.split(path)
    if parent == path or os.path.lexists(path):
        return path
    parent = _as_on_disk(parent)
    with contextlib.suppress(OSError):
        wanted = unicodedata.normalize("NFC", name)
        for entry in sorted(os.listdir(parent)):
            if unicodedata.normalize("NFC", entry) == wanted:
                return os.path.join(parent, entry)
    return os.path.join(parent, name)


def tidy(path):
    """`absolute`, but what is given relative to here stays short."""
    whole, given = absolute(path), os.path.expanduser(os.fsdecode(path))
    return whole if "://" in given or os.path.isabs(given) else short(whole)


def short(path):
    """A path relative to the current folder, if it lies below that."""
    if "://" in path or not os.path.isabs(path):
        return path
    relative = os.path.relpath(path)
    return path if relative.startswith(".") else relative


def each_pattern(change, text):
    """Globs that are separated by commas, each of them changed.

    Args:
        change: Function of a path, such as `absolute`.
        text: The globs; left as it is with a remote one among them.
    """
    text = os.fsdecode(text)
    if "://" in text.replace("file://", ""):
        return text
    if change is short and not found(text):
        return text  # at the root it is known where each begins
    return ",".join(map(change, split_patterns(text, matching_files)))


def split_patterns(text, matches):
    """Cut globs at the commas between them, not at those in a path.

    Args:
        text: Globs, separated by commas.
        matches: Function of a glob: whether there is such a file.

    Returns:
        List of str, without spaces around them where those are in no name.
    """
    parts, found = text.split(","), []
    while parts:
        candidates = [",".join(parts[: n + 1]) for n in range(len(parts))]
        taken = next(
            (n for n, c in enumerate(candidates) if c and matches(c)), None
        )
        if taken is None:
            taken = next(
                (n for n, c in enumerate(candidates) if matches(c.strip())),
                _first_path(parts),
            )
            candidates[taken] = candidates[taken].strip()
        found.append(candidates[taken])
        parts = parts[taken + 1 :]
    return [pattern for pattern in found if pattern]


def _first_path(parts):
    """Where the first of some globs ends, of which no file is there.

    Recorded ones begin at the root: what does not goes on with one that does.
    """
    if not parts[0].startswith(os.sep):
        return 0
    begins = (part.startswith((os.sep, " ")) for part in parts[1:])
    return next((n for n, it in enumerate(begins) if it), len(parts) - 1)


def matching_files(pattern):
    """Local files that a glob matches."""
    literal, rest = literal_part(absolute(pattern))
    wild = os.path.join(glob.escape(str(literal)), *rest)
    return list(filter(os.path.isfile, glob.glob(wild)))


def found(text):
    """Whether there is what a path or some globs name, as far as is known."""
    if "://" in text or os.path.exists(text):
        return True
    return all(map(matching_files, split_patterns(text, matching_files)))


def literal_part(pattern):
    """Cut a glob where it begins to be one.

    What exists is meant as it is named, such as a folder `a[1]` or `what?`.

    Args:
        pattern: Absolute, str.

    Returns:
        Pair of a `pathlib.Path` that exists and a list of the parts below it.
    """
    literal, rest = pathlib.Path(pattern), []
    while not os.path.lexists(literal):
        rest.insert(0, literal.name)
        literal = literal.parent
    return literal, rest


def write_atomically(path, write, mark=""):
    """Write a file under a temporary name, then rename it.

    After a crash of the machine too, the file is the old one or the new one:
    first the content reaches the disk, then the name.

    Args:
        path: Where it shall stand; folders are made.
        write: Function that fills a binary file object.
        mark: As in `replacing`.
    """
    with replacing(path, mark) as temporary, open(temporary, "wb") as file:
        write(file)


@contextlib.contextmanager
def replacing(path, mark=""):
    """Give a name to write to; what was written becomes `path` at the end.

    Args:
        path: Where the file shall stand; folders are made.
        mark: Part of that name, where several processes may write at once.
    """
    path = pathlib.Path(path)
    _check_there(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The same name always, so that a killed process leaves at most one behind.
    temporary = path.with_name(f".{path.name}{mark}.tmp")
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        # A full disk is not to be filled with what nobody can use.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and not error.filename:
            error.filename = str(path)  # a write that fails does not say where
        raise
    _flush(path.parent)


@contextlib.contextmanager
def replacing_folder(path):
    """Give a folder to fill; it becomes `path` at the end, whole.

    Args:
        path: Where the folder shall stand; one that stands there is removed
            with all that is in it, once the new one is filled. Whatever ends
            the process, one of them is kept; the next call brings it back.
    """
    path = pathlib.Path(path)
    _check_there(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (
        path.with_name(f".{path.name}.{ending}") for ending in ("tmp", "old")
    )

    def bring_back():
        # Between the two renames only this one exists.
        if old.exists() and not path.exists():
            os.rename(old, path)

    bring_back()
    for left_over in (temporary, old):
        shutil.rmtree(left_over, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for part in sorted(temporary.rglob("*"), reverse=True):
            _flush(part)
        if path.exists():
            os.rename(path, old)
        os.rename(temporary, path)
    finally:
        bring_back()
        shutil.rmtree(temporary, ignore_errors=True)
    _flush(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def write_text(path, text, mark=""):
    """Write a text as UTF-8, atomically; `mark` as in `replacing`."""
    write_atomically(path, lambda file: file.write(text.encode()), mark)


def append_text(path, text):
    """Add to a file of lines, of which the last may be half one day."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        error.filename = str(path)  # a write that fails does not say where
        raise


def write_json(path, value):
    """Write a value as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path, is_whole, way_out):
    """Read a value that `write_json` wrote.

    Args:
        path: Of a file that exists.
        is_whole: Function of the value: whether it has the parts that it should
            have. It may fail with what a missing part fails with.
        way_out: What to do if it has not, for the error message.

    Raises:
        UserError: If it is anything else.
    """
    damages = (ValueError, LookupError, TypeError, AttributeError)
    with contextlib.suppress(*damages, RecursionError):
        value = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        if is_whole(value):
            return value
    raise UserError(f"{path} is damaged: {way_out}")


def is_damage(error):
    """Whether an error while a file was read speaks of what is in it.

    Readers of zip files, JSON, HDF5 and array headers raise whatever they like
    at wrong bytes. A file that is gone or may not be read, a drive that does
    not answer, memory that is short or a sentence of our own is no damage:
    nobody should be told to delete that file.

    Args:
        error: An `Exception`.
    """
    if isinstance(error, OSError):
        own = (FileNotFoundError, PermissionError, IsADirectoryError)
        return not isinstance(error, own) and error.errno not in NOT_READABLE
    # TensorFlow's, such as of a device that is full, know of no file of ours.
    of_tensorflow = any(
        kind.__module__.startswith("tensorflow.")
        for kind in type(error).__mro__
    )
    return not (isinstance(error, UserError | MemoryError) or of_tensorflow)


def free_disk(path):
    """Bytes free where a folder is, or will be."""
    path = pathlib.Path(path).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def csv_cell(value):
    """A value as a cell of a CSV file that a spreadsheet may open.

    Args:
        value: str, float32 or None.

    Returns:
        Text. One that a spreadsheet would compute gets a `'` before it, which
        shows it as it is.
    """
    if value is None:
        return ""
    text = str(value)
    if isinstance(value, str) and text.startswith(FORMULA):
        with contextlib.suppress(ValueError):
            float(text)
            return text  # a class named -1 computes to itself
        return f"'{text}"
    return text


@contextlib.contextmanager
def owned(directory):
    """Keep all other processes out of a folder.

    The system drops the lock with the process, however that ends.

    Args:
        directory: A folder that exists.

    Raises:
        UserError: If another process has it.
    """
    path = pathlib.Path(directory) / LOCK
    lock = filelock.FileLock(path, timeout=0, fallback_to_soft=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        owner = "another process"
        with contextlib.suppress(OSError):  # Windows: nobody else may read it
            owner = path.read_text(encoding="utf-8").strip() or owner
        raise UserError(
            f"{owner} works in {directory}: wait until it has ended, or "
            "use another --workdir"
        ) from None
    except OSError as error:
        # Some network file systems have no locks; the work can do without.
        if error.errno not in NOT_SUPPORTED:
            raise
    with contextlib.suppress(OSError):  # a full disk: the lock will do
        path.write_text(
            f"process {os.getpid()} on {platform.node()}\n", encoding="utf-8"
        )
    _owned[pathlib.Path(directory).absolute()] = os.stat(path)
    try:
        yield
    finally:
        del _owned[pathlib.Path(directory).absolute()]
        lock.release()


def _check_there(path):
    """Refuse to write into an owned folder that is no longer the same.

    Where a drive was unmounted or a folder deleted, the rest of a run would
    grow in its place, without what came before.
    """
    for directory, taken in _owned.items():
        if not path.absolute().is_relative_to(directory):
            continue
        try:
            lock = os.stat(directory / LOCK)
        except OSError:
            lock = None
        if lock is None or not os.path.samestat(lock, taken):
            raise UserError(
                f"{directory} has vanished while a run worked in it: bring it "
                "back, and the same command goes on"
            )


def _flush(path):
    """Wait until the disk has a file, or the names in a folder."""
    folder = path.is_dir()
    if folder and os.name == "nt":
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems keep names by themselves and say so.
        if not folder or error.errno not in NOT_SUPPORTED:
            raise
    finally:
        os.close(descriptor)
