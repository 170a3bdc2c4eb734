# SPDX-License-Identifier: Apache-2.0
"""No image crashes a run, fills the memory or shifts a label."""

import contextlib
import csv
import io
import os

import hostile_images
import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import REPOSITORY
from conftest import clean_view
from PIL import Image
from test_end_to_end import save_images

import main
from noisy_student.data import decoding
from noisy_student.data import folder_sources
from noisy_student.data import preprocessing
from noisy_student.data import undecodable

# The message may hold some bytes of the image, which are no text.
REFUSED = (tf.errors.OpError, UnicodeDecodeError)
KINDS = hostile_images.kinds()
# Names that a shell, a terminal, a spreadsheet or a browser would trip over.
NAMES = [
    b"a space",
    b"new\nline",
    b"\xff\xfe no text",
    b"<script>alert(1)</script>"[:-9],
    b"-rf",
    b"=cmd()",
    b"a,comma 'and' \"quotes\"",
    b"[*]?{}$HOME",
    b"x" * 240,
    "übergröße 猫 😀".encode(),
    "\u202ereversed".encode(),
    b"\x1b[31mred",
]


def test_there_are_enough_kinds():
    whole = [kind for kind, (_, _, size) in KINDS.items() if size]
    assert len(KINDS) >= 100 and len(whole) >= 50


@pytest.fixture(scope="module")
def readers():
    """How evaluation and training read images, each traced once."""
    specification = [tf.TensorSpec([], tf.string)]

    def graph(function):
        return tf.function(function, input_signature=specification)

    return [
        graph(decoding.decode),
        graph(lambda image: preprocessing.center_crop(image, 32)),
        graph(
            lambda image: preprocessing.random_resized_crop(
                image, 32, seed=[3, 4]
            )
        ),
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_decoded_or_refused(readers, kind):
    content, _, size = KINDS[kind]
    decode, evaluated, trained = readers
    if size is None:
        for reader in (decode, evaluated):
            with pytest.raises(REFUSED):
                reader(content)
        # A window may lie before the place where a file is cut off; what has
        # too many pixels never comes here.
        if kind not in hostile_images.too_large():
            with contextlib.suppress(*REFUSED):
                assert trained(content).shape == (32, 32, 3)
        return
    assert evaluated(content).shape == trained(content).shape == (32, 32, 3)
    image = decode(content).numpy()
    assert image.shape == (*size, 3)
    # Pillow cuts 16 bits off instead of scaling them.
    if "16 bits" not in kind:
        seen = Image.open(io.BytesIO(content)).convert("RGBA")
        white = Image.new("RGBA", seen.size, "white")
        white.alpha_composite(seen)
        expected = np.asarray(white.convert("RGB"))
        error = np.abs(image - expected.astype(int)).mean()
        assert error < 3, f"off by {error} on average"


@pytest.mark.parametrize("kind", hostile_images.too_large())
def test_too_many_pixels_are_refused_before_they_are_decoded(readers, kind):
    # Training reads what the others have accepted; JPEGs are looked at again.
    for reader in readers if kind.startswith("jpeg") else readers[:2]:
        with pytest.raises(tf.errors.InvalidArgumentError, match="pixels"):
            reader(KINDS[kind][0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All kinds under all names, and what else a folder may hold."""
    root = os.fsencode(tmp_path_factory.mktemp("hostile") / "all")
    os.mkdir(root)
    for number, (content, extension, _) in enumerate(KINDS.values()):
        name = b"%03d " % number + NAMES[number % len(NAMES)]
        path = os.path.join(root, name + b"." + extension.encode())
        with open(path, "wb") as file:
            file.write(content)
    os.symlink(root, os.path.join(root, b"zz loop"))
    os.symlink(b"zz itself.jpg", os.path.join(root, b"zz itself.jpg"))
    os.symlink(b"zz nothing", os.path.join(root, b"zz dangling.jpg"))
    os.mkdir(os.path.join(root, b"zz folder.jpg"))
    os.mkfifo(os.path.join(root, b"zz pipe.jpg"))
    with open(os.path.join(root, b"zz sparse.jpg"), "wb") as file:
        file.truncate(2**40)
    with open(os.path.join(root, b"zz phone.HEIC"), "wb") as file:
        file.write(b"\0\0\0\x20ftypheic")
    return root


def kinds_in_order(source):
    """(content, ending, size) of each image, which comes by a hash."""
    kinds = list(KINDS.values())
    rows = range(source.num_examples)
    paths = [source.example_name(0, row) for row in rows]
    return [kinds[int(os.path.basename(path)[:3])] for path in paths]


def test_every_file_of_a_folder_is_named_with_its_reason(folder):
    source = folder_sources.image_folder(folder)
    assert source.num_examples == len(KINDS)
    found = undecodable.find(source, decoding.decode)
    broken = [
        (0, row)
        for row, (_, _, size) in enumerate(kinds_in_order(source))
        if size is None
    ]
    assert list(found) == broken
    for reason in found.values():
        assert reason.isprintable() and 5 < len(reason) <= 200, reason
    left_out = {os.path.basename(name): why for name, why in source.left_out}
    assert left_out == {
        "zz dangling.jpg": "a link that leads nowhere",
        "zz itself.jpg": "a link that leads nowhere",
        "zz pipe.jpg": "not a file but a device",
        "zz phone.HEIC": "not read: convert it to JPEG or PNG",
        "zz sparse.jpg": "larger than 1 GB",
    }


@pytest.mark.slow
@pytest.mark.usefixtures("one_block")
def test_a_run_labels_what_is_whole_and_lists_the_rest(folder, tmp_path):
    for number, name in enumerate(("<b>cat<", "=dog")):
        color = (200 * number, 99, 200 - 200 * number)
        for role in ("labeled", "eval"):
            save_images(tmp_path / role / name, color, 4, number)
    workdir = tmp_path / "run"
    arguments = (
        f"--flagfile={REPOSITORY / 'flags' / 'smoke.flags'}",
        "--dataset=",
        f"--labeled_dir={tmp_path / 'labeled'}",
        f"--unlabeled_dir={os.fsdecode(folder)}",
        f"--eval_dir={tmp_path / 'eval'}",
        f"--workdir={workdir}",
        "--train_steps=2",
        "--batch_size=4",
        "--eval_batch_size=16",
        "--force",
    )
    for mode in ("teach", "label"):
        assert main.main(["main.py", *arguments, f"--mode={mode}"]) == 0
    (path,) = (workdir / "iteration_1" / "labels").glob("probs-*.npy")
    probs = np.load(path)
    network = keras.saving.load_model(
        workdir / "iteration_0" / "model.keras", compile=False
    )
    view = clean_view(network.input_shape[1])
    source = folder_sources.image_folder(folder)
    for row, (content, _, size) in enumerate(kinds_in_order(source)):
        if size is None:
            assert np.isnan(probs[row]).all()
            continue
        image = view(content, [0, 0])[tf.newaxis]
        expected = keras.ops.softmax(network(image))[0]
        np.testing.assert_allclose(probs[row], expected, atol=2e-3)
    with open(workdir / "skipped.csv", newline="", encoding="utf-8") as file:
        skipped = list(csv.DictReader(file))
    broken = [row for row, kind in enumerate(KINDS.values()) if kind[2] is None]
    rows = [os.path.basename(line["file"])[:3] for line in skipped]
    assert sorted(rows) == [f"{row:03d}" for row in broken] + ["zz "] * 5
    assert all(line["images"] == "unlabeled" for line in skipped)
    assert all(
        line["reason"] and line["file"].isprintable() for line in skipped
    )
