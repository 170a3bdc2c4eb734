# SPDX-License-Identifier: Apache-2.0
"""What the files of a workdir say stays true, whatever is done later."""

import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest
from test_assembly import SMALL
from test_end_to_end import save_images

from noisy_student import phases
from noisy_student import prerequisites
from noisy_student import skipping
from noisy_student.config import Config
from noisy_student.errors import UserError
from noisy_student.run import open_run


@pytest.fixture
def open_at(tmp_path):
    """Opens the run of a few images, as a notebook does."""
    for number, name in enumerate(("cats", "dogs")):
        for part in ("labeled", "unlabeled", "eval"):
            folder = tmp_path / part / name
            save_images(folder, (200 * number,) * 3, 3, number)

    def open_with(**settings):
        folders = {
            f"{part}_dir": str(tmp_path / part)
            for part in ("labeled", "unlabeled", "eval")
        }
        where = {"workdir": str(tmp_path / "run")}
        return open_run(Config(**(SMALL | folders | where | settings)))

    return open_with


def finish(run, iteration):
    """A model as training leaves it, which nobody opens."""
    path = run.workdir.trained_model(iteration)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(f"model {iteration}".encode())
    record = {
        "phase": "distill" if iteration else "teach",
        "iteration": iteration,
        "variant": "b0",
        "top1": 1.0,
        "top5": 1.0,
        "num_examples": 6,
        "image_size": 8,
        "steps": 3,
    }
    run.workdir.append_result(record, 1.0)


def label(run):
    """Labels of student 1."""
    labels = run.label_store(1)
    prerequisites.check_manifest(run, 1)
    for shard, size in enumerate(run.unlabeled.shard_sizes):
        probs = np.tile(np.float32([0.9, 0.1]), (size, 1))
        probs[::2] = probs[::2, ::-1]
        labels.write_probs(shard, probs)
    return labels


@pytest.fixture
def begun(open_at):
    """A run whose teacher is trained."""
    run = open_at()
    run.begin()
    finish(run, 0)
    return run


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"seed": 4}, "--seed=0, not --seed=4"),
        ({"batch_size": 2}, "--batch_size=4, not --batch_size=2"),
        ({"students": "b1"}, "--students=b0, not --students=b1"),
        ({"temperature": 2.0}, "--temperature=1.0, not --temperature=2.0"),
        ({"unlabeled_dir": None}, "not no --unlabeled_dir"),
        ({"unlabeled_dir": "{}/others"}, "--unlabeled_dir=.*unlabeled, not"),
        ({"labeled_dir": "{}/others"}, "--labeled_dir=.*labeled, not"),
        ({"mode": "select", "seed": 4}, "--seed=0, not --seed=4"),
    ],
)
def test_python_too_keeps_to_the_recorded_settings(
    begun, open_at, tmp_path, settings, flag
):
    before = (tmp_path / "run" / "run.flags").read_text()
    shutil.copytree(tmp_path / "labeled", tmp_path / "others")
    (tmp_path / "others" / "cats" / "a picture 00.jpg").unlink()
    (tmp_path / "eval" / "cats" / "a picture 00.jpg").unlink()
    settings = {
        name: value.format(tmp_path) if isinstance(value, str) else value
        for name, value in settings.items()
    }
    with pytest.raises(UserError, match=flag):
        open_at(**settings).begin()
    assert (tmp_path / "run" / "run.flags").read_text() == before


def test_evaluating_elsewhere_is_not_what_training_is_measured_on(
    begun, open_at, tmp_path
):
    before = (tmp_path / "run" / "run.flags").read_text()
    shutil.copytree(tmp_path / "eval", tmp_path / "others")
    run = open_at(mode="evaluate", eval_dir=str(tmp_path / "others"))
    run.begin()
    assert (tmp_path / "run" / "run.flags").read_text() == before
    # Its mode has opened no labeled images.
    with pytest.raises(UserError, match="'evaluate' reads no labeled images"):
        phases.finetune(run)


@pytest.mark.parametrize("mode", ["predict", "plan"])
def test_a_mode_without_a_run_is_told(open_at, mode):
    with pytest.raises(UserError, match="phases.run_mode"):
        open_at(mode=mode)


def test_what_may_change_is_recorded_from_python_too(begun, open_at, tmp_path):
    open_at(students="b0,b0", distribution="cpu").begin()
    open_at(mode="select", students="b0,b0", confidence_threshold=0.5).begin()
    text = (tmp_path / "run" / "run.flags").read_text()
    assert "--students=b0,b0\n" in text
    assert "--confidence_threshold=0.5\n" in text


