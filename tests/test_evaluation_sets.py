# SPDX-License-Identifier: Apache-2.0
"""What a model is measured on: its classes, or some of them, by name."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from conftest import make_finished_run
from PIL import Image

import main
from noisy_student import command_line
from noisy_student import predicting
from noisy_student.config import Config
from noisy_student.evaluation import predictions
from noisy_student.run import open_run

pytestmark = pytest.mark.usefixtures("one_block", "no_report")

CLASSES = ("cat", "dog", "emu")


def save_images(folder, count, seed):
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3))
    for number, image in enumerate(pixels.astype(np.uint8)):
        Image.fromarray(image).save(folder / f"{number}.png")


@pytest.fixture
def finished(tmp_path):
    """A run whose teacher is made up, with folders of random images."""
    for number, name in enumerate(CLASSES):
        save_images(tmp_path / "labeled" / name, 2, number)
        save_images(tmp_path / "eval" / name, 12, 10 + number)
    folders = {f"{k}_dir": str(tmp_path / k) for k in ("labeled", "eval")}
    settings = {"unlabeled_dir": None, "eval_batch_size": 32}
    return make_finished_run(tmp_path / "run", CLASSES, **folders, **settings)


def evaluate(finished, folder):
    workdir = f"--workdir={finished.path}"
    mode = "--mode=evaluate"
    return main.main(["main.py", mode, workdir, f"--eval_dir={folder}"])


def test_a_part_of_the_classes_is_measured_exactly(finished, tmp_path, capsys):
    assert evaluate(finished, tmp_path / "eval") == 0
    assert "no evaluation images" not in capsys.readouterr().out
    (path,) = (finished.path / "iteration_0").glob("predictions-*.npz")
    answers = predictions.load(path)

    some = tmp_path / "some"
    shutil.copytree(tmp_path / "eval" / "emu", some / "emu")
    (some / "dog").mkdir()
    assert evaluate(finished, some) == 0
    text = capsys.readouterr().out
    assert text.count("no evaluation images of 2 classes cat, dog") == 1
    # The only class of the set is the third of the model.
    record = json.loads((finished.path / "results.json").read_text())[-1]
    assert (record["phase"], record["num_examples"]) == ("evaluate", 12)
    assert record["top1"] == answers.right[answers.label == 2].mean()
    (path,) = {*path.parent.glob("predictions-*.npz")} - {path}
    np.testing.assert_array_equal(predictions.load(path).label, 2)


def test_classes_that_the_model_does_not_have_are_named(
    finished, tmp_path, capsys
):
    (tmp_path / "eval" / "cat").rename(tmp_path / "eval" / "cow")
    assert evaluate(finished, tmp_path / "eval") == 2
    error = capsys.readouterr().err
    assert "images of cow, but the model's classes are cat, dog, emu" in error
    assert not (finished.path / "results.json").exists()


def test_a_class_whose_images_are_all_broken_is_named(
    finished, tmp_path, capsys
):
    for path in (tmp_path / "eval" / "dog").glob("*.png"):
        path.write_bytes(b"no image")
    assert evaluate(finished, tmp_path / "eval") == 0
    assert "no evaluation images of class dog" in capsys.readouterr().out
    for path in (tmp_path / "eval").glob("*/*.png"):
        path.write_bytes(b"no image")
    settings = command_line.recorded_settings(finished.path)
    accuracy = predicting.accuracy_of(open_run(Config(**settings)), 0)
    assert accuracy["top1"] is None
    assert "so no accuracy is measured" in capsys.readouterr().out


def test_every_phase_opens_the_same_evaluation_images(finished, tmp_path):
    """Of those that lack a class, classes are numbered as the model's."""
    shutil.copytree(tmp_path / "eval", tmp_path / "unlabeled")
    shutil.rmtree(tmp_path / "eval" / "cat")
    recorded = command_line.recorded_settings(finished.path)
    recorded |= {"unlabeled_dir": str(tmp_path / "unlabeled")}
    config = Config(**recorded | {"students": "b0"})
    finished.write_flags(command_line.write_run_flags(config, "run.flags"))
    fingerprints = {
        open_run(dataclasses.replace(config, mode=mode)).evaluation.fingerprint
        for mode in ("teach", "label", "distill")
    }
    assert len(fingerprints) == 1
