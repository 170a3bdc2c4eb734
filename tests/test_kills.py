# SPDX-License-Identifier: Apache-2.0
"""A run that is killed at any moment ends with the same bits."""

import json
import random
import signal

import pytest

from benchmarks import kills
from noisy_student.reporting import event_files

pytest.importorskip("fcntl")  # and what else these need of Linux


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A workdir that nobody disturbed, and its number of dangerous moments."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    return workdir, kills.complete(workdir, [])


@pytest.mark.slow
def test_killed_while_it_writes(whole, tmp_path):
    expected, writes = whole
    # Spread over the run: checkpoints, models, labels, selection, results.
    moments = [writes * part // 5 + 1 for part in range(5)]
    workdir = tmp_path / "run"
    done = 0
    for moment in moments:
        code, _ = kills.start(workdir, [], at_write=max(1, moment - done))
        assert code == -9, "it should have been killed"
        done = moment
    code, _ = kills.start(workdir, [])
    assert code == 0
    assert not kills.differences(expected, workdir)
    # TensorBoard is told what the metrics say, and nothing twice.
    for folder in sorted(workdir.glob("iteration_*")):
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        steps = [json.loads(line)["step"] for line in lines]
        assert steps == [1, 2, 3, 4, 5, 6]
        for kind, expected_steps in (("curves", steps), ("evaluation", [6])):
            events = [
                event
                for path in event_files.paths(folder / "tensorboard", kind)
                for event in event_files.read(path)
            ]
            found = [e.step for e in events if e.HasField("summary")]
            assert found == expected_steps, folder


@pytest.mark.slow
def test_stopped_while_it_writes(whole, tmp_path):
    expected, writes = whole
    workdir = tmp_path / "run"
    done = 0
    for moment in range(1, writes, writes // 20):
        moment = max(1, moment - done)
        code, last = kills.start(
            workdir, [], at_write=moment, sends=signal.SIGTERM
        )
        if code == 0:
            break  # what a stop repeats was counted as done
        assert code == 128 + signal.SIGTERM
        assert last <= moment + 5, "at most a checkpoint is written after it"
        done += last
    code, _ = kills.start(workdir, [])
    assert code == 0
    assert not kills.differences(expected, workdir)


@pytest.mark.slow
@pytest.mark.parametrize("devices", (1, 2))
def test_killed_at_random(tmp_path, devices):
    flags = [f"--cpu_devices={devices}"]
    flags += ["--distribution=mirrored"] if devices > 1 else []
    writes = kills.complete(tmp_path / "whole", flags)
    rng = random.Random(devices)
    killed = kills.survive(tmp_path / "killed", flags, rng, 20, writes)
    assert killed
    assert not kills.differences(tmp_path / "whole", tmp_path / "killed")
