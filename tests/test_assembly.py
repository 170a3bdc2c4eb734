# SPDX-License-Identifier: Apache-2.0
"""Flags find their data: every kind of source, in every role, to a batch."""

import math

import numpy as np
import pytest
import tensorflow as tf
from test_end_to_end import save_images

from noisy_student import assembly
from noisy_student import batches
from noisy_student.config import Config
from noisy_student.data import augmentation
from noisy_student.errors import UserError
from noisy_student.run import open_run

SMALL = {
    "crop": "padded",
    "image_size": 8,
    "crop_padding": 1,
    "randaugment_num_ops": 0,
    "flip": False,
    "students": "b0",
    "eval_batch_size": 4,
    "batch_size": 4,
    "unlabeled_ratio": "2",
    "train_steps": 3,
}


def write_tfrecord(path, values, first_label):
    """Gray images of these brightnesses; dark ones are of the first class."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for value in values:
            image = np.full((8, 8, 3), value, np.uint8)
            features = {
                "image/encoded": tf.train.Feature(
                    bytes_list=tf.train.BytesList(
                        value=[tf.io.encode_png(image).numpy()]
                    )
                ),
                "image/class/label": tf.train.Feature(
                    int64_list=tf.train.Int64List(
                        value=[first_label + int(value >= 128)]
                    )
                ),
            }
            example = tf.train.Example(
                features=tf.train.Features(feature=features)
            )
            writer.write(example.SerializeToString())


@pytest.mark.parametrize("first_label", [0, 1])
def test_tfrecords_in_every_role(tmp_path, first_label):
    for name, values in (
        ("train-0", (0, 200)),
        ("train-1", (50, 255)),
        ("more-0", range(100, 110)),
        ("val-0", (10, 240, 20)),
    ):
        write_tfrecord(tmp_path / name, values, first_label)
    run = open_run(
        Config(
            labeled_tfrecords=f"{tmp_path}/train-*",
            unlabeled_tfrecords=f"{tmp_path}/more-*",
            eval_tfrecords=f"{tmp_path}/val-*",
            tfrecord_first_label=first_label,
            workdir=str(tmp_path / "run"),
            **SMALL,
        )
    )
    counts = [
        s.num_examples for s in (run.labeled, run.unlabeled, run.evaluation)
    ]
    assert counts == [4, 10, 3]
    assert run.num_classes == len(run.evaluation.class_names) == 2

    # The labels of a student: row k belongs to the k-th image.
    labels = run.label_store(1)
    probs = np.zeros((10, 2), np.float32)
    probs[np.arange(10), np.arange(10) % 2] = 1
    labels.write_probs(0, probs)
    labels.write_copies(np.ones(10, np.uint32), {})
    student = batches.make_batches(run, "distill", 1)(0)
    for images, targets in student.take(5):
        assert images.shape == (12, 8, 8, 3)
        for row, (image, target) in enumerate(
            zip(images.numpy(), targets.numpy(), strict=True)
        ):
            value = int(image[0, 0, 0])
            expected = value >= 128 if row < 4 else value % 2
            assert target.argmax() == expected, (row, value, target)


def test_sources_can_be_combined(tmp_path):
    save_images(tmp_path / "more", (9, 9, 9), 3, 0)
    run = open_run(
        Config(
            dataset="digits",
            unlabeled_dir=str(tmp_path / "more"),
            workdir=str(tmp_path / "run"),
            **SMALL,
        )
    )
    assert (run.labeled.num_examples, run.unlabeled.num_examples) == (50, 3)
    assert run.evaluation.num_examples == 500


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"labeled_dir": "x"}, "--labeled_dir"),
        ({"dataset": None}, "--labeled_dir"),
        ({"crop_padding": 8}, "--crop_padding=8"),
    ],
)
def test_settings_that_contradict_each_other(changes, named):
    with pytest.raises(UserError, match=named):
        open_run(Config(**{"dataset": "digits", **SMALL, **changes}))


def test_steps_follow_from_epochs():
    config = Config(epochs=3, batch_size=32)
    assert assembly.num_steps(config, "teach", 100) == 9  # 3 * 100 / 32 = 9.4
    assert assembly.num_steps(Config(train_steps=7), "distill", 100) == 7


def test_lists_of_epochs_and_magnitudes_have_a_value_for_each_model(
    tmp_path, monkeypatch
):
    config = Config(
        dataset="digits",
        workdir=str(tmp_path),
        epochs="1,0.5,1.5",
        randaugment_magnitude="3,4,5",
        **{
            **SMALL,
            "students": "b0,b0",
            "train_steps": None,
            "randaugment_num_ops": 1,
        },
    )
    run = open_run(config)
    met = []

    def tell(image, num_ops, magnitude, **options):
        met.append(magnitude)
        return image

    monkeypatch.setattr(augmentation.randaugment, "randaugment", tell)
    image = tf.io.encode_png(tf.zeros((8, 8, 3), tf.uint8))
    for iteration in range(3):
        noise = {"randaugment"}
        see = batches.make_augment(run, 8, noise, iteration)
        see(image, tf.constant([0, iteration], tf.int64))
    assert met == [3, 4, 5]
    count = 100 * config.batch_size
    phases = ("teach", "distill", "distill")
    steps = [
        assembly.num_steps(config, phase, count, iteration)
        for iteration, phase in enumerate(phases)
    ]
    assert steps == [100, 50, 150]


def test_the_official_batch_gives_the_official_steps_and_rate():
    config = Config(batch_size=4096)
    num_labeled = 1_281_167  # ImageNet
    steps = assembly.num_steps(config, "teach", num_labeled)
    assert abs(steps - 109_474) <= 1, steps  # `train_steps`, rounded down
    schedule = assembly.make_schedule(config, "teach", num_labeled)
    warm = math.ceil(5 * num_labeled / 4096)
    stairs = warm * 4096 / num_labeled // 2.4
    expected = 0.016 * 4096 / 256 * 0.97**stairs
    assert float(schedule(warm)) == pytest.approx(expected, rel=1e-5)


def test_unlabeled_batch_is_rounded_up(tmp_path):
    settings = {**SMALL, "batch_size": 10, "unlabeled_ratio": "1.25"}
    run = open_run(Config(dataset="digits", workdir=str(tmp_path), **settings))
    assert run.unlabeled_batch_size(1) == 13
