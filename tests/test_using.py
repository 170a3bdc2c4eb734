# SPDX-License-Identifier: Apache-2.0
"""Predictions and features: every image a row, right, and nothing lost."""

import csv
import importlib.util
import os
import pathlib
import shutil

import keras
import numpy as np
import pytest
from conftest import clean_view
from conftest import make_finished_run
from PIL import Image

import main
from noisy_student import command_line
from noisy_student import files
from noisy_student.config import Config
from noisy_student.data import folder_sources
from noisy_student.errors import UserError
from noisy_student.outputs import predictions
from noisy_student.workdir import Workdir

pytestmark = pytest.mark.usefixtures("one_block")

# Names that are formulas, Markdown, HTML; seven, so that two are left out.
CLASSES = ("=1+1", "a,b", 'c"d', "<b>", "-2", "ü", "@x")
NAMES = (
    b"=cmd().jpg",
    b"a\nb.png",
    b'quo"te,comma.png',
    b"not utf-8 \xff.PNG",
    "日本.png".encode(),
    b"album [1]/deep/-x.png",
)


@pytest.fixture(scope="module")
def workdir(one_block, tmp_path_factory):
    return make_finished_run(tmp_path_factory.mktemp("runs") / "run", CLASSES)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder as strangers have it, and the bytes of its good images."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number, name in enumerate(NAMES):
        path = os.path.join(os.fsencode(root), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        size = (10 + number, 12, 3)
        pixels = rng.integers(0, 256, size).astype(np.uint8)
        with open(path, "wb") as file:
            Image.fromarray(pixels).save(file, format="PNG")
    (root / "empty.jpg").touch()
    (root / "text.png").write_text("no image")
    (root / "notes.txt").write_text("no image, and not called one")
    shutil.copy(root / "=cmd().jpg", root / ".hidden.jpg")
    (root / "album [1]" / "loop").symlink_to("..")
    (root / "lost.png").symlink_to("nowhere")
    return root


def run(*arguments):
    return main.main(["main.py", *map(str, arguments)])


def predict(workdir, path, output, *arguments):
    return run(
        "--mode=predict",
        f"--workdir={workdir}",
        f"--input={path}",
        f"--output={output}",
        *arguments,
    )


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def expected_answers(workdir, names, layer=None):
    """What the network says to each image alone."""
    network = keras.saving.load_model(workdir.model(0), compile=False)
    if layer:
        network = keras.Model(network.input, network.get_layer(layer).output)
    view = clean_view(16)
    pixels = np.stack([view(path.read_bytes(), 0) for path in names])
    return np.asarray(network(pixels))


@pytest.fixture(scope="module")
def predicted(workdir, images, tmp_path_factory):
    """Rows of a table of all images, made by the command."""
    output = tmp_path_factory.mktemp("predicted") / "new folder" / "p.csv"
    assert predict(workdir, images, output) == 0
    assert [path.name for path in output.parent.iterdir()] == ["p.csv"]
    rows = rows_of(output)
    # No line of the file is torn by a name.
    assert len(output.read_text("utf-8").splitlines()) == len(rows) + 1
    return rows


def test_every_file_has_its_row(predicted, images):
    source = folder_sources.images_at(images)
    assert [row["file"] for row in predicted] == [
        source.example_name(0, k) for k in range(len(NAMES) + 2)
    ]
    assert list(predicted[0]) == predictions.header(5)
    broken = [row for row in predicted if row["error"]]
    assert [pathlib.Path(row["file"]).name for row in broken] == [
        "empty.jpg",
        "text.png",
    ]
    for row in broken:
        assert not any(row[name] for name in predictions.header(5)[1:-1])


def test_probabilities_are_those_of_evaluation(predicted, workdir, images):
    row = next(row for row in predicted if "=cmd()" in row["file"])
    (logits,) = expected_answers(workdir, [images / "=cmd().jpg"])
    probs = np.exp(logits) / np.exp(logits).sum()
    assert probs.max() - probs.min() > 0.1, "the network cannot tell"
    order = np.argsort(-probs)
    for place in range(5):
        name = row[f"class_{place + 1}"].removeprefix("'")
        assert name == CLASSES[order[place]]
        np.testing.assert_allclose(
            float(row[f"probability_{place + 1}"]), probs[order[place]], 1e-4
        )


def test_a_spreadsheet_computes_nothing():
    assert files.csv_cell("=1+1") == "'=1+1"
    assert files.csv_cell("@x") == "'@x"
    assert files.csv_cell("\tx") == "'\tx"
    assert files.csv_cell("-2") == "-2"  # it is what it shows
    assert files.csv_cell("cat") == "cat"
    assert files.csv_cell(np.float32(0.1)) == "0.1"
    assert files.csv_cell(None) == ""


def test_few_classes_and_ties(tmp_path):
    probs = np.array([[0.25, 0.5, 0.25], [np.nan] * 3], np.float32)
    parts = [(["a", "b"], probs, [None, "broken"])]
    path = tmp_path / "p.csv"
    predictions.write_predictions(path, parts, ("x", "y", "z"))
    assert path.read_text().splitlines() == [
        "file,class_1,probability_1,class_2,probability_2,class_3,"
        "probability_3,error",
        "a,y,0.5,x,0.25,z,0.25,",
        "b,,,,,,,broken",
    ]


def test_probabilities_in_csv_are_rounded(tmp_path):
    probs = np.array([[0.1, 2 / 3, 1e-9, 0.23333]], np.float32)
    path = tmp_path / "p.csv"
    predictions.write_predictions(path, [(["a"], probs, [None])], tuple("wxyz"))
    row = path.read_text().splitlines()[1]
    assert row == "a,x,0.666667,z,0.23333,w,0.1,y,0.0,"


def test_a_table_that_is_stopped_is_no_table(tmp_path):
    def parts():
        yield ["a"], np.ones((1, 2), np.float32) / 2, [None]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predictions.write_predictions(tmp_path / "p.csv", parts(), ("x", "y"))
    assert not list(tmp_path.iterdir())


def test_parquet_holds_the_names_as_they_are(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    probs = np.array([[0.1, 0.9], [np.nan] * 2], np.float32)
    parts = [(["=a", "b"], probs, [None, "broken"])] * 2
    path = tmp_path / "p.Parquet"
    predictions.write_predictions(path, parts, ("=1+1", "y"))
    table = parquet.read_table(path)
    assert table.column_names == predictions.header(2)
    assert table.to_pydict() == {
        "file": ["=a", "b"] * 2,
        "class_1": ["y", None] * 2,
        "probability_1": [float(np.float32(0.9)), None] * 2,
        "class_2": ["=1+1", None] * 2,
        "probability_2": [float(np.float32(0.1)), None] * 2,
        "error": [None, "broken"] * 2,
    }


def test_parquet_says_what_is_missing(workdir, images, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name == "pyarrow" else find(name, *more),
    )
    assert predict(workdir, images, images / "p.parquet") == 2
    assert "pip install pyarrow" in capsys.readouterr().err


def test_features_are_what_the_last_layer_classifies(
    workdir, images, tmp_path, capsys
):
    # Anywhere, and by default in the workdir, where it may be made anew.
    copy = Workdir(shutil.copytree(workdir.path, tmp_path / "elsewhere"))
    (copy.path / "features.npy").write_text("old")
    before = (copy.path / "run.flags").read_text()
    assert run("--mode=embed", f"--workdir={copy}", f"--input={images}") == 0
    assert (copy.path / "run.flags").read_text() == before
    features = np.load(copy.path / "features.npy", mmap_mode="r")
    rows = rows_of(copy.path / "features.files.csv")
    assert features.dtype == np.float32 and len(features) == len(rows) == 8
    failed = np.array([bool(row["error"]) for row in rows])
    assert failed.sum() == 2
    np.testing.assert_array_equal(np.isnan(features).all(axis=1), failed)
    np.testing.assert_array_equal(np.isnan(features).any(axis=1), failed)
    number = [row["file"].endswith("日本.png") for row in rows].index(True)
    # The last feature map, averaged by hand.
    maps = expected_answers(workdir, [images / "日本.png"], "top_activation")
    np.testing.assert_allclose(
        features[number], maps[0].mean(axis=(0, 1)), rtol=1e-4, atol=1e-5
    )
    out = capsys.readouterr().out
    assert f"{features.shape[1]} features" in out
    assert "8 rows, 2 of them without an answer" in out
    # lost.png, a link that leads nowhere.
    assert "Left out: 1 file that cannot be read as image" in out
    # Whoever forgets --workdir asks another run's model.
    assert f"with the teacher of {copy} (b0 at 16 pixels)" in out


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a/x.png", ["a/x.png"]),
        ("a/noext", ["a/noext"]),
        ("a/.hidden.png", ["a/.hidden.png"]),
        ("a", ["a/b/y.png", "a/x.png"]),
        ("*", ["a/b/y.png", "a/x.png", "c.jpg", "w[1].png"]),
        ("**", ["a/b/y.png", "a/x.png", "c.jpg", "w[1].png"]),
        ("**/*.png", ["a/b/y.png", "a/x.png", "w[1].png"]),
        ("?/?.*", ["a/x.png"]),
        ("[ac]*", ["a/b/y.png", "a/x.png", "c.jpg"]),
        ("a/.h*", ["a/.hidden.png"]),
        ("w[1].png", ["w[1].png"]),  # it exists, so it is no pattern
    ],
)
def test_inputs(tmp_path, pattern, expected):
    for name in ("a/x.png", "a/b/y.png", "c.jpg", "a/.hidden.png", "a/noext",
                 "w[1].png", ".git/z.png", "a/readme.txt"):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (tmp_path / "a" / "b" / "loop").symlink_to("..")
    (tmp_path / "dead.png").symlink_to("nowhere")
    source = folder_sources.images_at(tmp_path / pattern)
    found = [source.example_name(0, k) for k in range(source.num_examples)]
    assert found == [str(tmp_path / name) for name in expected]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--input=missing.png", "--output=p.csv"], "missing.png is missing"),
        (["--input=*.tif", "--output=p.csv"], "matches no image"),
        (["--input=empty", "--output=p.csv"], "holds no image"),
        (["--input=**x", "--output=p.csv"], "'**'"),
        (["--output=p.csv"], "--input"),
        (["--input=image.png", "--output=p.txt"], "in .csv or .parquet"),
        (["--input=image.png", "--output=p"], "in .csv or .parquet"),
        (["--input=image.png", "--output=mine.csv"], "--force"),
        (["--input=image.png", "--output=folder.csv", "--force"], "folder"),
        (["--input=image.png", "--iteration=3"], "there is no student 3"),
        (["--input=image.png", "--workdir=none"],
         "no teacher to predict with in none, which does not exist: make it"),
        (["--input=image.png", "--mode=embed", "--output=f.npz"], ".npy"),
        (["--input=image.png", "--mode=embed", "--output=f.npy"],
         "f.files.csv exists"),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_any_work(
    workdir, tmp_path, monkeypatch, capsys, arguments, named
):
    monkeypatch.chdir(tmp_path)
    for name in ("mine.csv", "f.files.csv", "image.png"):
        pathlib.Path(name).write_text("mine")
    for name in ("empty", "folder.csv"):
        pathlib.Path(name).mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert run("--mode=predict", f"--workdir={workdir}", *arguments) == 2
    message = capsys.readouterr().err
    assert named in message and message.count("\n") == 1, message
    assert sorted(tmp_path.rglob("*")) == before
    assert pathlib.Path("mine.csv").read_text() == "mine"


