# SPDX-License-Identifier: Apache-2.0
"""A first run says what a person wants to know, and TensorFlow says nothing."""

import json
import os
import re
import subprocess
import sys

import pytest
import tensorflow as tf
from conftest import REPOSITORY
from test_event_files import points

# A small network, but TensorFlow is imported as by `python main.py`.
COMMAND = """
import sys
from noisy_student import startup
startup.import_tensorflow()
from noisy_student.models import efficientnet
efficientnet.STAGES = efficientnet.STAGES[:1]
import main
sys.exit(main.main(["main.py", *sys.argv[1:]]))
"""

SPEAK = """
import os
import sys
from noisy_student import startup
lines = sys.argv[1:]
with startup._without([*startup.EARLY, startup.NO_GPU]):
    os.write(2, "".join(line + "\\n" for line in lines).encode())
    if lines[-1] == "F0000 no AVX":
        os.abort()
os.write(2, b"after\\n")
"""


def start(command, *arguments):
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("TF_")
    }
    return subprocess.run(
        [sys.executable, "-c", command, *arguments],
        cwd=REPOSITORY,
        env={**environment, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    """Output of a run with one student, and its workdir."""
    workdir = tmp_path_factory.mktemp("runs") / "digits"
    done = start(
        COMMAND,
        "--flagfile=flags/smoke.flags",
        "--train_steps=10",
        "--batch_size=8",
        "--force",
        f"--workdir={workdir}",
    )
    assert done.returncode == 0, done.stdout
    return done.stdout, workdir


@pytest.mark.slow
def test_a_whole_run_fits_on_two_screens(first_run):
    printed, _ = first_run
    lines = printed.splitlines()
    # The digits have two students: a round more, and a row of the table.
    begin = lines.index("Label 1: 947 images")
    (end,) = (i for i, s in enumerate(lines) if s.startswith("  student 1: "))
    assert len(lines) + (end + 1 - begin) + 1 <= 60, printed
    assert lines[0].startswith("Settings: ")
    assert lines[1].startswith("Device: ")
    assert sum(line.startswith("  step 10/10") for line in lines) == 2
    # No line is rewritten, and none is TensorFlow's.
    assert re.search(r"[^\x20-\x7e\n]", printed) is None, printed
    foreign = r"[IWEF]\d{4} |WARNING|\d{4}-\d\d-\d\d |.*cuda_"
    assert not [line for line in lines if re.match(foreign, line)]


@pytest.mark.slow
@pytest.mark.parametrize("iteration", (0, 1))
def test_tensorboard_is_told_what_the_metrics_say(first_run, iteration):
    _, workdir = first_run
    folder = workdir / f"iteration_{iteration}"
    found = points(folder / "tensorboard")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows] == list(range(1, 11))
    for name in rows[0].keys() - {"step"}:
        expected = [(row["step"], pytest.approx(row[name])) for row in rows]
        assert found[name] == expected, name
    results = json.loads((workdir / "results.json").read_text())
    top1 = [r["top1"] for r in results if "top1" in r][iteration]
    assert found["top1"] == [(10, pytest.approx(top1))]
    ((step, matrix),) = found["confusion"]
    assert step == 10 and matrix.height == 480  # 48 pixels a class
    ((step, image),) = found["what the network is shown"]
    assert step == 0
    pixels = tf.io.decode_png(image.encoded_image_string).numpy()
    assert pixels.shape[:2] == (image.height, image.width)
    # The student's has rows for both kinds of images.
    assert (image.height > 400) == (iteration == 1)
    if iteration:
        ((_, confidence),) = found["confidence"]
        assert confidence.num == 947
        summary = folder / "labels" / "selection.json"
        kept = json.loads(summary.read_text())["num_kept"]
        assert found["num_kept"] == [(0, kept)]


def test_errors_pass_and_notes_do_not():
    if not os.path.exists("/bin/grep") and not os.path.exists("/usr/bin/grep"):
        pytest.skip("needs grep")
    said = [
        "WARNING: All log messages before absl::InitializeLog() is called ...",
        "I0000 00:00:1795.12   26573 cudart_stub.cc:31] Could not find cuda",
        "2026-11-22 17:31:34.15: I external/cudart_stub.cc:32] Could not find",
        "E0000 00:00:1795.12 1 cuda_platform.cc:52] failed call to cuInit: no",
        "E0000 00:00:1795.12 1 cuda_blas.cc:1] out of memory",
        "ImportError: libcudart",
    ]
    done = start(SPEAK, *said)
    assert done.stdout.splitlines() == [*said[-2:], "after"]


def test_the_last_words_of_a_process_are_heard():
    done = start(SPEAK, "F0000 no AVX")
    assert done.returncode < 0
    assert done.stdout.splitlines() == ["F0000 no AVX"]