def test_a_finished_student_stays_finished(begun, open_at, tmp_path, capsys):
    """Whether images were added since or its teacher was finetuned."""
    label(begun)
    phases.select(begun, 1)
    finish(begun, 1)
    before = begun.workdir.data()
    phases.iterate(open_at())
    assert "Student 1 is trained already" in capsys.readouterr().out
    save_images(tmp_path / "unlabeled" / "birds", (9, 9, 9), 2, 5)
    phases.iterate(open_at())
    out = capsys.readouterr().out
    assert "6 images of" in out and "now 8 images" in out
    assert "add a student to --students" in out and "delete" not in out
    begun.workdir.finetuned_model(0).write_bytes(b"finetuned")
    phases.iterate(open_at())
    out = capsys.readouterr().out
    assert "another" in out and "delete" not in out
    with pytest.raises(UserError, match="source .* add a student") as error:
        phases.label(open_at(), 1)
    assert "delete" not in str(error.value)
    # Nothing was done, so what is recorded is as before.
    assert begun.workdir.data() == before


def test_labels_half_done_say_the_way_out(begun, open_at, tmp_path):
    label(begun)  # and nothing is selected yet
    save_images(tmp_path / "unlabeled" / "birds", (9, 9, 9), 2, 5)
    run = open_at()
    way_out = "6 images .*, now 8 images .*: delete .*labels to label again, or"
    with pytest.raises(UserError, match=way_out):
        phases.label(run, 1)
    # Of a student that has begun nothing is to be deleted.
    (run.workdir.iteration(1) / "checkpoints").mkdir()
    with pytest.raises(UserError, match="bring that back, or") as error:
        phases.label(run, 1)
    assert "delete" not in str(error.value)


def test_a_run_opened_before_another_selection_is_opened_again(
    begun, open_at, tmp_path
):
    label(begun)
    phases.select(begun)
    phases.select(open_at(mode="select", confidence_threshold=0.5))
    before = (tmp_path / "run" / "run.flags").read_text()
    with pytest.raises(UserError, match="threshold=0.5 after this run"):
        begun.begin()
    assert (tmp_path / "run" / "run.flags").read_text() == before


def test_the_images_of_a_run_stay_its_images(begun, open_at, tmp_path, capsys):
    recorded = begun.workdir.data()
    save_images(tmp_path / "eval" / "cats" / "more", (9, 9, 9), 2, 5)
    open_at().begin()
    assert "warning: the evaluation images in" in capsys.readouterr().out
    save_images(tmp_path / "labeled" / "cats" / "more", (9, 9, 9), 2, 5)
    with pytest.raises(UserError, match=r"labeled images .*\(6 then, 8 now\)"):
        open_at().begin()
    # Before a model is there, they may change.
    shutil.rmtree(begun.workdir.iteration(0))
    open_at().begin()
    assert begun.workdir.data()["labeled"]["num_images"] == 8
    assert recorded["labeled"]["num_images"] == 6


def test_other_evaluation_images_in_the_same_place_are_told(
    begun, open_at, tmp_path, capsys
):
    (tmp_path / "eval" / "cats" / "a picture 00.jpg").unlink()
    with pytest.raises(UserError, match=r"model\.keras"):  # it is made up
        phases.evaluate(open_at(mode="evaluate"))
    assert "warning: the evaluation images in" in capsys.readouterr().out


def test_a_role_that_is_not_opened_is_not_forgotten(begun):
    dataclasses.replace(begun, unlabeled=None).begin()
    assert begun.workdir.data()["unlabeled"]["num_images"] == 6


def test_images_that_were_mended_are_no_longer_listed(begun, open_at, tmp_path):
    broken = tmp_path / "unlabeled" / "cats" / "broken.jpg"
    broken.write_bytes(b"no image")
    run = open_at()
    row = next(
        (shard, row)
        for shard, size in enumerate(run.unlabeled.shard_sizes)
        for row in range(size)
        if "broken" in run.unlabeled.example_name(shard, row)
    )
    skipping.record(run, "unlabeled", [row])
    broken.unlink()
    skipping.record(open_at(), "unlabeled", [])
    with open(tmp_path / "run" / "skipped.csv", newline="") as file:
        assert list(csv.reader(file)) == [["images", "file", "reason"]]


def test_a_finetuned_model_is_tied_to_what_it_was_made_of(begun, open_at):
    run = open_at(mode="finetune")
    prerequisites.begin_finetuning(run, 0)
    run.workdir.finetuned_model(0).write_bytes(b"finetuned")
    record = {**run.workdir.find_result("teach", 0), "phase": "finetune"}
    run.workdir.append_result(record, 1.0)
    phases.finetune(run, 0)  # is done
    settings = run.workdir.finetuning(0) / "settings.json"
    before = json.loads(settings.read_text())
    run.workdir.trained_model(0).unlink()
    phases.finetune(run, 0)  # to save space, say
    run.workdir.trained_model(0).write_bytes(b"trained anew")
    with pytest.raises(UserError, match="another model than the present"):
        phases.finetune(run, 0)
    with pytest.raises(UserError, match="--base_lr=0.016, not 0.5"):
        run.workdir.trained_model(0).write_bytes(b"model 0")
        phases.finetune(open_at(mode="finetune", base_lr=0.5), 0)
    assert json.loads(settings.read_text()) == before
