# SPDX-License-Identifier: Apache-2.0
"""SIGTERM, SIGHUP and Ctrl-C: stop where nothing is lost.

A preempted machine sends SIGTERM half a minute before it goes; a terminal that
is closed sends SIGHUP. Outside of training a run may stop anywhere, because
files appear whole or not at all; in training it first saves the steps that no
checkpoint holds yet.
"""

import contextlib
import os
import signal
import stat
import threading

SIGHUP = getattr(signal, "SIGHUP", None)  # Windows has none
SIGNALS = (signal.SIGTERM, signal.SIGINT, *([SIGHUP] if SIGHUP else []))

_requested = None  # the first signal, until it is answered
_postponing = False
_installed = False


class Stopped(BaseException):
    """A signal ends this run; no error, so that no handler of errors eats it.

    Attributes:
        exit_code: 128 and the number of the signal, as shells have it.
    """

    def __init__(self, signal_number):
        is_key = signal_number == signal.SIGINT
        name = "Ctrl-C" if is_key else signal.Signals(signal_number).name
        super().__init__(name)
        self.exit_code = 128 + signal_number

    def _render_traceback_(self):
        """What a notebook shows, by IPython's convention."""
        return [f"stopped by {self}; the same cell goes on"]


@contextlib.contextmanager
def signals():
    """Raise `Stopped` on SIGTERM, SIGHUP and Ctrl-C.

    Only the main thread can handle signals: in any other one, and inside of
    another `signals`, this does nothing.
    """
    global _installed, _requested
    if _installed or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {}
    _installed = True
    try:
        for number in SIGNALS:
            handler = signal.getsignal(number)
            if number == SIGHUP and handler is signal.SIG_IGN:
                continue  # started with `nohup`
            before[number] = handler
            signal.signal(number, _answer)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _installed = False
        _requested = None


@contextlib.contextmanager
def postponed():
    """Only note the first signal, and answer it at the end at the latest.

    A second one does not wait. Also where nobody else handles signals, as in
    a notebook.
    """
    global _postponing, _requested
    with signals():
        _postponing = True
        try:
            yield
        except BaseException:
            # Whatever ends it is the answer.
            _postponing, _requested = False, None
            raise
        _postponing = False
        check()


def requested():
    """The signal that was noted, or None."""
    return _requested


def check():
    """Raise `Stopped` if a signal was noted."""
    global _requested
    number, _requested = _requested, None
    if number is not None:
        raise Stopped(number)


def _answer(signal_number, _):
    global _requested
    if signal_number == SIGHUP:
        _leave_terminal()
    if not _postponing or _requested is not None:
        _requested = None
        raise Stopped(signal_number)
    _requested = signal_number


def _leave_terminal():
    """Write to nowhere what was meant for a terminal that is gone.

    Otherwise the next line that is printed fails, and with it the run, before
    it has saved anything.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):  # it was closed
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                os.dup2(nowhere, descriptor)
    os.close(nowhere)
