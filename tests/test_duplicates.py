# SPDX-License-Identifier: Apache-2.0
"""Images that are measured are not trained on; classes keep their images."""

import csv
import shutil

import numpy as np
import pytest
import tensorflow as tf
from conftest import make_finished_run
from PIL import Image

import main
from noisy_student.data import decoding
from noisy_student.data import duplicates
from noisy_student.data import folder_sources
from noisy_student.data import sources
from noisy_student.data import tfrecord_source
from noisy_student.data import undecodable
from noisy_student.pseudo_labels.store import LabelStore

pytestmark = pytest.mark.usefixtures("one_block", "no_report")

CLASSES = ("cat", "dog")


def save_images(folder, count, seed):
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3))
    for number, image in enumerate(pixels.astype(np.uint8)):
        Image.fromarray(image).save(folder / f"{number}.png")


@pytest.fixture
def images(tmp_path):
    """Folders of random images, no two of them the same."""
    for number, name in enumerate(CLASSES):
        save_images(tmp_path / "labeled" / name, 4, number)
        save_images(tmp_path / "eval" / name, 3, 10 + number)
    save_images(tmp_path / "unlabeled", 6, 20)
    return tmp_path


def as_records(images, name, *labels):
    """The same images as TFRecords, with some labels in turn, if any."""
    path = images / f"{name}.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        files = sorted((images / name).rglob("*.png"))
        for number, file in enumerate(files):
            image = tf.train.BytesList(value=[file.read_bytes()])
            feature = {"image/encoded": tf.train.Feature(bytes_list=image)}
            if labels:
                label = labels[number % len(labels)]
                label = tf.train.Int64List(value=[label])
                feature["image/class/label"] = tf.train.Feature(
                    int64_list=label
                )
            features = tf.train.Features(feature=feature)
            example = tf.train.Example(features=features)
            writer.write(example.SerializeToString())
    return str(path)


@pytest.mark.parametrize("kind", ["folders", "records"])
def test_evaluation_images_are_found_by_their_bytes(images, kind, monkeypatch):
    monkeypatch.setattr(sources, "IMAGES_PER_SHARD", 4)
    shutil.copy(images / "eval/dog/2.png", images / "unlabeled/another.png")
    (images / "unlabeled" / "broken.png").write_bytes(b"\x89PNG no")
    evaluation = folder_sources.class_folders(images / "eval")
    if kind == "folders":
        source = folder_sources.image_folder(images / "unlabeled")
    else:
        source = tfrecord_source.tfrecords(
            as_records(images, "unlabeled"), labeled=False
        )
    digests = duplicates.digests_of(evaluation)
    assert len(np.unique(digests.hashes)) == 6 and (digests.hashes >= 0).all()
    without = duplicates.without(source, digests)
    found = undecodable.find(without, decoding.decode)
    (same,) = [p for p, why in found.items() if why == duplicates.REASON]
    assert len(found) == 2
    names = duplicates.originals(source, found, evaluation, digests)
    assert names == {same: str(images / "eval/dog/2.png")}
    # The images themselves are as they were.
    assert len(undecodable.find(source, decoding.decode)) == 1


def test_images_of_one_hash_are_told_apart(images, monkeypatch):
    monkeypatch.setattr(
        duplicates, "image_hash", lambda _: tf.constant(1, tf.int64)
    )
    evaluation = folder_sources.class_folders(images / "eval")
    source = folder_sources.image_folder(images / "unlabeled")
    digests = duplicates.digests_of(evaluation)
    found = undecodable.find(
        duplicates.without(source, digests), decoding.decode
    )
    assert len(found) == 6
    assert duplicates.originals(source, found, evaluation, digests) == {}


def test_copies_are_counted():
    hashes = np.array([5, 5, 6, 7, 7, 7, -1, -1])
    labels = np.array([0, 0, 1, 1, 0, 0, 0, 1])
    assert duplicates.copies(hashes, labels) == (3, 1)
    assert duplicates.copies(np.arange(4), np.zeros(4, int)) == (0, 0)


def command(images, mode, *flags):
    folders = (f"--{k}_dir={images / k}" for k in ("labeled", "eval"))
    network = ("--width=0.1", "--depth=0.1", "--image_size=16")
    return main.main(
        [
            "main.py",
            f"--mode={mode}",
            f"--workdir={images / 'run'}",
            f"--unlabeled_dir={images / 'unlabeled'}",
            *folders,
            *network,
            "--small_images",
            "--crop=padded",
            "--randaugment_num_ops=0",
            "--students=b0",
            "--eval_batch_size=8",
            *flags,
        ]
    )


