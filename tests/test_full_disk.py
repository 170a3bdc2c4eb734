# SPDX-License-Identifier: Apache-2.0
"""A disk that fills up or refuses: a sentence, and later the same bits."""

import shutil
import subprocess
import sys

import pytest
from conftest import REPOSITORY

from benchmarks import kills

# A file system of a few kilobytes, of which nobody else knows.
UNSHARE = ("unshare", "--map-root-user", "--mount")

COMMAND = """
import sys
import main
from noisy_student.models import efficientnet
efficientnet.STAGES = efficientnet.STAGES[:1]
sys.exit(main.main(["main.py", *sys.argv[1:]]))
"""

SCRIPT = """
set -u
mount -t tmpfs -o "size=$SIZE" tmpfs "$DISK"
"$@"; echo "full: code $?" >&2
mount -o remount,ro "$DISK"
"$@"; echo "read-only: code $?" >&2
mount -o "remount,rw,size=99m" "$DISK"
"$@"; echo "roomy: code $?" >&2
cp -r "$DISK/run" "$COPY"
"""


def can_mount(folder):
    if not shutil.which("unshare"):
        return False
    mount = ["mount", "-t", "tmpfs", "tmpfs", str(folder)]
    return (
        subprocess.run([*UNSHARE, *mount], capture_output=True).returncode == 0
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A workdir that had all the room it wanted."""
    folder = tmp_path_factory.mktemp("whole")
    if not can_mount(folder):
        pytest.skip("needs file systems of its own (unshare, mount)")
    kills.complete(folder / "run", [])
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("share", (0.02, 0.1, 0.4, 0.7, 0.95))
def test_a_disk_that_is_full_and_then_is_not(whole, tmp_path, share):
    # As tmpfs counts: in pages.
    size = sum(
        -(-path.stat().st_size // 4096) * 4096
        for path in whole.rglob("*")
        if path.is_file()
    )
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    disk.mkdir()
    done = subprocess.run(
        [
            *UNSHARE,
            *("sh", "-c", SCRIPT, "sh", sys.executable, "-c", COMMAND),
            *kills.FLAGS,
            f"--workdir={disk / 'run'}",
        ],
        env={
            "PATH": "/usr/bin:/bin:/usr/sbin:/sbin",
            "PYTHONPATH": str(REPOSITORY),
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "SIZE": str(max(8192, int(share * size))),
            "DISK": str(disk),
            "COPY": str(copy),
        },
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    lines = [
        line
        for line in done.stderr.splitlines()
        if line.startswith(("error: ", "full: ", "read-only: ", "roomy: "))
    ]
    assert "Traceback" not in done.stderr, done.stderr
    full, full_code, read_only, read_only_code, roomy_code = lines
    # In the middle of something, or before it began.
    early = "make room" in full and "make room" in read_only
    assert "No space left on device" in full or early
    assert "Read-only file system" in read_only or early
    assert full_code.endswith("code 2") and read_only_code.endswith("code 2")
    assert roomy_code.endswith("code 0")
    assert str(disk) in full and str(disk) in read_only
    different = kills.differences(whole, copy)
    # It says where the run was.
    assert [name for name in different if name != "run.flags"] == []
