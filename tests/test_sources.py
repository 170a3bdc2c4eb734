# SPDX-License-Identifier: Apache-2.0
"""Every source gives the images that were written, in an order that stays."""

import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

from noisy_student.data import folder_sources
from noisy_student.data import sources
from noisy_student.data import tfds_source
from noisy_student.data import tfrecord_source
from noisy_student.data import undecodable
from noisy_student.errors import UserError


def jpeg(shade=0, size=16):
    """The bytes of a gray JPEG; other shades give other bytes."""
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (shade,) * 3).save(buffer, "JPEG")
    return buffer.getvalue()


def write(path, content):
    """Writes a file and the folders above it; names may be any bytes."""
    path = os.fsencode(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(content)


def contents(source):
    """[(encoded image, label)] of a source, shard by shard, checked."""
    found = []
    for shard, size in enumerate(source.shard_sizes):
        examples = list(source.open_shard(shard).as_numpy_iterator())
        assert 0 < size == len(examples), f"{len(examples)} instead of {size}"
        found += [(source.load(r).numpy(), int(x)) for r, x in examples]
    assert source.num_examples == len(found)
    return found


def interleaved(source):
    """What `contents` gives, but read as the pipelines do, in a graph."""
    dataset = tf.data.Dataset.range(len(source.shard_sizes)).interleave(
        source.open_shard, cycle_length=3, num_parallel_calls=2
    )
    assert dataset.element_spec == (
        tf.TensorSpec((), tf.string),
        tf.TensorSpec((), tf.int64),
    )
    dataset = dataset.map(lambda reference, x: (source.load(reference), x))
    return [(image, int(x)) for image, x in dataset.as_numpy_iterator()]


def names(source):
    return [
        source.example_name(shard, row)
        for shard, size in enumerate(source.shard_sizes)
        for row in range(size)
    ]


def fails(*words):
    """Expects a UserError of one line that holds all the words."""

    class Expectation:
        def __enter__(self):
            return self

        def __exit__(self, kind, error, traceback):
            assert kind is UserError, f"{kind} instead of UserError: {error}"
            text = str(error)
            assert text.isprintable(), f"not one printable line: {text!r}"
            for word in words:
                assert str(word) in text, f"{word!r} is not in {text!r}"
            return True

    return Expectation()


# Digits


@pytest.mark.parametrize(
    "split, size, shards",
    [
        ("labeled", 50, (50,)),
        ("unlabeled", 947, (512, 435)),
        ("validation", 300, (300,)),
        ("test", 500, (500,)),
    ],
)
def test_digits_split(split, size, shards):
    source = sources.digits(split)
    assert source.num_examples == size
    assert source.shard_sizes == shards
    found = contents(source)
    assert sorted(found) == sorted(interleaved(source))
    labels = {label for _, label in found}
    if split == "unlabeled":
        assert (source.class_names, labels) == ((), {-1})
    else:
        assert source.class_names == tuple("0123456789")
        assert labels == set(range(10))


def test_digits_partition():
    parts = {
        split: set(names(sources.digits(split)))
        for split in ("labeled", "unlabeled", "validation", "test")
    }
    assert len(set.union(*parts.values())) == 1797
    assert sum(map(len, parts.values())) == 1797, "the splits overlap"
    for split in ("validation", "test"):
        counts = np.bincount([x for _, x in contents(sources.digits(split))])
        assert counts.max() - counts.min() <= 4, f"{split}: {counts}"


def test_digits_are_the_scans_of_scikit_learn():
    source, bunch = sources.digits("test"), load_digits()
    for name, (encoded, label) in zip(
        names(source), contents(source), strict=True
    ):
        row = int(name.removeprefix("digits image "))
        image = tf.io.decode_png(encoded)
        assert image.shape == (8, 8, 1)
        np.testing.assert_allclose(
            image[..., 0], bunch.images[row] * 255 / 16, atol=0.5
        )
        assert label == bunch.target[row]


def test_digits_seed_draws_the_labels_and_nothing_else():
    first, second = (sources.digits("labeled", seed=seed) for seed in (0, 1))
    assert names(first) == names(sources.digits("labeled", seed=0))
    assert first.fingerprint != second.fingerprint
    assert not set(names(first)) & set(names(sources.digits("test", seed=1)))
    for source in (first, second):
        counts = np.bincount([label for _, label in contents(source)])
        assert counts.tolist() == [5] * 10
    fewer = sources.digits("labeled", labels_per_class=2)
    assert set(names(fewer)) < set(names(first))
    rest = sources.digits("unlabeled", labels_per_class=2)
    assert rest.num_examples == 977
    for split in ("test", "validation"):
        same = {
            sources.digits(split, labels_per_class=n, seed=seed).fingerprint
            for n, seed in ((5, 0), (5, 7), (40, 1))
        }
        assert len(same) == 1, f"the {split} images depend on the seed"


def test_digits_never_change():
    """These images are in published results: a new partition breaks them."""
    labeled = names(sources.digits("labeled", labels_per_class=1))
    drawn = [282, 326, 464, 482, 685, 783, 873, 893, 1214, 1378]
    assert labeled == [f"digits image {n}" for n in drawn]
    test = sources.digits("test")
    assert names(test)[:3] == [f"digits image {n}" for n in (5, 7, 10)]
    assert test.fingerprint.startswith("de01ad1ae0f70190"), test.fingerprint


def test_digits_errors():
    with fails("train", "labeled, unlabeled, validation, test"):
        sources.digits("train")
    for wrong in (0, 1000):
        with fails(wrong, "labels_per_class"):
            sources.digits("labeled", labels_per_class=wrong)


# Folders


@pytest.fixture
def pets(tmp_path):
    """Two classes of two images, named to sort differently by case."""
    for shade, name in enumerate(
        ["cat/b.jpg", "cat/a/deep.PNG", "Dog/z.jpeg", "Dog/y.JPG"]
    ):
        write(tmp_path / "pets" / name, jpeg(shade))
    return tmp_path / "pets"


def test_class_folders(pets):
    write(pets / "cat" / "notes.txt", b"no image")
    write(pets / "cat" / ".hidden.jpg", b"hidden")
    write(pets / ".cache" / "x.jpg", b"hidden")
    source = folder_sources.class_folders(pets)
    assert source.class_names == ("Dog", "cat")  # byte order
    expected = {(jpeg(k), int(k < 2)) for k in range(4)}
    assert set(contents(source)) == expected
    assert sorted(interleaved(source)) == sorted(contents(source))
    assert source.name == str(pets)
    row = [image for image, _ in contents(source)].index(jpeg(1))
    assert source.example_name(0, row) == str(pets / "cat" / "a" / "deep.PNG")


def test_the_order_of_folders_mixes_classes_and_is_the_same_anywhere(tmp_path):
    """A shuffle buffer smaller than a class would never mix them."""
    orders = []
    for place in ("one", "the other"):
        for k in range(200):
            name = f"{'cat' if k < 100 else 'dog'}/{k:03d}.jpg"
            write(tmp_path / place / name, b"%d" % k)
        orders.append(contents(folder_sources.class_folders(tmp_path / place)))
        unlabeled = folder_sources.image_folder(tmp_path / place)
        images = [image for image, _ in contents(unlabeled)]
        assert images == [image for image, _ in orders[-1]]
        predicted = folder_sources.images_at(tmp_path / place)
        assert [image for image, _ in contents(predicted)] == [
            b"%d" % k for k in range(200)
        ]
    assert orders[0] == orders[1]
    for start in range(0, 200, 25):
        labels = [label for _, label in orders[0][start : start + 25]]
        assert 4 <= sum(labels) <= 21


def test_image_folder(pets, monkeypatch):
    monkeypatch.setattr(sources, "IMAGES_PER_SHARD", 3)
    write(pets / "root.webp", b"w")
    source = folder_sources.image_folder(pets)
    assert source.class_names == ()
    assert source.shard_sizes == (3, 2)
    images = {jpeg(3), jpeg(2), jpeg(1), jpeg(0), b"w"}
    assert set(contents(source)) == {(image, -1) for image in images}
    assert sorted(interleaved(source)) == sorted(contents(source))
    assert sorted(names(source))[-1] == str(pets / "root.webp")


def test_file_names_may_be_anything(tmp_path):
    odd = [
        b"a b.jpg",
        b"c\nd.jpg",
        b"<b>&amp;.jpg",
        b"\xff\xfe.jpg",
        b"[*].jpg",
    ]
    for name in odd:
        write(os.path.join(os.fsencode(tmp_path), b"in", name), name)
    source = folder_sources.images_at(tmp_path / "in")
    assert [image for image, _ in contents(source)] == sorted(odd)
    assert sorted(interleaved(source)) == sorted(contents(source))
    shown = [os.path.basename(name) for name in names(source)]
    assert shown == [
        "<b>&amp;.jpg",
        "[*].jpg",
        "a b.jpg",
        r"c\nd.jpg",
        r"\xff\xfe.jpg",
    ]


def test_links_are_followed_and_never_loop(pets):
    (pets / "cat" / "to_root").symlink_to(pets)
    (pets / "cat" / "to_itself.jpg").symlink_to("to_itself.jpg")
    (pets / "cat" / "to_nothing.jpg").symlink_to("nothing.jpg")
    (pets / "cat" / "a" / "up").symlink_to(pets / "cat")
    write(pets.parent / "elsewhere" / "x.jpg", jpeg(9))
    (pets / "cat" / "z_elsewhere").symlink_to(pets.parent / "elsewhere")
    (pets / "cat" / "linked.jpg").symlink_to(pets / "Dog" / "y.JPG")
    source = folder_sources.class_folders(pets)
    cats = [image for image, label in contents(source) if label == 1]
    assert sorted(cats) == sorted(map(jpeg, (1, 0, 3, 9)))
    assert folder_sources.image_folder(pets).num_examples == 6


def test_class_folders_errors(pets, tmp_path, caplog):
    with fails("nowhere", "is missing"):
        folder_sources.class_folders(tmp_path / "nowhere")
    with fails("b.jpg", "not a directory"):
        folder_sources.class_folders(pets / "cat" / "b.jpg")
    (tmp_path / "empty").mkdir()
    with fails("empty", "no sub-folders"):
        folder_sources.class_folders(tmp_path / "empty")
    with fails("holds images directly", "folder of its own"):
        folder_sources.class_folders(pets / "Dog")
    with fails("only one class folder", "'a'"):
        folder_sources.class_folders(pets / "cat")
    write(pets / "stray.jpg", jpeg())
    assert folder_sources.class_folders(pets).num_examples == 4
    assert "ignoring 1 images" in caplog.text
    (pets / "mouse\n").mkdir()
    with fails(r"mouse\n", "no image"):
        folder_sources.class_folders(pets)


def test_image_folder_errors(tmp_path, monkeypatch):
    with fails("nowhere", "is missing"):
        folder_sources.image_folder(tmp_path / "nowhere")
    write(tmp_path / "in" / "notes.txt", b"")
    with fails("holds no image", ".jpg .jpeg .png .bmp .gif .webp"):
        folder_sources.image_folder(tmp_path / "in")

    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)
    with fails("cannot be listed", "Permission denied"):
        folder_sources.image_folder(tmp_path / "in")


