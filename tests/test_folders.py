# SPDX-License-Identifier: Apache-2.0
"""What lies in folders is taken, refused, or named and counted."""

import io
import os
import unicodedata

import numpy as np
import pytest
from PIL import Image
from test_sources import contents
from test_sources import fails
from test_sources import jpeg
from test_sources import names
from test_sources import write

import main
from noisy_student.data import decoding
from noisy_student.data import folder_sources
from noisy_student.data import imagenet_folders


def encoded(kind):
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 60)).save(stream, kind)
    return stream.getvalue()


@pytest.fixture
def pets(tmp_path):
    """Two classes of one image each."""
    for shade, name in enumerate(("cat", "dog")):
        write(tmp_path / "pets" / name / "1.jpg", jpeg(shade))
    return tmp_path / "pets"


READERS = {
    "class folders": folder_sources.class_folders,
    "a tree": folder_sources.image_folder,
    "input": folder_sources.images_at,
    "a glob": lambda path: folder_sources.images_at(path / "**" / "*"),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_clean_folder_has_nothing_to_tell(pets, reader, caplog):
    source = READERS[reader](pets)
    assert (source.num_examples, source.left_out) == (2, ())
    assert not caplog.text


# Folders of thumbnails and of deleted files


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "folder",
    [
        "@eaDir",
        "cat/@eaDir/1.jpg",
        "__MACOSX",
        "#recycle",
        "$RECYCLE.BIN",
        "lost+found",
        "System Volume Information",
        "Network Trash Folder",
        "found.000",
        "@tmp",
        "cat/@__thumb",
    ],
)
def test_folders_of_a_system_are_no_classes(pets, folder, reader):
    before = READERS[reader](pets)
    write(pets / folder / "SYNOPHOTO_THUMB_XL.jpg", jpeg(9))
    source = READERS[reader](pets)
    assert contents(source) == contents(before)
    assert source.class_names == before.class_names
    assert source.fingerprint == before.fingerprint
    if reader != "a glob":
        ((name, why),) = source.left_out
        assert name.lower() in str(pets / folder).lower()
        assert "system" in why


@pytest.mark.parametrize(
    "name",
    [
        ".thumbnails/1.jpg",
        ".ipynb_checkpoints/1-checkpoint.jpg",
        "cat/.picasaoriginals/1.jpg",
        "cat/._1.jpg",
        "cat/.DS_Store",
        "cat/Thumbs.db",
        "cat/desktop.ini",
        "cat/notes.txt",
        "cat/GOPR0001.THM",
        "readme.md",
    ],
)
def test_what_is_hidden_or_no_image_is_counted(pets, name, caplog):
    before = folder_sources.class_folders(pets)
    write(pets / name, b"BMW, a car")
    source = folder_sources.class_folders(pets)
    assert source.fingerprint == before.fingerprint
    assert source.left_out == ()
    (line,) = caplog.messages
    assert "ignoring 1 hidden or non-image file" in line


def test_an_evaluation_set_of_imagenet_may_have_thumbnails(tmp_path):
    first, second = imagenet_folders.synsets()[:2]
    for name in (first, second, "@eaDir"):
        write(tmp_path / "train" / name / "1.JPEG", jpeg())
    source = imagenet_folders.folders_source(
        tmp_path, "train", {"train": os.fsencode(tmp_path / "train")}, True
    )
    assert source.num_examples == 2
    assert len(source.left_out) == 1


# Names of files


NAMES = dict(
    [
        *((f"x.{e}", "JPEG") for e in "jfif jpe jif jfi pjpeg pjp".split()),
        ("x.JFIF", "JPEG"),
        ("x.apng", "PNG"),
        ("x.dib", "BMP"),
        ("IMG.JPG.webp", "WEBP"),
        ("IMG.webp.jpg", "WEBP"),
        # By what they begin with:
        ("IMG_0001", "JPEG"),
        ("photo.jpg?w=640", "PNG"),
        ("photo.jpg.1", "JPEG"),
        ("12.11.2019", "GIF"),
        ("scan", "BMP"),
        ("web", "WEBP"),
        ("photo.jpg_large", "JPEG"),
        ("stereo.mpo", "JPEG"),
    ]
)


