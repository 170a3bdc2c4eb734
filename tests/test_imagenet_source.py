# SPDX-License-Identifier: Apache-2.0
"""ImageNet is found in every form in which people have it, or named."""

import io
import json
import os
import shutil
import socket
import tarfile

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from conftest import REPOSITORY
from PIL import Image
from test_sources import contents
from test_sources import example
from test_sources import fails
from test_sources import interleaved
from test_sources import names
from test_sources import write
from test_sources import write_records

import main
from noisy_student.data import folder_sources
from noisy_student.data import imagenet_folders
from noisy_student.data import imagenet_source

# First and last, and those of the first validation images.
SYNSETS = ("n01440764", "n01751748", "n09193705", "n15075141")
VALIDATION = ("n01751748", "n09193705", "n02105855")  # of images 1, 2, 3
TRAIN, VAL = imagenet_source.ARCHIVES


def picture(seed):
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


# {synset: {name of a file: its content}}
TRAIN_IMAGES = {
    synset: {f"{synset}_{n}.JPEG": picture(100 * k + n) for n in range(1, 6)}
    for k, synset in enumerate(SYNSETS)
}
VAL_IMAGES = {
    f"ILSVRC2012_val_{n:08}.JPEG": picture(1000 + n) for n in range(1, 4)
}