def test_folder_fingerprint(pets, tmp_path, monkeypatch):
    def fingerprint(directory=pets):
        return folder_sources.class_folders(directory).fingerprint

    first = fingerprint()
    assert first == fingerprint()
    assert first != folder_sources.image_folder(pets).fingerprint
    monkeypatch.chdir(tmp_path)
    assert first == fingerprint("pets"), "it depends on the cwd"
    shutil.copytree(pets, tmp_path / "copy")
    assert first == fingerprint(tmp_path / "copy"), "it depends on the place"

    seen = {first}
    write(pets / "cat" / "c.jpg", jpeg())
    seen.add(fingerprint())
    write(pets / "cat" / "c.jpg", jpeg() + b"longer")
    seen.add(fingerprint())
    os.rename(pets / "cat" / "c.jpg", pets / "cat" / "d.jpg")
    seen.add(fingerprint())
    os.rename(pets / "cat", pets / "Cat")
    seen.add(fingerprint())
    assert len(seen) == 5, "a change went unnoticed"


def test_relative_paths_survive_a_change_of_directory(pets, monkeypatch):
    monkeypatch.chdir(pets.parent)
    source = folder_sources.class_folders("pets")
    assert source.name == "pets"
    monkeypatch.chdir("/")
    assert len(contents(source)) == 4


