# SPDX-License-Identifier: Apache-2.0
"""The worked examples of the documents run as they stand there."""

import csv
import importlib.util
import json
import pathlib
import re
import shlex

import keras
import numpy as np
import pytest
from conftest import REPOSITORY
from conftest import clean_view
from conftest import make_finished_run

import main
from noisy_student.outputs import formats

pytestmark = pytest.mark.usefixtures("one_block")


def blocks_of(page, begin, languages):
    """The code below a title, as pairs of language and text."""
    text = (REPOSITORY / "docs" / page).read_text()
    text = text[text.index(begin) :]
    return [
        (language, code)
        for language, code in re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL)
        if language in languages
    ]


def execute(code):
    known = {}
    exec(compile(code, "example", "exec"), known)
    return known


@pytest.fixture
def digits_run(tmp_path, monkeypatch):
    """A current folder with a run on the digits, which has learned nothing."""
    monkeypatch.chdir(tmp_path)
    return make_finished_run(tmp_path / "runs" / "digits", "0123456789")


def test_features_for_catboost(digits_run, capsys):
    if importlib.util.find_spec("catboost") is None:
        pytest.skip("catboost is not installed: requirements-examples.txt")
    blocks = blocks_of("features.md", "## Worked example", ("bash", "python"))
    assert [language for language, _ in blocks] == [
        "bash", "python", "bash", "python",
    ]  # fmt: skip
    assert blocks[0][1] == "python main.py\n"  # which `digits_run` stands for
    execute(blocks[1][1])
    for line in blocks[2][1].splitlines():
        assert main.main(shlex.split(line)[1:]) == 0
    known = execute(blocks[3][1].replace("iterations=200", "iterations=5"))
    assert known["features"].shape[0] == 50
    assert known["test_features"].shape[0] == 500
    assert set(known["labels"]) == set("0123456789")
    # Even of a network that has learned nothing, features tell digits apart.
    assert known["accuracy"] > 0.2
    assert "50 labels" in capsys.readouterr().out


def test_the_labels_of_the_example_are_those_of_the_images(digits_run):
    blocks = blocks_of("features.md", "## Worked example", ("bash", "python"))
    execute(blocks[1][1])
    names = [path.parent.name for path in pathlib.Path().rglob("labeled/*/*")]
    assert sorted(names) == sorted("0123456789" * 5)
    main.main(shlex.split(blocks[2][1].splitlines()[0])[1:])
    with open("runs/labeled.files.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 50


@pytest.mark.parametrize("crop", ["resized", "padded"])
def test_exported_models_in_use(tmp_path, monkeypatch, crop):
    workdir = make_finished_run(tmp_path / "run", "abc")
    network = keras.saving.load_model(workdir.model(0), compile=False)
    monkeypatch.chdir(tmp_path)
    facts = {"model": {"image_size": 16, "crop": crop}}
    pathlib.Path("export.json").write_text(json.dumps(facts))
    photo = formats.example_images(16)[1]
    pathlib.Path("photo.jpg").write_bytes(photo)
    blocks = blocks_of("export.md", "## Inputs", ("python",))
    assert len(blocks) == 1 + len(formats.FORMATS)
    view = clean_view(16, crop)
    pixels = execute(blocks[0][1])["pixels"]
    np.testing.assert_array_equal(pixels[0], np.asarray(view(photo, 0)))
    if crop == "padded":
        return  # the same files
    expected = np.asarray(network(pixels))
    portable = formats.portable(network)
    for (_, code), spec in zip(
        blocks[1:], formats.FORMATS.values(), strict=True
    ):
        if spec.missing_tools():
            continue
        spec.write(portable, spec.file, view=view, class_names="abc")
        for count in (1, 3):
            known = {"pixels": np.repeat(pixels, count, axis=0)}
            exec(compile(code, "export.md", "exec"), known)
            if "answer" in known:
                logits = known["answer"]["logits"].numpy()
            else:
                logits = known["logits"]
                assert logits.shape == (count, 3)
            assert formats.compare(logits[:1], expected) < 1e-5
