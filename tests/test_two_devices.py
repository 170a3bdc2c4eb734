# SPDX-License-Identifier: Apache-2.0
"""The tests that need two devices, in a process whose CPU is split in two."""

import re
import subprocess
import sys

import pytest
from conftest import REPOSITORY


@pytest.mark.parametrize(
    "marks", ["not slow", pytest.param("slow", marks=pytest.mark.slow)]
)
def test_two_devices(marks):
    # To collect all files takes longer than most of these tests.
    files = [
        str(path)
        for path in sorted((REPOSITORY / "tests").glob("test_*.py"))
        if re.search("two_(replicas|devices)", path.read_text("utf-8"))
    ]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "--two_devices", "-m", marks),
            *("-n", "0", "-q", "-p", "no:cacheprovider", *files),
        ],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout, done.stdout