def test_what_one_command_does_is_not_remembered():
    config = Config(force=True, input="x", output="y", mode="predict")
    text = command_line.write_run_flags(config, "run.flags")
    assert not any(f"--{name}=" in text for name in command_line.OF_ONE_COMMAND)


def test_half_a_workdir_is_refused(workdir, images, tmp_path, capsys):
    copy = Workdir(shutil.copytree(workdir.path, tmp_path / "run"))
    output = tmp_path / "p.csv"
    output.write_text("mine")
    (copy.path / "data.json").unlink()
    assert predict(copy, images, output, "--force") == 0
    assert "named by their numbers" in capsys.readouterr().out
    assert rows_of(output)[0]["class_1"].isdigit()

    copy.write_data({"classes": ["a", "b"]})
    assert predict(copy, images, output, "--force") == 2
    assert "7 classes" in capsys.readouterr().err

    shutil.copy(workdir.path / "data.json", copy.path)
    content = copy.model(0).read_bytes()
    copy.model(0).write_bytes(content[: len(content) // 2])
    assert predict(copy, images, output, "--force") == 2
    assert "is damaged" in capsys.readouterr().err

    copy.model(0).write_bytes(content)
    (copy.path / "run.flags").unlink()
    assert predict(copy, images, output, "--force") == 2
    assert "copy the whole folder" in capsys.readouterr().err


def test_weights_need_no_run(workdir, images, predicted, tmp_path, capsys):
    network = keras.saving.load_model(workdir.model(0), compile=False)
    weights = tmp_path / "tiny.weights.h5"
    network.save_weights(weights)
    flags = (
        f"--init_from={weights}", "--width=0.1", "--depth=0.1",
        "--image_size=16", "--small_images", "--crop=padded",
        "--num_classes=7",
    )  # fmt: skip
    nowhere = tmp_path / "nowhere"
    assert predict(nowhere, images, tmp_path / "p.csv", *flags) == 0
    assert not nowhere.exists()
    numbers = [row["class_1"] for row in rows_of(tmp_path / "p.csv")]
    assert [number and CLASSES[int(number)] for number in numbers] == [
        row["class_1"].removeprefix("'") for row in predicted
    ]
    capsys.readouterr()
    assert run(
        "--mode=predict", f"--workdir={nowhere}", f"--input={images}", *flags
    ) == 2  # fmt: skip
    assert "--output" in capsys.readouterr().err


def test_a_run_keeps_its_classes(workdir, tmp_path):
    copy = Workdir(shutil.copytree(workdir.path, tmp_path / "run"))
    data = copy.data()
    copy.write_data({**data, "unlabeled": {"name": "more"}})
    assert copy.data()["unlabeled"] == {"name": "more"}
    with pytest.raises(UserError, match="another --workdir"):
        copy.write_data({**data, "classes": ["cat", "dog"]})
    # Nothing was trained: what failed may be mended.
    shutil.rmtree(copy.iteration(0))
    copy.write_data({**data, "classes": ["cat", "dog"]})
    assert copy.data()["classes"] == ["cat", "dog"]