def test_fingerprints_are_equal_in_every_process(pets):
    code = (
        "import sys\n"
        "from noisy_student.data import folder_sources, sources, tfds_source\n"
        "lazy = {'sklearn.datasets', 'tensorflow_datasets'}\n"
        "assert not lazy & set(sys.modules)\n"
        "print(folder_sources.class_folders(sys.argv[1]).fingerprint)\n"
        "print(sources.digits('unlabeled').fingerprint)"
    )
    output = subprocess.run(
        [sys.executable, "-c", code, "pets"],
        cwd=pets.parent,
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "PYTHONHASHSEED": "7",
            "LC_ALL": "C",
        },
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert output.split() == [
        folder_sources.class_folders(pets).fingerprint,
        sources.digits("unlabeled").fingerprint,
    ]


# TFRecord files


def example(image, label=None, key="image/encoded"):
    feature = {
        key: tf.train.Feature(bytes_list=tf.train.BytesList(value=[image])),
        "image/class/text": tf.train.Feature(
            bytes_list=tf.train.BytesList(value=[b"ignored"])
        ),
    }
    if label is not None:
        feature["image/class/label"] = tf.train.Feature(
            int64_list=tf.train.Int64List(value=[label])
        )
    features = tf.train.Features(feature=feature)
    return tf.train.Example(features=features).SerializeToString()


def write_records(path, records):
    with tf.io.TFRecordWriter(os.fspath(path)) as writer:
        for record in records:
            writer.write(record)


@pytest.fixture
def record_files(tmp_path):
    """Three files of 4, 0 and 2 images, with labels 1, 2 and 3 in turn."""
    images = [b"image %d" % i for i in range(6)]
    records = [example(x, i % 3 + 1) for i, x in enumerate(images)]
    for shard, part in enumerate([records[:4], [], records[4:]]):
        write_records(tmp_path / f"train-{shard}-of-3", part)
    return str(tmp_path / "train-*")


def test_records_are_read_by_their_positions(record_files, tmp_path):
    source = tfrecord_source.tfrecords(record_files, labeled=False)
    rows = np.array([3, 0, 3, 1])
    references = source.positions(tf.constant(0, tf.int64), rows)
    images = tf.data.Dataset.from_tensor_slices(references).map(source.load)
    found = [image.numpy() for image in images]
    assert found == [b"image %d" % row for row in rows]
    (path,) = tmp_path.glob("train-0-*")
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"image 3", b"image 7"))
    with pytest.raises(tf.errors.DataLossError) as damaged:
        list(images)
    assert "a record file is damaged" in str(sources.read_error(damaged.value))
    path.unlink()
    with pytest.raises(tf.errors.NotFoundError) as gone:
        list(images)
    assert "has vanished" in str(sources.read_error(gone.value))


def test_remote_records_are_read_from_their_beginning(tmp_path):
    """There a request takes longer than an image."""
    path = f"ram://positions{tmp_path}/train"
    write_records(path, [example(b"image")])
    assert tfrecord_source.tfrecords(path, labeled=False).positions is None


def test_tfrecords(record_files):
    source = tfrecord_source.tfrecords(
        record_files, labeled=True, first_label=1
    )
    assert source.shard_sizes == (4, 2)
    assert source.class_names == ("0", "1", "2")
    assert contents(source) == [(b"image %d" % i, i % 3) for i in range(6)]
    assert sorted(interleaved(source)) == sorted(contents(source))
    assert source.example_name(1, 1) == "train-2-of-3 record 1"

    hidden = tfrecord_source.tfrecords(record_files, labeled=False)
    assert hidden.class_names == ()
    assert contents(hidden) == [(b"image %d" % i, -1) for i in range(6)]
    assert hidden.fingerprint != source.fingerprint
    more = tfrecord_source.tfrecords(record_files, labeled=True, num_classes=5)
    assert more.class_names == tuple("01234")
    named = tfrecord_source.tfrecords(
        record_files, labeled=True, class_names=list("abc"), first_label=1
    )
    assert named.class_names == ("a", "b", "c")


