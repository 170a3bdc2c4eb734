# SPDX-License-Identifier: Apache-2.0
"""The tests that need two devices, in a process whose CPU is split in two."""

import subprocess
import sys

import pytest
from conftest import REPOSITORY


@pytest.mark.parametrize(
    "marks", ["not slow", pytest.param("slow", marks=pytest.mark.slow)]
)
def test_two_devices(marks):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "--two_devices", "-m", marks),
            *("-n", "0", "-q", "-p", "no:cacheprovider"),
        ],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout, done.stdout
