# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all, and folders with one owner."""

import contextlib
import errno
import json
import os
import pathlib
import platform

from noisy_student.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = ".lock"  # in a folder that has an owner
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


def write_text(path, text, mark=""):
    """Write a text as UTF-8, atomically; `mark` as in `replacing`."""
    write_atomically(path, lambda file: file.write(text.encode()), mark)


def write_json(path, value):
    """Write a value as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


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
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield


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
