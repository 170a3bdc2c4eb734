# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all, and folders with one owner."""

import contextlib
import errno
import json
import os
import pathlib
import platform
import shutil

from noisy_student.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = ".lock"  # in a folder that has an owner
# What a spreadsheet takes for the beginning of a formula.
FORMULA = ("=", "+", "-", "@", "\t", "\r")
# Folders that this process owns, and the descriptors of their locks.
_owned = {}
# What keeps a file from being read, whatever is in it.
UNREADABLE = (FileNotFoundError, PermissionError, MemoryError)
# How file systems say that they have no locks, or flush no folders.
NOT_SUPPORTED = (errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


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
            with all that is in it, once the new one is filled.
    """
    path = pathlib.Path(path)
    _check_there(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (
        path.with_name(f".{path.name}.{ending}") for ending in ("tmp", "old")
    )
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
    with open(path, "a+") as file:
        try:
            _lock(file)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise UserError(
                f"{owner} works in {directory}: wait until it has ended, or "
                "use another --workdir"
            ) from None
        with contextlib.suppress(OSError):  # a full disk: the lock will do
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}\n")
            file.flush()
        _owned[pathlib.Path(directory).absolute()] = file.fileno()
        try:
            yield
        finally:
            del _owned[pathlib.Path(directory).absolute()]


def _check_there(path):
    """Refuse to write into an owned folder that is no longer the same.

    Where a drive was unmounted or a folder deleted, the rest of a run would
    grow in its place, without what came before.
    """
    for directory, descriptor in _owned.items():
        if not path.absolute().is_relative_to(directory):
            continue
        try:
            lock = os.stat(directory / LOCK)
        except OSError:
            lock = None
        if lock is None or not os.path.samestat(lock, os.fstat(descriptor)):
            raise UserError(
                f"{directory} has vanished while a run worked in it: bring it "
                "back, and the same command goes on"
            )


def _lock(file):
    """Lock an open file, or raise `BlockingIOError`."""
    if fcntl is None:
        return  # Windows: two processes are on their own
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        # Some network file systems have no locks; the work can do without.
        if error.errno not in NOT_SUPPORTED:
            raise


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
