# SPDX-License-Identifier: Apache-2.0
"""SIGTERM and Ctrl-C: leave where nothing is lost.

A machine that is taken away sends SIGTERM first, half a minute before. Outside
of training a run may stop anywhere, because files appear whole or not at all;
in training it saves a checkpoint after the step it is at.
"""

import contextlib
import signal

SIGNALS = (signal.SIGTERM, signal.SIGINT)

_requested = None  # the signal that waits to be answered
_postponing = False


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
    """Raise `Stopped` on SIGTERM and Ctrl-C. For the main thread alone."""
    global _requested
    before = {number: signal.signal(number, _answer) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _requested = None


@contextlib.contextmanager
def postponed():
    """Only note the first signal; a second one does not wait."""
    global _postponing
    _postponing = True
    try:
        yield
    finally:
        _postponing = False


def requested():
    """The signal that was noted, or None."""
    return _requested


def _answer(signal_number, _):
    global _requested
    if not _postponing or _requested is not None:
        raise Stopped(signal_number)
    _requested = signal_number