def test_tfrecords_patterns(record_files, tmp_path):
    def read(pattern):
        return tfrecord_source.tfrecords(pattern, labeled=False)

    both = f"{tmp_path}/train-2*, {tmp_path}/train-0*,{tmp_path}/train-2*"
    assert contents(read(both)) == contents(read(record_files))
    assert read(both).fingerprint == read(record_files).fingerprint
    odd = os.path.join(os.fsencode(tmp_path), b"odd \xff\n.tfrecord")
    shutil.copy(tmp_path / "train-2-of-3", odd)
    source = read(f"{tmp_path}/odd*")
    assert len(contents(source)) == len(interleaved(source)) == 2
    assert source.example_name(0, 0) == r"odd \xff\n.tfrecord record 0"
    remote = "ram://bucket/train-0"  # stands for gs://
    write_records(remote, [example(b"far"), example(b"away")])
    assert contents(read("ram://bucket/t*")) == [(b"far", -1), (b"away", -1)]


def test_tfrecords_fingerprint(record_files, tmp_path):
    def fingerprint(pattern=record_files, labeled=False):
        return tfrecord_source.tfrecords(
            pattern, labeled=labeled, num_classes=4
        ).fingerprint

    seen = {fingerprint(), fingerprint(labeled=True)}
    (tmp_path / "moved").mkdir()
    for path in tmp_path.glob("train-*"):
        shutil.copy(path, tmp_path / "moved")
    assert fingerprint(f"{tmp_path}/moved/train-*") in seen
    write_records(tmp_path / "train-1-of-3", [example(b"new")])
    seen.add(fingerprint())
    os.rename(tmp_path / "train-1-of-3", tmp_path / "train-4")
    seen.add(fingerprint())
    assert len(seen) == 4, "a change went unnoticed"


def test_tfrecords_errors(record_files, tmp_path):
    def read(name, labeled=True, **options):
        path = f"{tmp_path}/{name}"
        return tfrecord_source.tfrecords(path, labeled=labeled, **options)

    with fails("nothing-*", "no file matches"):
        read("nothing-*")
    with fails("train-1", "hold no record"):
        read("train-1*")
    whole = (tmp_path / "train-2-of-3").read_bytes()
    for size in (len(whole) - 1, len(whole) // 2 + 4, 5):
        write(tmp_path / "cut", whole[:size])
        with fails(tmp_path / "cut", "cut off"):
            read("cut")
    write(tmp_path / "page.html", b"<html>no records here</html>")
    with fails("page.html", "no uncompressed TFRecord"):
        read("page.html")
    write_records(tmp_path / "other", [example(b"x", 0, key="jpeg")])
    with fails("first record", "image/encoded and image/class/label"):
        read("other")
    write_records(tmp_path / "bare", [example(b"x")])
    assert read("bare", labeled=False).num_examples == 1
    with fails("first record", "image/class/label"):
        read("bare")
    damaged = bytearray((tmp_path / "train-0-of-3").read_bytes())
    damaged[-10] ^= 255  # in the data of the last record
    write(tmp_path / "damaged", bytes(damaged))
    with fails("damaged", "write the files again"):
        read("damaged", first_label=1)


def test_labels_below_zero_are_no_class(tmp_path):
    path = tmp_path / "train-0-of-1"
    write_records(path, [example(b"x", label) for label in (-1, 0, 1)])
    with fails("start at -1", "without the images that have none"):
        tfrecord_source.tfrecords(str(path), labeled=True)


def test_tfrecords_labels_out_of_range(record_files):
    def read(**options):
        return tfrecord_source.tfrecords(record_files, labeled=True, **options)

    # Labels 1, 2, 3 are found by the scan ...
    with fails("start at 1, not at 0", "--tfrecord_first_label=1"):
        read()
    with fails("start at 1, not at 2", "--tfrecord_first_label=1"):
        read(first_label=2)
    # ... and where they are read, when nothing is scanned.
    for options in (
        {"num_classes": 3},  # 3 is too large
        {"num_classes": 3, "first_label": 2},  # 1 is too small
    ):
        source = read(**options)
        for reader in (contents, interleaved):
            with pytest.raises(
                tf.errors.InvalidArgumentError,
                match=r"outside the 3 classes.*--tfrecord_first_label",
            ):
                reader(source)


@pytest.mark.parametrize("first_label", [0, 7])
def test_labels_with_gaps_are_the_classes(tmp_path, first_label):
    labels = [812, 7, 31507, 7, 812]
    records = [example(b"%d" % label, label) for label in labels]
    write_records(tmp_path / "labeled", records)

    def read(name="labeled", **options):
        return tfrecord_source.tfrecords(
            f"{tmp_path}/{name}",
            labeled=True,
            first_label=first_label,
            **options,
        )

    source = read()
    assert source.class_names == ("7", "812", "31507")
    expected = [(b"812", 1), (b"7", 0), (b"31507", 2), (b"7", 0), (b"812", 1)]
    assert contents(source) == interleaved(source) == expected
    # Files that hold some of the classes have the same numbers for them.
    write_records(tmp_path / "eval", records[2:3])
    assert contents(read("eval", class_names=source.class_names)) == [
        (b"31507", 2)
    ]
    write_records(tmp_path / "other", [example(b"x", 8)])
    other = read("other", class_names=source.class_names)
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        contents(other)
    error = str(sources.read_error(caught.value))
    assert error.startswith("the label 8 of") and "outside the 3" in error
    # Who says how many there are gets them all.
    many = read(num_classes=31508 - first_label)
    assert len(many.class_names) == 31508 - first_label
    assert contents(many)[0] == (b"812", 812 - first_label)


def test_labels_of_one_class_alone_are_no_classes(tmp_path):
    write_records(tmp_path / "one", [example(b"x", 0)] * 2)
    with fails("all labels in", "are 0", "--num_classes"):
        tfrecord_source.tfrecords(f"{tmp_path}/one", labeled=True)


@pytest.mark.parametrize("first_label", [0, 1])
def test_labels_of_files_meet_folders_by_their_numbers(tmp_path, first_label):
    # By their bytes 10 comes before 2.
    names = sorted(str(number) for number in range(11))
    write_records(
        tmp_path / "eval",
        [example(b"%d" % k, k + first_label) for k in range(11)],
    )
    source = tfrecord_source.tfrecords(
        f"{tmp_path}/eval",
        labeled=True,
        class_names=names,
        first_label=first_label,
    )
    for image, label in contents(source):
        assert names[label].encode() == image


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"int64_list": {"value": [1, 2]}}, "has several values of"),
        ({"int64_list": {"value": []}}, "has several values of"),
        ({"float_list": {"value": [1.0]}}, "type float instead of int64"),
        ({"bytes_list": {"value": [b"cat"]}}, "type string instead of int64"),
        (None, "has no image/class/label"),
    ],
    ids=["a list", "empty", "a float", "a name", "none"],
)
def test_labels_that_are_not_one_number_are_explained(tmp_path, values, what):
    good = tf.train.Example.FromString(example(b"x", 0))
    bad = tf.train.Example.FromString(example(b"x", 0))
    bad.features.feature["image/class/label"].Clear()
    if values is None:
        del bad.features.feature["image/class/label"]
    else:
        feature = tf.train.Feature(
            **{
                kind: getattr(tf.train, kind.title().replace("_", ""))(**fields)
                for kind, fields in values.items()
            }
        )
        bad.features.feature["image/class/label"].CopyFrom(feature)

    def read(*examples, **options):
        records = [one.SerializeToString() for one in examples]
        write_records(tmp_path / "some", records)
        path = f"{tmp_path}/some"
        return tfrecord_source.tfrecords(path, labeled=True, **options)

    with fails("the first record", what):
        read(bad)
    with fails("a record of", what, "write the files again"):
        read(good, bad)
    with pytest.raises(tf.errors.OpError) as caught:
        contents(read(good, bad, num_classes=2))
    assert what in str(sources.read_error(caught.value))


