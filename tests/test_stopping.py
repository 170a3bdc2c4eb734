# SPDX-License-Identifier: Apache-2.0
"""Signals, full disks and a second process: nothing is lost."""

import errno
import os
import pathlib
import shutil
import signal
import stat
import subprocess
import sys
import threading

import pytest

from noisy_student import files
from noisy_student import stopping
from noisy_student.errors import UserError
from noisy_student.workdir import Workdir


@pytest.fixture(autouse=True)
def in_a_terminal():
    """Signals as a shell leaves them, also where the tests run under nohup."""
    handlers = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    before = {n: signal.signal(n, handlers[n]) for n in handlers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("name", ("SIGTERM", "SIGHUP"))
@pytest.mark.parametrize(
    "before",
    # The second is what nohup and background jobs of a shell begin with.
    [signal.default_int_handler, signal.SIG_IGN],
)
def test_a_signal_ends_what_is_no_training(name, before):
    at_start = signal.signal(signal.SIGINT, before)
    number = getattr(signal, name)
    with pytest.raises(stopping.Stopped, match=name) as raised:
        with stopping.signals():
            os.kill(os.getpid(), number)
    assert raised.value.exit_code == 128 + number
    assert signal.signal(signal.SIGINT, at_start) is before


def test_a_step_of_training_is_finished_first():
    with stopping.signals():
        with stopping.postponed():
            assert stopping.requested() is None
            os.kill(os.getpid(), signal.SIGINT)
            assert stopping.requested() == signal.SIGINT
            # Whoever asks twice does not want to wait.
            with pytest.raises(stopping.Stopped) as raised:
                os.kill(os.getpid(), signal.SIGINT)
        assert raised.value.exit_code == 130


def test_a_signal_that_nobody_answered_is_answered_at_the_end():
    with stopping.signals():
        with pytest.raises(stopping.Stopped), stopping.postponed():
            os.kill(os.getpid(), signal.SIGTERM)
        # It was answered: what follows is not stopped by it.
        with stopping.postponed():
            assert stopping.requested() is None
        with pytest.raises(stopping.Stopped):
            os.kill(os.getpid(), signal.SIGTERM)
        with stopping.postponed():
            assert stopping.requested() is None


def test_an_error_is_not_replaced_by_a_signal():
    with pytest.raises(UserError), stopping.postponed():
        os.kill(os.getpid(), signal.SIGTERM)
        raise UserError("the loss is nan")
    assert stopping.requested() is None


def test_a_run_under_nohup_outlives_its_terminal():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping.signals(), stopping.postponed():
            os.kill(os.getpid(), signal.SIGHUP)
            assert stopping.requested() is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_only_the_main_thread_can_handle_signals():
    before = signal.getsignal(signal.SIGTERM)
    done = []

    def work():
        with stopping.signals(), stopping.postponed():
            done.append(signal.getsignal(signal.SIGTERM) is before)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]


IN_A_TERMINAL = """
import fcntl, pathlib, sys, termios, time
from noisy_student import stopping

fcntl.ioctl(1, termios.TIOCSCTTY, 0)
try:
    with stopping.signals(), stopping.postponed():
        print("training", flush=True)
        while stopping.requested() is None:
            time.sleep(0.01)
        print("saving", flush=True)
        pathlib.Path(sys.argv[1]).write_text("saved")
except stopping.Stopped as stopped:
    print("stopped", file=sys.stderr, flush=True)
    sys.exit(stopped.exit_code)
"""


def test_a_run_saves_when_its_terminal_is_closed(tmp_path):
    ours, its = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", IN_A_TERMINAL, str(tmp_path / "checkpoint")],
        stdin=its,
        stdout=its,
        stderr=its,
        start_new_session=True,
    )
    os.close(its)
    assert os.read(ours, 8) == b"training"
    os.close(ours)  # the window is closed, and what is printed fails
    assert process.wait(30) == 128 + signal.SIGHUP
    assert (tmp_path / "checkpoint").read_text() == "saved"


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "labels" / "probs.npy"
    files.write_atomically(path, lambda file: file.write(b"old"))

    def fill_the_disk(file):
        file.write(b"half of the n")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError) as raised:
        files.write_atomically(path, fill_the_disk)
    # `main.py` names it in its sentence.
    assert raised.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["probs.npy"]


@pytest.mark.parametrize("code", (errno.EINVAL, errno.EIO))
def test_a_file_system_that_flushes_no_folders_will_do(
    tmp_path, monkeypatch, code
):
    flush = os.fsync

    def flush_files(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", flush_files)
    path = tmp_path / "file"
    if code == errno.EINVAL:
        files.write_text(path, "new")
        assert path.read_text() == "new"
    else:  # a broken disk is another matter
        with pytest.raises(OSError):
            files.write_text(path, "new")


OWNER = """
import sys, time
from noisy_student.files import owned
with owned(sys.argv[1]):
    print("mine", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_sent_away_and_the_first_may_die(tmp_path):
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout.readline() == "mine\n"
    with (
        pytest.raises(UserError, match=f"process {owner.pid} on .* --workdir"),
        files.owned(tmp_path),
    ):
        pass
    owner.kill()
    owner.wait()
    with files.owned(tmp_path):
        pass


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EIO])
def test_a_file_system_without_locks_will_do(tmp_path, monkeypatch, code):
    def flock(descriptor, operation):
        raise OSError(code, os.strerror(code))

    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", flock)
    if code == errno.EIO:  # a broken disk is another matter
        with pytest.raises(OSError), files.owned(tmp_path):
            pass
        return
    with files.owned(tmp_path):
        files.write_text(tmp_path / "file", "new")


def test_a_workdir_that_nothing_came_of_goes_again(tmp_path):
    workdir = Workdir(tmp_path / "runs" / "new")
    with pytest.raises(UserError), workdir.owned():
        raise UserError("no teacher")
    assert not workdir.path.exists()
    with workdir.owned():
        # Whoever comes second is refused, and takes nothing away.
        second = Workdir(workdir.path)
        with pytest.raises(UserError, match="works in"), second.owned():
            pass
        workdir.write_flags("--seed=1\n")
    assert (workdir.path / "run.flags").exists()


def test_an_open_lock_that_cannot_be_deleted_hides_no_error(
    tmp_path, monkeypatch
):
    def unlink(path, missing_ok=False):  # as on Windows
        raise PermissionError(errno.EACCES, "in use", str(path))

    monkeypatch.setattr(pathlib.Path, "unlink", unlink)
    with pytest.raises(UserError, match="no teacher"):
        with Workdir(tmp_path / "new").owned():
            raise UserError("no teacher")


def test_a_workdir_that_vanishes_is_not_made_anew(tmp_path):
    workdir = Workdir(tmp_path / "run")
    with pytest.raises(UserError, match="has vanished"), workdir.owned():
        workdir.write_flags("--seed=1\n")
        shutil.rmtree(workdir.path)
        workdir.write_flags("--seed=2\n")
    assert not workdir.path.exists()


def test_a_workdir_that_another_takes_the_place_of_is_left_alone(tmp_path):
    # As where a drive is unmounted, and its mount point is an empty folder.
    workdir = Workdir(tmp_path / "run")
    with pytest.raises(UserError, match="has vanished"), workdir.owned():
        workdir.write_flags("--seed=1\n")
        workdir.path.rename(tmp_path / "away")
        workdir.path.mkdir()
        workdir.write_flags("--seed=2\n")
    assert not any(workdir.path.iterdir())
    assert (tmp_path / "away" / "run.flags").read_text() == "--seed=1\n"
