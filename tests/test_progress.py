# SPDX-License-Identifier: Apache-2.0
"""What is said while one waits: true, little, and fit for where it goes."""

import io
import re

import pytest

from noisy_student.reporting import console
from noisy_student.reporting import progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that is moved by hand: its time is `clock.now`."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
    return Clock


class Terminal(io.StringIO):
    def isatty(self):
        return True


def lines_of(stream):
    return stream.getvalue().splitlines()


def test_a_file_gets_a_line_for_each_fifth(clock):
    file = io.StringIO()
    shown = progress.Progress(50, images=8, stream=file)
    shown.begin("preparing")
    for step in range(1, 51):
        clock.now += 2
        shown.update(step, settled=lambda: "labeled loss 1.5")
    shown.close()
    assert lines_of(file) == [
        "  preparing",
        "  step 10/50  4.0 images/s, 1:20 left  labeled loss 1.5",
        "  step 20/50  4.0 images/s, 1:00 left  labeled loss 1.5",
        "  step 30/50  4.0 images/s, 0:40 left  labeled loss 1.5",
        "  step 40/50  4.0 images/s, 0:20 left  labeled loss 1.5",
        "  step 50/50  4.0 images/s, 1:40 in all  labeled loss 1.5",
    ]


def test_neither_tracing_nor_an_earlier_process_counts_as_speed(clock):
    file = io.StringIO()
    shown = progress.Progress(1000, done=595, stream=file)
    clock.now += 300  # the first step is traced
    for step in range(596, 601):
        shown.update(step)
        clock.now += 0.5
    (line,) = lines_of(file)
    assert line == "  step  600/1000  2.0 images/s, 3:20 left"


def test_what_is_soon_over_leaves_nothing_in_a_file(clock):
    file = io.StringIO()
    shown = progress.Progress(100, unit="images", patience=15, stream=file)
    shown.begin("preparing")
    for _ in range(100):
        clock.now += 0.1
        shown.add(1)
    assert file.getvalue() == ""
    shown = progress.Progress(100, unit="images", patience=15, stream=file)
    for _ in range(10):
        clock.now += 10
        shown.add(10)
    assert len(lines_of(file)) == 5
    assert "images 100/100" in lines_of(file)[-1]
    # Nor is what had to be prepared for long.
    file = io.StringIO()
    shown = progress.Progress(100, unit="images", patience=15, stream=file)
    clock.now += 60
    shown.add(50)
    shown.add(50)
    assert file.getvalue() == ""


def test_a_long_silence_is_broken(clock):
    file = io.StringIO()
    shown = progress.Progress(10**6, stream=file)
    for step in range(1, 31):
        clock.now += 60
        shown.update(step)
    assert [line.split()[1] for line in lines_of(file)] == [
        "11/1000000",
        "21/1000000",
    ]
    assert "days" in lines_of(file)[0]


def test_a_terminal_gets_one_line_that_is_rewritten(clock):
    terminal = Terminal()
    shown = progress.Progress(50, images=8, stream=terminal)
    shown.begin("preparing the first step ...")
    reads = 0

    def read():
        nonlocal reads
        reads += 1
        return "labeled loss 1.5"

    for step in range(1, 51):
        clock.now += 0.1
        shown.update(step, live=read, settled=lambda: "means 2.5")
    shown.close()
    written = terminal.getvalue()
    assert "preparing the first step" in written and "left" in written
    assert "80 images/s" in written and "labeled loss 1.5" in written
    # Once a second, however often it is drawn and however fast steps are.
    assert reads <= 6
    # One line stays, and what comes after it begins at the left.
    assert written.count("\n") == 1 and written.endswith("means 2.5\n")
    assert "step 50/50" in written.splitlines()[-1].rpartition("\r")[2]


def test_a_live_line_leaves_room_for_others(clock):
    terminal = Terminal()
    shown = progress.Progress(50, stream=terminal)
    shown.begin("preparing")
    shown.close()
    shown.close()
    print("error", file=terminal)
    last = re.split(r"[\r\n]", terminal.getvalue().rstrip("\n"))[-1]
    assert last == "error"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (9, "0:09"),
        (725, "12:05"),
        (11110, "3:05:10"),
        (90000, "1 day 1:00"),
        (183900, "2 days 3:05"),
    ],
)
def test_durations(seconds, text):
    assert progress.clock(seconds) == text


def test_figures_name_what_they_are_of():
    labeled = {"labeled_loss": 0.5, "labeled_accuracy": 0.875, "loss": 2.0}
    assert console.figures_text(labeled) == "labeled loss 0.500,  88% right"
    mixed = {**labeled, "unlabeled_loss": 1.5, "unlabeled_agreement": 0.25}
    text = console.figures_text(mixed)
    assert text.endswith("pseudo-labeled loss 1.500,  25% agree")
