# SPDX-License-Identifier: Apache-2.0
"""Mutated files are read or refused; nothing crashes, hangs or grows."""

import pathlib
import re
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).with_name("fuzzing.py")


@pytest.mark.parametrize(
    ("what", "count"),
    [
        ("images", 60),
        ("files", 60),
        pytest.param("images", 10_000, marks=pytest.mark.slow),
        pytest.param("files", 10_000, marks=pytest.mark.slow),
    ],
)
def test_mutated_bytes_are_read_or_refused(what, count):
    # In a process of its own: a crash of a decoder ends it with a signal.
    done = subprocess.run(
        [sys.executable, str(SCRIPT), what, f"--count={count}"],
        capture_output=True,
        text=True,
        timeout=60 + count,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    report = done.stdout.splitlines()[-1]
    answers = re.search(r"(\d+) read, (\d+) refused", report)
    # Both happen, or the mutations are not what they should be.
    assert min(map(int, answers.groups())) > count / 50, report
    assert float(re.search(r"peak ([\d.]+) GB", report).group(1)) < 4, report
