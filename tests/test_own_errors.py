# SPDX-License-Identifier: Apache-2.0
"""What is no damage is not called damage, and nobody is told to delete it."""

import errno

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import make_finished_run

import main
from noisy_student import files
from noisy_student.errors import UserError
from noisy_student.pseudo_labels.store import LabelStore
from noisy_student.workdir import Workdir

pytestmark = pytest.mark.usefixtures("one_block")

NO_DAMAGE = [
    PermissionError(errno.EACCES, "Permission denied"),
    FileNotFoundError(errno.ENOENT, "No such file or directory"),
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.ESTALE, "Stale file handle"),
    OSError(errno.EMFILE, "Too many open files"),
    MemoryError(),
    tf.errors.ResourceExhaustedError(None, None, "OOM when allocating"),
    UserError("a sentence of ours"),
]
DAMAGE = [OSError("truncated file"), ValueError("bad magic"), KeyError("name")]


@pytest.fixture(scope="module")
def workdir(one_block, tmp_path_factory):
    return make_finished_run(tmp_path_factory.mktemp("runs") / "run", "abc")


def named(error):
    return f"{type(error).__name__} {getattr(error, 'errno', '')}"


@pytest.mark.parametrize("error", NO_DAMAGE, ids=named)
def test_a_model_that_cannot_be_read_now(error, workdir, monkeypatch):
    def load(*arguments, **options):
        raise error

    monkeypatch.setattr(keras.saving, "load_model", load)
    with pytest.raises(type(error)) as caught:
        workdir.load_model(0)
    assert caught.value is error


@pytest.mark.parametrize("error", NO_DAMAGE, ids=named)
def test_labels_that_cannot_be_read_now(error, tmp_path, monkeypatch):
    labels = LabelStore(tmp_path, (2,), 2)
    labels.write_probs(0, np.full((2, 2), 0.5))

    def load(*arguments, **options):
        raise error

    monkeypatch.setattr(np, "load", load)
    with pytest.raises(type(error)) as caught:
        labels.confidences()
    assert caught.value is error


@pytest.mark.parametrize("error", DAMAGE, ids=named)
def test_what_is_damage(error):
    assert files.is_damage(error)


def test_a_model_with_layers_that_nobody_knows_is_whole(workdir):
    class Mine(keras.layers.Layer):
        def call(self, inputs):
            return inputs

    path = workdir.trained_model(1)
    path.parent.mkdir(exist_ok=True)
    inputs = keras.Input((4,))
    keras.Model(inputs, Mine()(inputs)).save(path)
    with pytest.raises(UserError, match="is whole, but no model of") as caught:
        workdir.load_model(1)
    assert "delete" not in str(caught.value)
    path.unlink()


def test_a_model_with_other_classes_than_its_run_is_refused(workdir):
    path = workdir.trained_model(1)
    path.parent.mkdir(exist_ok=True)
    inputs = keras.Input((4,))
    keras.Model(inputs, keras.layers.Dense(2)(inputs)).save(path)
    with pytest.raises(UserError, match="has 2 classes, but .* names 3"):
        workdir.load_model(1)
    path.unlink()


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.EACCES, "change its permissions"),
        (errno.EROFS, "change its permissions"),
        (errno.ENOSPC, "the same command goes on"),
        (errno.ENOENT, "bring it back"),
    ],
)
def test_what_the_system_refuses_is_told_with_its_way_out(
    number, says, monkeypatch, capsys
):
    def parse(argv, **options):
        raise OSError(number, "refused", "/data/x")

    monkeypatch.setattr(main.command_line, "parse", parse)
    assert main.main(["main.py"]) == 2
    message = capsys.readouterr().err
    assert "/data/x: refused" in message and says in message


def test_a_broken_installation_is_no_mistake_of_the_user(monkeypatch):
    def parse(argv, **options):
        raise FileNotFoundError(errno.ENOENT, "No such file", np.__file__)

    monkeypatch.setattr(main.command_line, "parse", parse)
    with pytest.raises(FileNotFoundError):
        main.main(["main.py"])


@pytest.mark.parametrize(
    ("path", "mode"),
    [
        ("iteration_0/model.keras", "teach"),
        ("iteration_2/model.keras", "distill"),
        ("iteration_2/finetuned.keras", "finetune"),
    ],
)
def test_a_damaged_model_names_the_mode_that_makes_it(path, mode, tmp_path):
    path = tmp_path / path
    path.parent.mkdir()
    path.write_bytes(b"no zip")
    number = int(path.parent.name[-1])
    with pytest.raises(UserError, match=f"--mode={mode} makes it again"):
        Workdir(tmp_path).load_model(number)