@pytest.mark.parametrize("reader", READERS)
def test_what_can_be_decoded_is_taken(pets, reader):
    for name, kind in NAMES.items():
        write(pets / "cat" / name, encoded(kind))
    source = READERS[reader](pets)
    images = dict(zip(names(source), contents(source), strict=True))
    for name in NAMES:
        image = decoding.decode(images[str(pets / "cat" / name)][0]).numpy()
        assert np.abs(image - np.array([200.0, 30, 60])).max() < 12, name
    assert len(images) == 2 + len(NAMES)


@pytest.mark.parametrize("reader", READERS)
def test_what_its_owner_takes_for_an_image_is_named(pets, reader):
    before = READERS[reader](pets)
    endings = (
        "heic heif avif tif TIFF tga psd cr2 CR3 nef arw dng jp2 j2k jxl svg "
        "pdf mp4 mov npy ico dcm ppm"
    ).split()
    paths = [str(pets / "cat" / f"x.{ending}") for ending in endings]
    for path in paths:
        write(path, b"II*\0")
    source = READERS[reader](pets)
    assert source.fingerprint == before.fingerprint
    assert dict(source.left_out) == dict.fromkeys(
        paths, "not read: convert it to JPEG or PNG"
    )
    assert len(source.left_out) == len(paths)


@pytest.mark.parametrize("ending", "part partial crdownload download".split())
def test_unfinished_downloads_are_named(pets, ending):
    write(pets / "cat" / f"x.jpg.{ending}", jpeg())
    ((_, why),) = folder_sources.class_folders(pets).left_out
    assert why == "an unfinished download"


def test_images_beside_the_class_folders_are_named(pets):
    write(pets / "x.jfif", jpeg())
    ((name, why),) = folder_sources.class_folders(pets).left_out
    assert (name, why) == (str(pets / "x.jfif"), "beside the class folders")


@pytest.mark.parametrize("reader", ["class folders", "a tree", "a glob"])
def test_a_folder_of_unreadable_images_says_so(tmp_path, reader):
    for name in ("a/1.heic", "a/2.heic", "b/1.jpg"):
        write(tmp_path / name, jpeg())
    path = tmp_path if reader == "class folders" else tmp_path / "a"
    with fails("no image", "2 files such as 1.heic", "convert it to JPEG"):
        READERS[reader](path)


def test_a_pipe_without_ending_is_not_waited_for(pets):
    os.mkfifo(pets / "cat" / "pipe")
    assert folder_sources.class_folders(pets).num_examples == 2


# Names of classes


def test_an_accent_is_one_class_however_it_is_stored(tmp_path):
    """macOS stores NFD, everything else NFC."""
    sources = []
    for form in ("NFC", "NFD"):
        for shade, name in enumerate(("café", "cafe\u0301s"[:4] + "t", "Übel")):
            folder = unicodedata.normalize(form, name)
            write(tmp_path / form / folder / "1.jpg", jpeg(shade))
        sources.append(folder_sources.class_folders(tmp_path / form))
    composed, decomposed = sources
    assert composed.class_names == decomposed.class_names
    assert sorted(contents(composed)) == sorted(contents(decomposed))
    assert all(
        unicodedata.is_normalized("NFC", n) for n in composed.class_names
    )


@pytest.mark.parametrize("name", ["cat ", " cat", "cat  "])
def test_spaces_at_the_end_are_no_part_of_a_name(tmp_path, name):
    write(tmp_path / name / "1.jpg", jpeg())
    write(tmp_path / "dog" / "1.jpg", jpeg())
    source = folder_sources.class_folders(tmp_path)
    assert source.class_names == ("cat", "dog")


@pytest.mark.parametrize(
    "one, other",
    [("caf\u00e9", "cafe\u0301"), ("cat", "cat "), ("a b", "a  b")],
)
def test_two_folders_of_one_name_are_refused(pets, one, other):
    for name in (one, other):
        write(pets / name / "1.jpg", jpeg())
    with fails("two folders whose names look the same", "into one"):
        folder_sources.class_folders(pets)


def test_classes_that_differ_in_case_alone_are_told(pets, caplog):
    write(pets / "Cat" / "1.jpg", jpeg())
    source = folder_sources.class_folders(pets)
    assert source.class_names == ("Cat", "cat", "dog")
    assert "Cat and cat differ in case alone" in caplog.text


# One folder too high