@pytest.fixture
def opened(monkeypatch):
    """Names of the record files that are opened, whatever for."""
    names = []

    def counting(opener):
        def opened(path, *arguments, **options):
            names.append(os.path.basename(os.fsdecode(path)))
            return opener(path, *arguments, **options)

        return opened

    monkeypatch.setattr(tfrecord_source, "open", counting(open), raising=False)
    monkeypatch.setattr(tf.io.gfile, "GFile", counting(tf.io.gfile.GFile))
    return names


@pytest.mark.parametrize("place", ["local", "remote"])
def test_record_files_are_counted_once(
    record_files, tmp_path, opened, monkeypatch, place
):
    pattern = record_files
    if place == "remote":
        pattern = f"ram://counted{tmp_path}/train-*"
        for path in tmp_path.glob("train-*"):
            tf.io.gfile.copy(str(path), f"ram://counted{path}", overwrite=True)
    root = os.path.dirname(pattern)
    cache = tmp_path / "run" / "data_index.json"
    options = {"labeled": True, "first_label": 1}

    def read(**changes):
        """A source as a new command sees it, and the files it opens."""
        opened.clear()
        index = tfrecord_source.FileIndex(cache)
        source = tfrecord_source.tfrecords(
            pattern, index=index, **{**options, **changes}
        )
        index.save()
        return source, {name for name in opened if name.startswith("train")}

    everything = {f"train-{k}-of-3" for k in range(3)}
    first, files = read()
    assert files == everything and not cache.parent.exists()
    cache.parent.mkdir()
    assert read()[1] == everything  # there was no place to remember it
    # From here on nothing but the first record is read.
    with monkeypatch.context() as patched:
        patched.setattr(tfrecord_source, "_count_records", None)
        patched.setattr(tfrecord_source.logging, "info", None)
        again, files = read()
    assert not files and again.fingerprint == first.fingerprint
    assert contents(again) == contents(first)
    # A file that has changed is counted again, and no other.
    write_records(f"{root}/train-1-of-3", [example(b"new", 4)] * 3)
    changed, files = read()
    assert files == {"train-1-of-3"}
    assert changed.shard_sizes == (4, 3, 2)
    assert changed.class_names == tuple("0123")
    for damage in ("", "{", "[]", '{"records": {"a": 1}, "labels": {}}'):
        cache.write_text(damage)
        assert read()[0].shard_sizes == (4, 3, 2)
    assert not read()[1]


