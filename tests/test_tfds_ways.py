# SPDX-License-Identifier: Apache-2.0
"""What works with tensorflow-datasets works here, in its own words."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from conftest import REPOSITORY
from test_sources import COLORS
from test_sources import ColorPatches
from test_sources import as_tfds_reads_them
from test_sources import contents
from test_sources import decode
from test_sources import fails
from test_sources import failure
from test_sources import interleaved
from test_sources import jpeg
from test_sources import names
from test_sources import prepare
from test_sources import shades
from test_sources import write

from noisy_student.data import array_records
from noisy_student.data import decoding
from noisy_student.data import folder_sources
from noisy_student.data import pipelines
from noisy_student.data import tfds_source
from noisy_student.data import undecodable

SPLITS = ("train[1shard:]", "train[:1shard]+test[-25%:]", "all")


@pytest.fixture(scope="module")
def tfrecord_dir(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("tfrecord")
    prepare(ColorPatches, data_dir)
    return data_dir


@pytest.fixture(scope="module")
def array_record_dir(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("array_record")
    prepare(ColorPatches, data_dir, file_format="array_record")
    return data_dir


def read(data_dir, split="train", labeled=True):
    return tfds_source.tfds_split(
        "color_patches", split, labeled=labeled, data_dir=data_dir
    )


# Names and places


@pytest.mark.parametrize("split", SPLITS)
def test_splits_mean_what_they_mean_there(tfrecord_dir, split):
    builder = tfds.builder("color_patches", data_dir=tfrecord_dir)
    found = shades(read(tfrecord_dir, split))
    assert found == as_tfds_reads_them(builder, split)
    assert len(found) == builder.info.splits[split].num_examples


def test_even_splits_and_read_instructions(tfrecord_dir):
    """In Python a split need not be a text."""
    parts = [read(tfrecord_dir, s) for s in tfds.even_splits("train", n=3)]
    assert sorted(part.num_examples for part in parts) == [6, 7, 7]
    found = [image for part in parts for image in shades(part)]
    assert sorted(found) == sorted(shades(read(tfrecord_dir)))
    assert len({part.fingerprint for part in parts}) == 3
    half = tfds.core.ReadInstruction("train", to=50, unit="%")
    assert shades(read(tfrecord_dir, half)) == shades(
        read(tfrecord_dir, "train[:50%]")
    )


def test_the_environment_names_the_data_dir(tfrecord_dir, tmp_path):
    """In a process of its own: tfds reads TFDS_DATA_DIR when it is imported."""
    command = [
        sys.executable,
        str(REPOSITORY / "main.py"),
        f"--flagfile={REPOSITORY / 'flags' / 'smoke.flags'}",
        "--mode=plan",
        "--dataset=color_patches",
        "--unlabeled_split=train[1shard:]",
        f"--workdir={tmp_path / 'run'}",
    ]
    done = subprocess.run(
        command,
        env=os.environ | {"TFDS_DATA_DIR": str(tfrecord_dir)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for text in ("color_patches/train[1shard:]", "color_patches/test"):
        assert text in done.stdout, done.stdout


# Folders


def test_trees_of_image_folder_are_read_split_by_split(tmp_path):
    for shade, name in enumerate(
        ["train/b/1.jpg", "train/Ä/2.jpeg", "train/B/3.JPG", "test/b/4.png"]
        + ["test/Ä/5.jpg", "test/B/6.jpg", "test/B/7.jpg"]
    ):
        write(tmp_path / name, jpeg(shade))
    builder = tfds.ImageFolder(str(tmp_path))
    for split in ("train", "test"):
        source = folder_sources.class_folders(tmp_path / split)
        assert list(source.class_names) == builder.info.features["label"].names
        theirs = builder.as_dataset(
            split, decoders={"image": tfds.decode.SkipDecoding()}
        )
        assert sorted(contents(source)) == sorted(
            (x["image"], int(x["label"])) for x in theirs.as_numpy_iterator()
        )


def test_a_folder_of_splits_is_no_folder_of_classes(tmp_path):
    write(tmp_path / "train" / "cat" / "1.jpg", jpeg())
    write(tmp_path / "Test" / "cat" / "2.jpg", jpeg())
    with fails("holds Test and train", f"--labeled_dir={tmp_path}/train"):
        folder_sources.class_folders(tmp_path)
    # Something else beside them does not make classes of them.
    write(tmp_path / "bus" / "3.jpg", jpeg())
    with fails("holds Test and train"):
        folder_sources.class_folders(tmp_path)
    shutil.rmtree(tmp_path / "Test")
    # A train and a bus are classes.
    assert folder_sources.class_folders(tmp_path).num_examples == 2
    shutil.rmtree(tmp_path / "bus")
    write(tmp_path / "val" / "4.jpg", jpeg())
    with fails("holds train and val", "rename them if they are"):
        folder_sources.class_folders(tmp_path)


def test_archives_are_to_be_unpacked(tmp_path):
    write(tmp_path / "cats\n.tar.gz", b"")
    with fails(r"archives such as cats\n.tar.gz", "unpack"):
        folder_sources.class_folders(tmp_path)


# ArrayRecord


@pytest.mark.parametrize("split", ["train[20%:70%]", *SPLITS[1:]])
def test_array_records(array_record_dir, split, monkeypatch):
    monkeypatch.setattr(array_records, "RECORDS_AT_ONCE", 3)
    source = read(array_record_dir, split)
    builder = tfds.builder("color_patches", data_dir=array_record_dir)
    theirs = builder.as_data_source(split)
    assert shades(source) == [
        (int(x["image"][0, 0, 0]), int(x["label"])) for x in theirs
    ]
    assert source.class_names == COLORS
    assert sorted(interleaved(source)) == sorted(contents(source))
    hidden = read(array_record_dir, split, labeled=False)
    assert (hidden.class_names, len(contents(hidden))) == ((), len(theirs))
    assert {label for _, label in contents(hidden)} == {-1}


def test_array_records_are_trained_on_as_tfrecords(
    array_record_dir, tfrecord_dir
):
    """The same images in the same order, epoch after epoch, from any step."""

    def first(data_dir, start=0):
        source = read(data_dir)
        examples = pipelines.labeled_examples(source, skipped=[(1, 2)])
        stream = pipelines.stream(
            examples, seed=1, shuffle_buffer=8, start=start
        ).take(60 - start)
        return [
            (source.load(image).numpy(), int(label), int(row), int(seed))
            for (row, (image, label)), seed in stream
        ]

    stream = first(array_record_dir)
    assert stream == first(tfrecord_dir)
    assert stream[45:] == first(array_record_dir, start=45)


@pytest.mark.parametrize("split", ["train[20%:70%]", *SPLITS])
@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_images_are_read_by_their_positions(request, file_format, split):
    data_dir = request.getfixturevalue(f"{file_format}_dir")
    source = read(data_dir, split, labeled=False)
    expected, found = [], []
    for shard, size in enumerate(source.shard_sizes):
        images = [image for image, _ in source.open_shard(shard)]
        rows = np.arange(size)[::-1]
        references = source.positions(tf.constant(shard, tf.int64), rows)
        # In a graph, as they are read in training.
        references = tf.data.Dataset.from_tensor_slices(references)
        found += list(references.map(source.load).as_numpy_iterator())
        expected += [image.numpy() for image in images[::-1]]
    assert found == expected


def test_array_records_fingerprint(array_record_dir, tfrecord_dir, tmp_path):
    first = read(array_record_dir).fingerprint
    copy = shutil.copytree(array_record_dir, tmp_path / "copy")
    assert first == read(copy).fingerprint
    assert first != read(tfrecord_dir).fingerprint
    assert first != read(array_record_dir, "train[1:]").fingerprint
    assert names(read(array_record_dir, "train[1:]"))[0] == (
        "color_patches-train.array_record-00000-of-00003 record 1"
    )


def test_damaged_array_records(array_record_dir, tmp_path):
    copy = shutil.copytree(array_record_dir, tmp_path / "copy <b>")
    source = read(copy)
    path = next(copy.rglob("*train*00001-of*"))
    content = bytearray(path.read_bytes())
    opened = source.open_shard(tf.constant(1))

    content[70] ^= 255
    path.write_bytes(content)
    message = str(failure(opened))
    assert message.startswith(f"the record file {path} cannot be read (Corr")
    with fails(path, "replace it"):
        undecodable.find(source, decode)
    path.write_bytes(content[:1000])
    assert "cannot be read" in str(failure(opened))
    path.unlink()
    assert str(failure(opened)).startswith(f"{path} has vanished")
    with fails(path, "missing"):
        read(copy)


def test_array_records_need_their_package(array_record_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "array_record.python", None)
    with fails("pip install array_record", "file_format='tfrecord'"):
        read(array_record_dir)


def test_array_records_are_read_many_at_a_time(tmp_path):
    """As many calls of Python as hundreds of records need, and no more."""

    class Many(ColorPatches, skip_registration=True):
        name = "many"

        def _generate_examples(self, count):
            for i in range(10 * count):
                image = np.full((4, 5, 3), i % 256, np.uint8)
                yield i, {"id": str(i), "image": image, "label": i % 3}

    prepare(Many, tmp_path, file_format="array_record")
    source = tfds_source.tfds_split(
        "many", "train", labeled=True, data_dir=tmp_path
    )
    calls = []
    module = array_records.check_installed()

    def reader(*arguments, **options):
        calls.append(arguments)
        return module.ArrayRecordReader(*arguments, **options)

    with pytest.MonkeyPatch.context() as patched:
        fake = type("fake", (), {"ArrayRecordReader": staticmethod(reader)})
        patched.setattr(array_records, "check_installed", lambda: fake)
        assert len(contents(source)) == 200
    # Three files of about 67, two calls each, and one less for a short file.
    assert 4 <= len(calls) <= 6, calls


# Features of other kinds


class Mask(ColorPatches, skip_registration=True):
    """An image and its mask, under names of their own, as the label is."""

    name = "with_mask"
    image_features = {
        "photo": tfds.features.Image(encoding_format="png"),
        "mask": tfds.features.LabeledImage(labels=99, shape=(4, 5, 1)),
    }
    label_features = {"species": tfds.features.ClassLabel(num_classes=3)}

    def _generate_examples(self, count):
        for i, record in super()._generate_examples(count):
            yield i, record | {"mask": record["mask"][..., :1]}


def features_of(tmp_path, image, label, value):
    """Reads a data set of one image a row, in features of any kind."""

    class Other(ColorPatches, skip_registration=True):
        name = "other"
        image_features = {"image": image}
        label_features = {"label": label}

        def _generate_examples(self, count):
            for i in range(count):
                yield i, {"id": str(i), "image": value, "label": 0}

    prepare(Other, tmp_path)
    return tfds_source.tfds_split(
        "other", "test", labeled=True, data_dir=tmp_path
    )


def test_a_mask_is_no_image_to_be_learned(tmp_path):
    prepare(Mask, tmp_path)
    source = tfds_source.tfds_split(
        "with_mask", "test", labeled=True, data_dir=tmp_path
    )
    assert sorted(shades(source)) == [(i, i % 3) for i in range(7)]
    assert source.class_names == ("0", "1", "2")


LABEL = tfds.features.ClassLabel(num_classes=2)
PIXELS = np.full((4, 4, 3), 7, np.uint8)


@pytest.mark.parametrize(
    "image, label, value, words",
    [
        (
            tfds.features.Image(shape=(4, 4, 1), dtype=np.float32),
            LABEL,
            np.ones((4, 4, 1), np.float32),
            ["float32", "dtype=np.uint8"],
        ),
        (
            tfds.features.Tensor(shape=(4, 4, 3), dtype=np.uint8),
            LABEL,
            PIXELS,
            ["one Image feature", "image: Tensor"],
        ),
        (
            tfds.features.Sequence(tfds.features.Image()),
            LABEL,
            [PIXELS, PIXELS],
            ["one Image feature", "image: Sequence"],
        ),
        (
            tfds.features.FeaturesDict({"left": tfds.features.Image()}),
            LABEL,
            {"left": PIXELS},
            ["one Image feature", "image: FeaturesDict"],
        ),
        (
            tfds.features.Image(),
            tfds.features.Scalar(np.int64),
            PIXELS,
            ["one ClassLabel feature", "label: Scalar"],
        ),
        (
            tfds.features.Image(),
            tfds.features.Scalar(np.bool_),
            PIXELS,
            ["one ClassLabel feature, or several", "label: Scalar"],
        ),
        (
            tfds.features.Image(),
            # Spaces at the ends are gone when it is read.
            tfds.features.ClassLabel(names=["red  ant", "bee", "red ant "]),
            PIXELS,
            ["look the same, 'red  ant' and 'red ant'"],
        ),
    ],
)
def test_features_that_cannot_be_read_are_named(
    tmp_path, image, label, value, words
):
    with fails("other", *words):
        features_of(tmp_path, image, label, value)


@pytest.mark.parametrize(
    "image, value, expected",
    [
        (tfds.features.Image(shape=(4, 4, 1)), PIXELS[..., :1], 7),
        (
            tfds.features.Image(shape=(4, 4, 4)),
            np.concatenate([PIXELS, PIXELS[..., :1] + 248], -1),
            7,
        ),
        # 12 bits in 16.
        (
            tfds.features.Image(
                shape=(4, 4, 1), dtype=np.uint16, encoding_format="png"
            ),
            np.full((4, 4, 1), 4095, np.uint16),
            255,
        ),
        (tfds.features.Image(encoding_format="jpeg"), PIXELS, 7),
    ],
)
def test_images_of_other_kinds(tmp_path, image, value, expected):
    source = features_of(tmp_path, image, LABEL, value)
    for content, _ in contents(source):
        found = decoding.decode(content).numpy()
        np.testing.assert_array_equal(found, np.full((4, 4, 3), expected))


def test_names_of_classes_are_composed(tmp_path):
    label = tfds.features.ClassLabel(names=["cafe\u0301", "dog "])
    source = features_of(tmp_path, tfds.features.Image(), label, PIXELS)
    assert source.class_names == ("caf\u00e9", "dog")