@pytest.mark.parametrize(
    "paths, way_out",
    [
        (["eval/cat", "eval/dog", "labeled/cat", "unlabeled"], "labeled"),
        (["train/cat", "train/dog", "val/cat"], "train"),
        (["train/cat", "test/cat", "readme"], "train"),
        (["Training/cat", "Validation/cat"], "Training"),
        (["train2017/cat", "val2017/cat", "extra/cat"], "train2017"),
        (["train/cat", "test"], "train"),
        (["images", "masks"], "images"),
        (["images/cat", "annotations/cat"], "images"),
        (["labelled/cat", "unlabelled"], "labelled"),
        (["train_images/cat", "test_images/cat"], "train_images"),
        (["training/cat", "holdout/cat"], "training"),
        (["fold1/cat", "fold2/cat"], "fold1"),
    ],
)
@pytest.mark.parametrize("evaluation", [False, True])
def test_parts_of_a_data_set_are_no_classes(
    tmp_path, paths, way_out, evaluation
):
    for path in paths:
        write(tmp_path / path / "1.jpg", jpeg())
    words = ["which are no classes", "rename them"]
    if not evaluation:
        words.append(f"--labeled_dir={tmp_path / way_out},")
    with fails(*words):
        folder_sources.class_folders(tmp_path, evaluation=evaluation)


@pytest.mark.parametrize("inner", ["photos", "images", "train", "archive-main"])
@pytest.mark.parametrize("beside", ["__MACOSX/x.jpg", "readme.txt"])
def test_a_folder_around_the_classes(tmp_path, inner, beside):
    for name in ("cat", "dog"):
        write(tmp_path / inner / name / "1.jpg", jpeg())
    write(tmp_path / beside, jpeg())
    with fails("only one class folder", f"--labeled_dir={tmp_path / inner} if"):
        folder_sources.class_folders(tmp_path)


@pytest.mark.parametrize(
    "classes", [("train", "bus"), ("test", "x-ray"), ("data", "voice")]
)
def test_classes_may_be_called_so(tmp_path, classes):
    for name in classes:
        write(tmp_path / name / "1.jpg", jpeg())
    source = folder_sources.class_folders(tmp_path)
    assert source.class_names == tuple(sorted(classes))


def test_classes_of_classes_are_told(tmp_path, caplog):
    for name in ("animal/cat", "animal/dog", "vehicle/bus"):
        write(tmp_path / name / "1.jpg", jpeg())
    source = folder_sources.class_folders(tmp_path)
    assert source.class_names == ("animal", "vehicle")
    assert "all below animal, such as" in caplog.text
    assert str(tmp_path / "animal" / "cat") in caplog.text
    assert "if these are the classes" not in caplog.text


def test_classes_in_parts_of_any_name_are_told(tmp_path, caplog):
    for part in ("gallery", "query"):
        for name in ("cat", "dog", "owl"):
            write(tmp_path / part / name / "1.jpg", jpeg())
    folder_sources.class_folders(tmp_path)
    assert "all classes have cat, dog, owl below them" in caplog.text
    assert f"give a folder such as {tmp_path / 'gallery'}" in caplog.text


# What a command says


def command(capsys, *arguments):
    """Exit code, and what is printed."""
    code = main.main(["main.py", "--width=0.1", "--depth=0.1", *arguments])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


@pytest.mark.parametrize(
    "unlabeled, labeled, evaluation, message",
    [
        ("pets", "pets", "", "--unlabeled_dir={0}/pets is --labeled_dir="),
        ("", "pets", "eval", "--labeled_dir={0}/pets lies in --unlabeled_dir"),
        ("more", "pets", "more", "--unlabeled_dir={0}/more is --eval_dir="),
        ("pets/cat", "pets", "", "--unlabeled_dir={0}/pets/cat lies in --lab"),
        ("more", "pets", "pets/cat", "--eval_dir={0}/pets/cat lies in --lab"),
        ("link", "pets", "", "--unlabeled_dir={0}/link is --labeled_dir="),
    ],
)
def test_folders_that_lie_in_each_other_are_refused(
    pets, capsys, unlabeled, labeled, evaluation, message
):
    root = pets.parent
    for name in ("more/a", "more/b", "eval/cat", "eval/dog"):
        write(root / name / "1.jpg", jpeg())
    (root / "link").symlink_to(pets)
    flags = [
        f"--labeled_dir={root}/{labeled}",
        f"--unlabeled_dir={root}/{unlabeled}",
        f"--workdir={root}/run",
    ]
    if evaluation:
        flags.append(f"--eval_dir={root}/{evaluation}")
    code, said = command(capsys, "--mode=teach", *flags)
    assert code == 2
    assert message.format(root) in said
    assert not (root / "run").exists()