def test_what_is_known_of_files_may_be_nowhere(record_files, tmp_path):
    for path in (tmp_path / "nowhere" / "x.json", tmp_path):
        index = tfrecord_source.FileIndex(path)
        source = tfrecord_source.tfrecords(
            record_files, labeled=False, index=index
        )
        assert source.shard_sizes == (4, 2)
        index.save()
    assert not (tmp_path / "nowhere").exists()


# tensorflow-datasets

COLORS = ("red", "green", "blue")


class ColorPatches(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Tiny PNG pictures in several files, with a feature to be ignored."""

    VERSION = tfds.core.Version("1.2.0")
    name = "color_patches"
    image_features = {"image": tfds.features.Image(encoding_format="png")}
    label_features = {"label": tfds.features.ClassLabel(names=COLORS)}

    def _info(self):
        features = {
            "id": tfds.features.Text(),
            **self.image_features,
            **self.label_features,
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager):
        return {
            "train": self._generate_examples(20),
            "test": self._generate_examples(7),
        }

    def _generate_examples(self, count):
        for i in range(count):
            image = np.full((4, 5, 3), i, np.uint8)
            yield (
                i,
                {"id": str(i)}
                | dict.fromkeys(self.image_features, image)
                | dict.fromkeys(self.label_features, i % 3),
            )


def prepare(builder_class, data_dir, **options):
    config = tfds.download.DownloadConfig(num_shards=3)
    builder = builder_class(data_dir=data_dir)
    builder.download_and_prepare(download_config=config, **options)
    return builder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("tfds")
    prepare(ColorPatches, data_dir)
    return data_dir


@pytest.fixture(autouse=True)
def no_bucket(monkeypatch):
    """Fails every attempt of tfds to look into its public bucket."""

    def refuse(path):
        raise AssertionError(f"tfds asks the network for {path}")

    gcs_utils = sys.modules["tensorflow_datasets.core.utils.gcs_utils"]
    monkeypatch.setattr(gcs_utils, "exists", refuse)


def shades(source):
    """[(value of all pixels, label)]: what tells the patches apart."""
    return [
        (int(tf.io.decode_png(image)[0, 0, 0]), label)
        for image, label in contents(source)
    ]


def as_tfds_reads_them(builder, split):
    """The same, by tfds itself, one file after the other."""
    read_config = tfds.ReadConfig(interleave_cycle_length=1)
    dataset = builder.as_dataset(split=split, read_config=read_config)
    return [
        (int(x["image"][0, 0, 0]), int(x["label"]))
        for x in dataset.as_numpy_iterator()
    ]


@pytest.mark.parametrize(
    "split, size",
    [
        ("train", 20),
        ("train[20%:70%]", 10),
        ("train[:3]", 3),
        ("train[10%:]+test", 25),
        ("train[-1:]+test[2:3]", 2),
    ],
)
def test_tfds_split(prepared, split, size):
    source = tfds_source.tfds_split(
        "color_patches", split, labeled=True, data_dir=prepared
    )
    builder = tfds.builder("color_patches", data_dir=prepared)
    assert source.num_examples == size
    assert source.class_names == COLORS
    assert source.name == f"color_patches/{split}"
    assert shades(source) == as_tfds_reads_them(builder, split)
    assert sorted(interleaved(source)) == sorted(contents(source))
    hidden = tfds_source.tfds_split(
        "color_patches", split, labeled=False, data_dir=prepared
    )
    assert hidden.class_names == ()
    assert shades(hidden) == [(shade, -1) for shade, _ in shades(source)]


def test_tfds_example_names_count_from_the_start_of_the_file(prepared):
    def read(split):
        return tfds_source.tfds_split(
            "color_patches", split, labeled=True, data_dir=prepared
        )

    whole, part = read("train"), read("train[20%:70%]")
    assert len(whole.shard_sizes) == 3
    place = dict(zip(names(whole), contents(whole), strict=True))
    assert len(place) == 20, "two examples have the same name"
    assert [place[name] for name in names(part)] == contents(part)
    assert "train.tfrecord-00000-of-00003 record 0" in names(whole)[0]


def test_tfds_fingerprint(prepared, tmp_path):
    def fingerprint(split, labeled=True, data_dir=prepared):
        return tfds_source.tfds_split(
            "color_patches", split, labeled=labeled, data_dir=data_dir
        ).fingerprint

    first = fingerprint("train")
    shutil.copytree(prepared, tmp_path / "copy")
    assert first == fingerprint("train", data_dir=tmp_path / "copy")
    others = {
        fingerprint("train", labeled=False),
        fingerprint("test"),
        fingerprint("train[:10]"),
        fingerprint("train[10:]"),
        fingerprint("train[10:]+train[:10]"),
    }
    assert len(others | {first}) == 6


def test_tfds_errors(prepared, tmp_path):
    def read(name="color_patches", split="train", data_dir=prepared):
        return tfds_source.tfds_split(
            name, split, labeled=True, data_dir=data_dir
        )

    with fails("cifar11", "did you mean cifar1", "tfds.list_builders()"):
        read("cifar11")
    with fails("color_patches", tmp_path, "list_builders"):
        read(data_dir=tmp_path)
    with fails("mnist", tmp_path / "mnist" / "3.0", "--download", "--data_dir"):
        read("mnist", data_dir=tmp_path)
    with fails("cannot open", "cifar10:9.9.9"):
        read("cifar10:9.9.9")
    with fails("cannot open", "a b/c?"):
        read("a b/c?")
    with fails("somebody:mnist", "community"):
        read("somebody:mnist")
    for split in ("valid", "train[a:b]", "train[:50]", "train[", "all[:5]"):
        with fails(f"no split '{split}'", "train, test"):
            read(split=split)
    with fails("'train[:0]'", "empty"):
        read(split="train[:0]")
    shutil.copytree(prepared, tmp_path / "copy")
    shard = next((tmp_path / "copy").rglob("*train*00001*"))
    shard.unlink()
    with fails(shard.name, "missing"):
        read(data_dir=tmp_path / "copy")


def test_tfds_other_file_formats_are_refused(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "copy")
    (info,) = (tmp_path / "copy").rglob("dataset_info.json")
    info.write_text(
        json.dumps(json.loads(info.read_text()) | {"fileFormat": "riegeli"})
    )
    with fails("stored as riegeli", "tfrecord"):
        tfds_source.tfds_split(
            "color_patches", "train", labeled=False, data_dir=tmp_path / "copy"
        )


@pytest.mark.parametrize(
    "images, labels, message",
    [
        ([], ["label"], "one Image feature"),
        (["left", "right"], ["label"], "several (left, right)"),
        (["image"], [], "one ClassLabel feature"),
        (["image"], ["coarse", "fine"], "several (coarse, fine)"),
        (["photo"], ["kind"], None),
        (["image", "mask"], ["fine", "label"], None),
    ],
)
def test_tfds_features(tmp_path, images, labels, message):
    class Variant(ColorPatches, skip_registration=True):
        name = "variant"
        image_features = dict.fromkeys(
            images, tfds.features.Image(encoding_format="png")
        )
        label_features = dict.fromkeys(
            labels, tfds.features.ClassLabel(names=COLORS)
        )

    prepare(Variant, tmp_path)

    def read():
        return tfds_source.tfds_split(
            "variant", "test", labeled=True, data_dir=tmp_path
        )

    if message:
        with fails("variant", message):
            read()
    else:
        assert sorted(shades(read())) == [(i, i % 3) for i in range(7)]


def test_tfds_labels_that_are_missing(tmp_path):
    class Unlabeled(ColorPatches, skip_registration=True):
        name = "no_labels"

        def _generate_examples(self, count):
            for i, record in super()._generate_examples(count):
                yield i, record | {"label": -1}

    prepare(Unlabeled, tmp_path)
    options = {"labeled": True, "data_dir": tmp_path}
    source = tfds_source.tfds_split("no_labels", "test", **options)
    with pytest.raises(tf.errors.InvalidArgumentError, match="without a label"):
        contents(source)
    options["labeled"] = False
    hidden = tfds_source.tfds_split("no_labels", "test", **options)
    assert len(contents(hidden)) == 7


def test_tfds_download_prepares_what_is_missing(tmp_path):
    class HomeMade(ColorPatches):  # registered, so its code is found
        name = "home_made"

    options = {"labeled": True, "data_dir": tmp_path}
    with fails("home_made is not prepared in", tmp_path / "home_made/1.2.0"):
        tfds_source.tfds_split("home_made", "test", **options)
    source = tfds_source.tfds_split(
        "home_made", "test", download=True, **options
    )
    assert sorted(shades(source)) == [(i, i % 3) for i in range(7)]

    class Broken(ColorPatches):
        name = "broken_at_home"

        def _split_generators(self, dl_manager):
            raise AssertionError("Fetch it by hand.\nThen put it there.")

    with fails("could not prepare", "Fetch it by hand. Then put it there."):
        tfds_source.tfds_split(
            "broken_at_home", "test", download=True, **options
        )


@pytest.mark.parametrize(
    "name, split, expected",
    [
        ("imagenet2012", "train", (1_281_167, 1000)),
        ("imagenet2012:5.1.0", "validation", (50_000, 1000)),
        ("svhn_cropped", "train[:69257]", (69_257, 10)),
        ("svhn_cropped", "train + extra", (604_388, 10)),
        ("svhn_cropped", "train[10%:]", (65_931, 10)),
        ("cifar10", "train[-10:]+test[25%:75%]", (5_010, 10)),
        ("cifar100", "test[:0]", (0, 100)),
        # Not without the files.
        ("cifar10", "train[:1shard]", None),
        ("mnist", "train", None),
        ("no_such_data", "train", None),
        ("somebody:mnist", "train", None),
    ],
)
def test_known_split_of_data_that_are_not_here(tmp_path, name, split, expected):
    found = tfds_source.known_split(name, split, data_dir=tmp_path)
    assert found == expected


def test_known_splits_are_those_of_the_catalog():
    # The builders' own code names their classes without a download.
    for name, (num_classes, _) in tfds_source._KNOWN.items():
        info = tfds.builder(name, try_gcs=False).info
        assert info.features["label"].num_classes == num_classes, name


def test_known_split_of_data_that_are_here(prepared, tmp_path):
    def known(split):
        return tfds_source.known_split(
            "color_patches", split, data_dir=prepared
        )

    assert known("train") == (20, 3)
    assert known("train[10%:]+test") == (25, 3)
    with fails("color_patches", "no split 'valid'", "train, test"):
        known("valid")
    with fails("cifar10", "no split 'train[:50001]'", "train, test"):
        tfds_source.known_split("cifar10", "train[:50001]", data_dir=tmp_path)

    # What is prepared counts, not the table.
    class Mine(ColorPatches, skip_registration=True):
        name = "cifar10"
        label_features = {}

    prepare(Mine, tmp_path)
    found = tfds_source.known_split("cifar10:1.2.0", "test", data_dir=tmp_path)
    assert found == (7, None)


# Checks across sources


@pytest.mark.parametrize(
    ("present", "empty"),
    [
        (("2", "10"), ()),
        (("2", "10", "9"), ("1",)),
        (("9",), ("1", "10")),
        (("10", "9", "1", "2"), ()),
    ],
    ids=["lacks classes", "has one empty", "only one class", "all"],
)
def test_evaluation_classes_are_known_by_name(tmp_path, present, empty):
    # By their bytes 10 comes before 2: the set alone would number them so.
    model = ("9", "2", "10", "1")
    for name in present:
        write(tmp_path / name / "deep" / "a.jpg", jpeg(int(name)))
    for name in empty:
        (tmp_path / name).mkdir()
    plain = folder_sources.class_folders(tmp_path, evaluation=True)
    assert set(plain.absent) == set(empty)
    source = sources.with_classes(plain, model)
    expected = {jpeg(int(name)): model.index(name) for name in present}
    assert dict(contents(source)) == dict(interleaved(source)) == expected
    assert source.class_names == model
    assert source.absent == tuple(n for n in model if n not in present)
    assert source.fingerprint != plain.fingerprint
    again = folder_sources.class_folders(tmp_path, evaluation=True)
    again = sources.with_classes(again, model)
    assert again.fingerprint == source.fingerprint


def test_evaluation_classes_that_the_model_lacks_are_named(tmp_path):
    for name in ("cat", "Dog", "emu", "fox", "gnu"):
        write(tmp_path / name / "a.jpg", jpeg())
    source = folder_sources.class_folders(tmp_path, evaluation=True)
    with fails("has images of Dog, emu, fox and 1 more, but", "are cat, dog:"):
        sources.with_classes(source, ("cat", "dog"))
    assert sources.with_classes(source, source.class_names) is source


def test_evaluation_folders_without_any_image(tmp_path):
    (tmp_path / "cat").mkdir()
    with fails("no class folder of", "has an image"):
        folder_sources.class_folders(tmp_path, evaluation=True)


def decode(encoded):
    return tf.io.decode_image(encoded, channels=3, expand_animations=False)


def decode_to_square(encoded):
    return tf.image.resize(decode(encoded), (8, 8))


def test_undecodable_files(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "IMAGES_PER_SHARD", 4)
    root = os.fsencode(tmp_path)
    for i in range(10):
        write(tmp_path / f"{i}.jpg", jpeg(i))
    write(tmp_path / "2.jpg", jpeg(2, size=64)[:-100])
    write(tmp_path / "3.jpg", b"a text that is called an image")
    write(tmp_path / "6.jpg", b"")
    write(root + b"/9\xff\n.jpg", jpeg())
    source = folder_sources.images_at(tmp_path)
    os.remove(tmp_path / "8.jpg")
    os.remove(root + b"/9\xff\n.jpg")
    bad = undecodable.find(source, decode)
    assert list(bad) == [(0, 2), (0, 3), (1, 2), (2, 0), (2, 2)]
    assert bad == undecodable.find(source, decode_to_square)
    assert "Invalid JPEG data" in bad[0, 2]
    assert "Unknown image file format" in bad[0, 3]
    assert "empty" in bad[1, 2]
    assert bad[2, 0] == bad[2, 2] == "no such file"
    for reason in bad.values():
        assert reason.isprintable() and len(reason) <= 200
        assert "function_node" not in reason and "Op:" not in reason


def test_undecodable_finds_nothing_in_good_images():
    assert undecodable.find(sources.digits("labeled"), decode) == {}


def test_undecodable_records(tmp_path):
    images = [jpeg(0), b"no image", jpeg(2)]
    records = [example(image, 0) for image in images]
    for name in ("a", "b"):
        write_records(tmp_path / name, records)
    source = tfrecord_source.tfrecords(
        f"{tmp_path}/?", labeled=True, num_classes=2
    )
    assert list(undecodable.find(source, decode)) == [(0, 1), (1, 1)]
    # A record file that goes is another matter: its rows cannot be dropped.
    os.remove(tmp_path / "b")
    with fails("/b has vanished"):
        undecodable.find(source, decode)


def failure(dataset):
    with pytest.raises(tf.errors.OpError) as caught:
        list(dataset)
    return sources.read_error(caught.value)


def test_what_a_failed_read_tells_a_user(tmp_path):
    path = tmp_path / "some: records"
    write_records(path, [b"x" * 100] * 3)
    content = bytearray(path.read_bytes())
    records = tf.data.TFRecordDataset(str(path))
    path.write_bytes(content[:200])
    assert "damaged (truncated record at 116)" in str(failure(records))
    content[150] ^= 1
    path.write_bytes(content)
    assert "damaged (corrupted record at 128)" in str(failure(records))
    path.unlink()
    assert str(failure(records)).startswith(f"{path} has vanished")
    files = tf.data.Dataset.from_tensors(str(path)).map(tf.io.read_file)
    assert str(failure(files)).startswith(f"{path} has vanished")
    broken = tf.data.Dataset.from_tensors(b"").map(tf.io.decode_png)
    assert failure(broken) is None
