# SPDX-License-Identifier: Apache-2.0
"""A mistake ends with code 2 and one sentence, before anything is lost."""

import shutil

import numpy as np
import pytest
import tensorflow as tf
from conftest import REPOSITORY
from test_end_to_end import save_images

import main
from noisy_student import predicting

SMOKE = f"--flagfile={REPOSITORY / 'flags' / 'smoke.flags'}"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for role in ("labeled", "eval"):
        for name in ("cat", "dog"):
            save_images(root / role / name, (99, 99, 99), 2, 0)
    save_images(root / "unlabeled", (99, 99, 99), 3, 0)
    return root


def fail(capsys, *arguments):
    """Run a command that must be refused; returns the sentence."""
    assert main.main(["main.py", *arguments]) == 2
    captured = capsys.readouterr()
    message = captured.err.strip()
    assert message.startswith("error: "), message
    assert "\n" not in message and len(message) < 600, message
    assert "Traceback" not in captured.out + captured.err
    return message


def break_nothing(root):
    pass


def remove_labeled(root):
    shutil.rmtree(root / "labeled")


def empty_labeled(root):
    remove_labeled(root)
    (root / "labeled").mkdir()


def no_images(root):
    shutil.rmtree(root / "unlabeled")
    (root / "unlabeled").mkdir()
    (root / "unlabeled" / "readme.txt").write_text("hello")


def empty_class(root):
    (root / "labeled" / "empty class").mkdir()


def one_class(root):
    shutil.rmtree(root / "labeled" / "dog")


def other_classes(root):
    (root / "eval" / "dog").rename(root / "eval" / "wolf")


def all_broken(root):
    for path in (root / "labeled").rglob("*.*"):
        path.write_bytes(b"no image")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (remove_labeled, "labeled is missing"),
        (empty_labeled, "labeled has no sub-folders"),
        (no_images, "unlabeled holds no image"),
        (empty_class, "empty class"),
        (one_class, "only one class"),
        (other_classes, "wolf"),
        (all_broken, "can be decoded"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_folders(photos, tmp_path, capsys, damage, named):
    root = shutil.copytree(photos, tmp_path / "photos")
    damage(root)
    message = fail(
        capsys,
        SMOKE,
        "--dataset=",
        f"--labeled_dir={root / 'labeled'}",
        f"--unlabeled_dir={root / 'unlabeled'}",
        f"--eval_dir={root / 'eval'}",
        f"--workdir={tmp_path / 'run'}",
    )
    assert named in message, message
    assert not (tmp_path / "run" / "iteration_0").exists()


@pytest.mark.parametrize(
    ("mode", "command"),
    [
        ("label", "--mode=teach"),
        ("select", "--mode=teach"),
        ("distill", "--mode=teach"),
        ("evaluate", "--mode=teach"),
    ],
)
def test_phases_that_come_too_early(tmp_path, capsys, mode, command):
    workdir = tmp_path / "run"
    message = fail(capsys, SMOKE, f"--workdir={workdir}", f"--mode={mode}")
    assert command in message and str(workdir) in message, message
    assert not workdir.exists(), "a refused command left a folder behind"


def test_unlabeled_images_are_missed_before_the_teacher_is_trained(
    photos, tmp_path, capsys
):
    message = fail(
        capsys,
        SMOKE,
        "--dataset=",
        f"--labeled_dir={photos / 'labeled'}",
        f"--workdir={tmp_path / 'run'}",
    )
    assert "--unlabeled_dir" in message
    assert not (tmp_path / "run").exists()


def test_no_evaluation_images(photos, tmp_path, capsys):
    message = fail(
        capsys,
        SMOKE,
        "--dataset=",
        f"--labeled_dir={photos / 'labeled'}",
        f"--workdir={tmp_path / 'run'}",
        "--mode=evaluate",
    )
    assert "--eval_dir" in message


def test_tfds_names_splits_and_folders(tmp_path, capsys):
    run_in = f"--workdir={tmp_path / 'run'}"
    where = f"--data_dir={tmp_path}"
    message = fail(capsys, SMOKE, "--dataset=no_such_set", where, run_in)
    assert "no_such_set" in message
    message = fail(capsys, SMOKE, "--dataset=mnist", where, run_in)
    assert "not prepared" in message and str(tmp_path / "mnist") in message
    message = fail(capsys, SMOKE, "--eval_split=train", run_in)
    assert "validation" in message


@pytest.mark.two_devices
@pytest.mark.parametrize(
    ("flag", "named"),
    [
        ("--batch_size=9", "labeled batch of 9"),
        ("--unlabeled_ratio=1.05", "unlabeled batch of 21"),
        ("--eval_batch_size=3", "evaluation batch of 3"),
    ],
)
def test_batches_that_two_devices_cannot_share(tmp_path, capsys, flag, named):
    message = fail(
        capsys,
        SMOKE,
        f"--workdir={tmp_path / 'run'}",
        "--distribution=mirrored",
        "--cpu_devices=2",
        flag,
    )
    assert named in message and "2 devices" in message
    assert not (tmp_path / "run").exists()


def test_devices_that_are_not_there(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("TPU_NAME", raising=False)
    message = fail(
        capsys, SMOKE, f"--workdir={tmp_path / 'run'}", "--distribution=tpu"
    )
    assert "TPU" in message


def test_labels_that_count_from_one_are_noticed_while_they_are_read(
    tmp_path, capsys
):
    # With --num_classes nothing is scanned first, as on ImageNet.
    path = tmp_path / "train.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for label in (1, 2):
            image = tf.io.encode_png(np.zeros((8, 8, 3), np.uint8)).numpy()
            features = {
                "image/encoded": tf.train.Feature(
                    bytes_list=tf.train.BytesList(value=[image])
                ),
                "image/class/label": tf.train.Feature(
                    int64_list=tf.train.Int64List(value=[label])
                ),
            }
            example = tf.train.Example(
                features=tf.train.Features(feature=features)
            )
            writer.write(example.SerializeToString())
    message = fail(
        capsys,
        SMOKE,
        "--dataset=",
        f"--labeled_tfrecords={path}",
        "--num_classes=2",
        f"--workdir={tmp_path / 'run'}",
        "--mode=teach",
    )
    assert "--tfrecord_first_label" in message


@pytest.mark.slow
def test_files_that_vanish_or_break_on_the_way_are_named(
    photos, tmp_path, capsys, one_block
):
    root = shutil.copytree(photos, tmp_path / "photos")
    arguments = (
        SMOKE,
        "--dataset=",
        f"--labeled_dir={root / 'labeled'}",
        f"--unlabeled_dir={root / 'unlabeled'}",
        f"--workdir={tmp_path / 'run'}",
        "--batch_size=2",
        "--train_steps=2",
    )
    assert main.main(["main.py", *arguments, "--mode=teach"]) == 0
    gone = next((root / "unlabeled").iterdir())
    # The listing is made before; what it names goes before it is read.
    with pytest.MonkeyPatch.context() as patched:
        label = predicting.labels_of

        def labels_of(*arguments):
            gone.rename(tmp_path / "away")
            return label(*arguments)

        patched.setattr(predicting, "labels_of", labels_of)
        message = fail(capsys, *arguments, "--mode=label")
    assert f"{gone.name} has vanished" in message
    labels = tmp_path / "run" / "iteration_1" / "labels"
    assert not list(labels.glob("probs-*"))
    (tmp_path / "away").rename(gone)
    assert main.main(["main.py", *arguments, "--mode=label"]) == 0