def tar(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def archives(folder):
    """As image-net.org gives them: a tar of tars, and a flat one."""
    inner = {f"{key}.tar": tar(images) for key, images in TRAIN_IMAGES.items()}
    write(folder / TRAIN, tar(inner))
    write(folder / VAL, tar(VAL_IMAGES))


def manual_archives(root):
    archives(root / "downloads" / "manual")


def folders(root):
    for synset, images in TRAIN_IMAGES.items():
        for name, content in images.items():
            write(root / "train" / synset / name, content)
    for name, content in VAL_IMAGES.items():
        write(root / "val" / name, content)


def sorted_folders(root):
    folders(root)
    for synset, name in zip(VALIDATION, VAL_IMAGES, strict=True):
        (root / "val" / synset).mkdir()
        (root / "val" / name).rename(root / "val" / synset / name)
    (root / "val").rename(root / "validation")


def kaggle(root):
    folders(root / "ILSVRC" / "Data" / "CLS-LOC")
    write(root / "LOC_val_solution.csv", b"ImageId,PredictionString\n")
    write(root / "ILSVRC/Data/CLS-LOC/test/ILSVRC2012_test_1.JPEG", b"")


def kaggle_inside(root):
    folders(root / "Data" / "CLS-LOC")


def records(root):
    """As Google's script writes them: shuffled, labels from 1."""
    number = {name: k + 1 for k, name in enumerate(imagenet_folders.synsets())}
    images = [
        example(content, number[synset])
        for synset, images in TRAIN_IMAGES.items()
        for content in images.values()
    ]
    np.random.default_rng(0).shuffle(images)
    root.mkdir(parents=True, exist_ok=True)
    for k in range(3):
        write_records(root / f"train-{k:05}-of-00003", images[k::3])
    pairs = zip(VAL_IMAGES.values(), VALIDATION, strict=True)
    images = [example(image, number[synset]) for image, synset in pairs]
    write_records(root / "validation-00000-of-00001", images)


def records_in_folders(root):
    records(root)
    for key in ("train", "validation"):
        paths = list(root.glob(f"{key}-*"))
        (root / key).mkdir()
        for path in paths:
            path.rename(root / key / path.name)


FORMS = (
    archives,
    manual_archives,
    folders,
    sorted_folders,
    kaggle,
    kaggle_inside,
    records,
    records_in_folders,
)
# Those that have the order of tensorflow-datasets too.
ORDERED = FORMS[:6]


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """A folder for each form; the archives are prepared, without a network."""

    def refuse(*arguments):
        raise AssertionError("somebody asks the network")

    made = {}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(socket.socket, "connect", refuse)
        for form in FORMS:
            made[form] = tmp_path_factory.mktemp(form.__name__)
            form(made[form])
            imagenet_source.imagenet_split(
                "train",
                labeled=True,
                data_dir=made[form],
                download="archives" in form.__name__,
            )
    return made


def labeled(root, split):
    return imagenet_source.imagenet_split(split, labeled=True, data_dir=root)


@pytest.fixture
def expected():
    """{split: sorted [(image, label)]}, made by hand."""
    number = {name: k for k, name in enumerate(sorted(all_synsets()))}
    pairs = zip(VAL_IMAGES.values(), VALIDATION, strict=True)
    return {
        "train": sorted(
            (content, number[synset])
            for synset, images in TRAIN_IMAGES.items()
            for content in images.values()
        ),
        "validation": sorted(
            (image, number[synset]) for image, synset in pairs
        ),
    }


def all_synsets():
    """As the builder of tensorflow-datasets knows them."""
    return (
        tfds.builder("imagenet2012", try_gcs=False).info.features["label"].names
    )


def test_classes_are_the_synsets_in_the_order_of_their_names():
    synsets = imagenet_folders.synsets()
    assert list(synsets) == sorted(synsets) == all_synsets()
    assert len(synsets) == 1000
    # Places of some in the 1000 outputs of released networks.
    assert synsets[0] == "n01440764"  # tench
    assert synsets[285] == "n02124075"  # Egyptian cat
    assert synsets[999] == "n15075141"  # toilet tissue


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_every_form_gives_the_same_images_and_labels(
    roots, expected, form, split
):
    source = labeled(roots[form], split)
    assert sorted(interleaved(source)) == expected[split]
    assert source.class_names == imagenet_folders.synsets()
    assert source.name == f"imagenet2012/{split}"
    assert len(set(names(source))) == len(expected[split])
    hidden = imagenet_source.imagenet_split(
        split, labeled=False, data_dir=roots[form]
    )
    assert hidden.class_names == ()
    images = [image for image, _ in expected[split]]
    assert sorted(interleaved(hidden)) == [(image, -1) for image in images]


@pytest.mark.parametrize(
    "split", ["train", "train[:30%]", "train[-3:]+validation[1:]", "validation"]
)
def test_folders_have_the_order_of_prepared_data(roots, split):
    first, *others = (contents(labeled(roots[form], split)) for form in ORDERED)
    assert all(other == first for other in others)
    assert len(first) == {"train": 20, "train[:30%]": 6}.get(
        split, 5 if "+" in split else 3
    )
    if split == "train":
        assert [label for _, label in first] != sorted(x for _, x in first)


@pytest.mark.parametrize("cut, size", [("25%", 5), ("2shard", 14)])
def test_parts_of_records(roots, expected, cut, size):
    first = contents(labeled(roots[records], f"train[:{cut}]"))
    rest = contents(labeled(roots[records], f"train[{cut}:]"))
    assert len(first) == size
    assert sorted(first + rest) == expected["train"]


@pytest.mark.parametrize(
    "form", [folders, kaggle, records], ids=lambda form: form.__name__
)
def test_fingerprints_tell_what_is_read_and_not_where(roots, form, tmp_path):
    copy = shutil.copytree(roots[form], tmp_path / "copy")
    splits = ("train", "train[:50%]", "train[50%:]", "validation")
    first = [labeled(roots[form], split).fingerprint for split in splits]
    assert first == [labeled(copy, split).fingerprint for split in splits]
    assert len(set(first)) == len(splits)


def test_forms_may_be_mixed(roots, expected, tmp_path):
    """As where somebody has written the training images alone to records."""
    for path in roots[records].glob("train-*"):
        shutil.copy(path, tmp_path)
    shutil.copytree(roots[folders] / "val", tmp_path / "val")
    for split in ("train", "validation"):
        found = contents(labeled(tmp_path, split))
        assert sorted(found) == expected[split]


def test_validation_images_as_they_come_are_an_eval_dir(roots, expected):
    root = roots[folders]
    source = imagenet_folders.labeled_folder(root / "val")
    assert sorted(contents(source)) == expected["validation"]
    assert source.class_names == imagenet_folders.synsets()
    shown = [os.path.basename(name) for name in names(source)]
    assert shown == sorted(VAL_IMAGES)
    # ... and nothing else is.
    for directory in (root / "train", roots[sorted_folders] / "validation"):
        plain = folder_sources.class_folders(directory)
        found = imagenet_folders.labeled_folder(directory)
        assert found.fingerprint == plain.fingerprint
    with fails("holds images directly"):
        imagenet_folders.labeled_folder(root / "train" / SYNSETS[0])
    with fails(f"--dataset=imagenet2012 --data_dir={roots[archives]} instead"):
        imagenet_folders.labeled_folder(roots[archives])


def test_what_is_not_of_imagenet_among_the_validation_images(tmp_path):
    folders(tmp_path)
    for name in ("cat.jpg", "ILSVRC2012_val_00050001.JPEG", "a\nb.png"):
        write(tmp_path / "val" / name, picture(0))
    write(tmp_path / "val" / "notes.txt", b"no image")
    for source in (
        labeled(tmp_path, "validation"),
        imagenet_folders.labeled_folder(tmp_path / "val"),
    ):
        assert source.num_examples == 3
        found = {os.path.basename(name): why for name, why in source.left_out}
        assert found == dict.fromkeys(
            ["cat.jpg", "ILSVRC2012_val_00050001.JPEG", r"a\nb.png"],
            "no validation image of ImageNet",
        )
    for path in (tmp_path / "val").glob("*_0000000*"):
        path.unlink()
    with fails("val has no image where ImageNet's should be"):
        labeled(tmp_path, "validation")
    with fails("holds images directly"):
        imagenet_folders.labeled_folder(tmp_path / "val")


def test_classes_without_images_are_told(roots, caplog):
    labeled(roots[folders], "train")
    assert "996 of ImageNet's 1000 classes have no image" in caplog.text


def test_a_folder_without_imagenet_is_told_what_belongs_there(tmp_path):
    root = tmp_path
    with fails(
        f"ImageNet is not in {root}: there is no {root}/imagenet2012/5.1.0 (of "
        f"tensorflow-datasets), no {root}/train/n01440764 or "
        f"{root}/ILSVRC/Data/CLS-LOC/train/n01440764 or "
        f"{root}/train-00000-of-01024, and no ILSVRC2012_img_train.tar with "
        f"ILSVRC2012_img_val.tar there or in {root}/downloads/manual; get "
        "these two from https://image-net.org/download-images and add "
        "--download, or give --data_dir=DIR"
    ):
        labeled(root, "train")


def only_training_images(root):
    shutil.rmtree(root / "val")


def no_split_of_that_name(root):
    pass


def a_file_less(root):
    records(root)
    (root / "train-00001-of-00003").unlink()


def a_file_of_another_set(root):
    records(root)
    write_records(root / "train-00000-of-00002", [])


def archives_of_classes(root):
    shutil.rmtree(root / "train")
    write(root / "train" / "n01440764.tar", tar(TRAIN_IMAGES["n01440764"]))


def another_class(root):
    write(root / "train" / "n00000001" / "n00000001_1.JPEG", picture(0))


def empty_classes(root):
    shutil.rmtree(root / "train")
    (root / "train" / "n01440764").mkdir(parents=True)


def only_archives(root):
    shutil.rmtree(root / "train")
    archives(root)


def one_archive(root):
    only_archives(root)
    (root / VAL).unlink()


def labels_from_zero(root):
    write_records(root / "train-00000-of-00001", [example(picture(0), 0)])


@pytest.mark.parametrize(
    "damage, split, words",
    [
        (
            only_training_images,
            "validation",
            ["ImageNet is not in"],
        ),
        (
            only_training_images,
            "train+validation",
            [
                "images of train, but not of validation: there is no ",
                "{root}/val or {root}/ILSVRC/Data/CLS-LOC/val or "
                "{root}/validation-00000-of-00128",
            ],
        ),
        (no_split_of_that_name, "test", ["'test'", "train, validation"]),
        (no_split_of_that_name, "train[:0]", ["'train[:0]'", "empty"]),
        (no_split_of_that_name, "train[a:]", ["'train[a:]'", "choose from"]),
        (a_file_less, "train", ["{root}/train-00001-of-00003 is missing"]),
        (
            a_file_of_another_set,
            "train",
            ["train-00000-of-00003 is one too many"],
        ),
        (
            archives_of_classes,
            "train",
            ["{root}/train/n01440764.tar is an archive", "unpack"],
        ),
        (another_class, "train", ["{root}/train/n00000001 is no class"]),
        (empty_classes, "train", ["{root}/train has no image", "n01440764/"]),
        (
            only_archives,
            "train",
            [
                "{root} holds the archives",
                "add --download",
                "{root}/imagenet2012/5.1.0",
            ],
        ),
        (
            one_archive,
            "train",
            ["{root}/ILSVRC2012_img_val.tar is missing", "image-net.org"],
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_incomplete_is_named(tmp_path, damage, split, words):
    folders(tmp_path)
    damage(tmp_path)
    with fails(*(word.replace("{root}", str(tmp_path)) for word in words)):
        labeled(tmp_path, split)


def test_labels_that_do_not_count_from_one(tmp_path):
    labels_from_zero(tmp_path)
    with pytest.raises(tf.errors.InvalidArgumentError, match="count from 0"):
        contents(labeled(tmp_path, "train"))


@pytest.mark.slow
@pytest.mark.usefixtures("one_block")
def test_imagenet_is_trained_on_and_evaluated(roots, tmp_path, capsys):
    """With the recipe's own names of the splits, folders as they unpack."""
    arguments = [
        "main.py",
        f"--flagfile={REPOSITORY / 'flags' / 'smoke.flags'}",
        "--dataset=imagenet2012",
        "--eval_split=validation",
        f"--data_dir={roots[folders]}",
        f"--workdir={tmp_path / 'run'}",
        "--train_steps=2",
        "--batch_size=4",
        "--unlabeled_split=train[50%:]",
        "--labeled_split=train[:50%]",
    ]
    assert main.main([*arguments, "--mode=plan"]) == 0
    printed = capsys.readouterr().out
    assert "imagenet2012/train[:50%]" in printed, printed
    assert main.main([*arguments, "--mode=teach"]) == 0
    data = json.loads((tmp_path / "run" / "data.json").read_text())
    assert data["classes"] == list(imagenet_folders.synsets())
    assert data["labeled"]["num_images"] == 10, data
    assert data["evaluation"]["num_images"] == 3, data
    assert data["unlabeled"] is None, data  # --mode=teach opens none
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results[-1]["num_examples"] == 3, results