@pytest.fixture(scope="module")
def weights(one_block, tmp_path_factory):
    """Two models that are made up, for two classes and for three."""
    root = tmp_path_factory.mktemp("weights")
    names = {2: CLASSES, 3: ("0", "1", "2")}
    return {
        count: make_finished_run(root / str(count), names[count])
        for count in names
    }


@pytest.fixture
def take_a_teacher(images, weights):
    """Takes a teacher as it is: a run in which all but the training is done."""

    def take(*flags, num_classes=2):
        path = weights[num_classes].trained_model(0)
        taken = ("--notrain_teacher", f"--init_from={path}")
        return command(images, "teach", *taken, *flags)

    return take


def skipped(images):
    path = images / "run" / "skipped.csv"
    return list(csv.reader(path.open()))[1:] if path.exists() else []


def test_evaluation_images_get_no_label_and_are_not_trained_on(
    images, take_a_teacher, capsys, monkeypatch
):
    shutil.copy(images / "eval/dog/2.png", images / "unlabeled/another.png")
    shutil.copy(images / "eval/cat/0.png", images / "labeled/cat/x.png")
    shutil.copy(images / "labeled/cat/1.png", images / "labeled/dog/x.png")
    for folder in ("eval/dog", "unlabeled"):
        (images / folder / "empty.png").touch()
    assert take_a_teacher() == 0
    text = capsys.readouterr().out
    assert "1 image of" in text and "is in the evaluation set too" in text
    assert "copies among the labeled images: 1; 1 image in more than" in text
    # They are read once.
    monkeypatch.setattr(duplicates, "digests_of", None)
    assert command(images, "label", "--force") == 0
    text = capsys.readouterr().out
    assert "1 image of" in text and "1 files of" in text
    reason = "also an evaluation image, {}"
    *rows, empty, _ = sorted(skipped(images), key=lambda r: "empty" in r[1])
    # Alike, but no image: not measured.
    assert "unlabeled" in empty[1] and empty[2].startswith("none of JPEG")
    assert rows == [
        [
            "labeled",
            str(images / "labeled/cat/x.png"),
            reason.format(images / "eval/cat/0.png"),
        ],
        [
            "unlabeled",
            str(images / "unlabeled/another.png"),
            reason.format(images / "eval/dog/2.png"),
        ],
    ]
    labels = LabelStore(images / "run/iteration_1/labels", (8,), 2)
    for shard, row in labels.undecodable():
        assert labels.read_copies(shard)[row] == 0
    assert len(labels.undecodable()) == 2


def test_a_class_without_a_usable_image_is_refused(
    images, take_a_teacher, capsys
):
    for number, path in enumerate((images / "labeled/dog").iterdir()):
        if number % 2:
            path.write_bytes(b"no image")
        else:
            shutil.copy(images / "eval/dog/1.png", path)
    for _ in range(2):  # the second time as well
        assert take_a_teacher() == 2
        told = capsys.readouterr()
        assert "no image of class dog" in told.err
        assert "cannot learn" not in told.out
        assert [row[0] for row in skipped(images)] == ["labeled"] * 4


def test_a_class_of_which_there_are_no_images_is_told(
    images, take_a_teacher, capsys
):
    records = f"--labeled_tfrecords={as_records(images, 'labeled', 0, 1)}"
    flags = ("--labeled_dir=", "--num_classes=3", records, "--eval_dir=")
    assert take_a_teacher(*flags, num_classes=3) == 0
    assert "no labeled images of class 2: a model" in capsys.readouterr().out


def test_labels_of_evaluation_are_checked_before_any_decoding(
    images, take_a_teacher, capsys
):
    records = f"--eval_tfrecords={as_records(images, 'eval', 0, 5)}"
    assert take_a_teacher("--eval_dir=", records) == 2
    error = capsys.readouterr().err
    assert "the label 5 of" in error and "outside the 2 classes" in error
    assert not list((images / "run").glob("skipped*"))


def test_an_evaluation_set_that_is_trained_on_is_told(
    images, take_a_teacher, capsys
):
    shutil.rmtree(images / "labeled")
    shutil.copytree(images / "eval", images / "labeled")
    assert take_a_teacher() == 0
    text = capsys.readouterr().out
    assert "warning: all 6 labeled images" in text and "has seen" in text
    assert not skipped(images)
