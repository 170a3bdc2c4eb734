# SPDX-License-Identifier: Apache-2.0
"""What is wrong is told before an image is decoded, and can be corrected."""

import numpy as np
import pytest
import tensorflow as tf
from test_end_to_end import save_images
from test_modes import flags
from test_modes import run

from noisy_student import command_line
from noisy_student.errors import UserError
from noisy_student.models import efficientnet
from noisy_student.run import open_run
from noisy_student.workdir import Workdir

pytestmark = pytest.mark.usefixtures("one_block", "no_report")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for number, name in enumerate(("cat", "dog", "owl")):
        color = np.eye(3)[number] * 200
        for role in ("labeled", "eval", "unlabeled"):
            save_images(root / role / name, color, 2, number)
    return root


def save_weights(path, num_classes=3, width=0.1):
    network = efficientnet.build_model(
        "b0", num_classes, image_size=16, width=width, depth=0.1,
        small_images=True,
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    network.save(path)
    return path


def refused(capsys, workdir, *arguments):
    """The sentence; nothing was decoded, and other settings are welcome."""
    assert run(*arguments) == 2
    assert not list(workdir.glob("skipped_*")), "images were decoded before"
    message = capsys.readouterr().err
    assert message.count("\n") == 1, message
    command_line.parse(["main.py", f"--workdir={workdir}", "--seed=7"])
    return message


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (("--init_from=gone.keras",), "gone.keras does not exist"),
        (("--init_from=https://x.org/b0.keras",), "download it"),
        (("--label_top_k=4",), "there are 3 classes"),
        (("--student_init_from=gone.h5",), "gone.h5 does not exist"),
        (("--final_base_lr=1",), "--final_base_lr"),
        (("--final_base_lr=0.001", "--lr_decay_factor=1"), "--lr_decay_factor"),
        (("--finetune", "--finetune_epochs=99"), "or more --train_steps"),
        (("--finetune", "--frozen_blocks=99"), "--frozen_blocks=99"),
        (("--selection_from=nowhere",), "--selection_from=nowhere"),
        (("--num_classes=7",), "has 3 classes"),
        (
            ("--crop_padding=12", "--finetune_noise=crop", "--image_size=8"),
            "--crop_padding=12",
        ),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else "",
)
def test_settings_that_cannot_work(given, named, images, tmp_path, capsys):
    workdir = tmp_path / "run"
    message = refused(capsys, workdir, *flags(images, workdir), *given)
    assert named in message
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("made", "given", "named"),
    [
        ({"width": 0.4}, ("--init_from={}",), "does not fit the model"),
        (
            {"num_classes": 5},
            ("--init_from={}", "--notrain_teacher"),
            "5 classes",
        ),
        ({"width": 0.4}, ("--student_init_from={}",), "does not fit the model"),
    ],
)
def test_weights_that_do_not_fit(made, given, named, images, tmp_path, capsys):
    path = save_weights(tmp_path / "other.keras", **made)
    workdir = tmp_path / "run"
    given = (flag.format(path) for flag in given)
    message = refused(capsys, workdir, *flags(images, workdir), *given)
    assert named in message
    # Nothing was trained, so other classes are welcome too.
    Workdir(workdir).write_data({"classes": ["x", "y"]})


def test_weights_of_a_run_with_other_classes(images, tmp_path, capsys):
    other = Workdir(tmp_path / "other")
    path = save_weights(other.trained_model(0))
    other.write_data({"classes": ["ant", "cat", "dog"]})
    workdir = tmp_path / "run"
    arguments = (*flags(images, workdir), f"--init_from={path}")
    message = refused(capsys, workdir, *arguments, "--notrain_teacher")
    assert "ant, cat, dog" in message and "cat, dog, owl" in message
    assert run(*arguments, "--mode=teach") == 0
    assert "the last layer is new" in capsys.readouterr().out
    # Their classes are theirs where they are used as they are.
    message = refused(
        capsys,
        tmp_path / "third",
        f"--workdir={tmp_path / 'third'}",
        "--mode=evaluate",
        f"--init_from={path}",
        f"--eval_dir={images / 'eval'}",
    )
    assert "owl" in message


def test_labels_of_evaluation_records(images, tmp_path, capsys):
    path = tmp_path / "eval.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for label in (0, 1, 3):
            image = tf.io.encode_png(np.zeros((8, 8, 3), np.uint8)).numpy()
            writer.write(
                tf.train.Example(
                    features=tf.train.Features(
                        feature={
                            "image/encoded": tf.train.Feature(
                                bytes_list=tf.train.BytesList(value=[image])
                            ),
                            "image/class/label": tf.train.Feature(
                                int64_list=tf.train.Int64List(value=[label])
                            ),
                        }
                    )
                ).SerializeToString()
            )
    workdir = tmp_path / "run"
    given = (*flags(images, workdir), "--eval_dir=", f"--eval_tfrecords={path}")
    assert "outside the 3 classes" in refused(capsys, workdir, *given)


def test_labels_of_a_teacher_that_is_gone(images, tmp_path, capsys):
    workdir = tmp_path / "run"
    config = command_line.parse(["main.py", *flags(images, workdir)])
    labels = open_run(config).label_store(1)
    labels.begin({"source": {"fingerprint": "0"}})
    labels.write_probs(0, np.full((6, 3), 1 / 3))
    with pytest.raises(UserError, match="of a teacher that is not here"):
        open_run(config)
