# SPDX-License-Identifier: Apache-2.0
"""Exported files return the network's logits, and wrong ones are not kept."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import clean_view
from conftest import make_finished_run

import main
from noisy_student import command_line
from noisy_student import exporting
from noisy_student import history
from noisy_student.files import replacing_folder
from noisy_student.models import efficientnet
from noisy_student.models.stochastic_depth import Dropout
from noisy_student.outputs import formats
from noisy_student.workdir import Workdir

pytestmark = pytest.mark.usefixtures("one_block")

CLASSES = ("cat", "dög", "|a*b|")


def run(*arguments):
    return main.main(["main.py", *map(str, arguments)])


@pytest.fixture(scope="module")
def workdir(one_block, tmp_path_factory):
    return make_finished_run(tmp_path_factory.mktemp("runs") / "run", CLASSES)


@pytest.fixture(scope="module")
def exported(workdir, tmp_path_factory):
    """A folder of an export. Of ONNX and TFLite: test_examples.py."""
    copy = tmp_path_factory.mktemp("copies") / "run"
    shutil.copytree(workdir.path, copy)
    old = copy / "iteration_0" / "export"
    old.mkdir()
    (old / "model.onnx").write_text("of another model")
    arguments = [f"--workdir={copy}", "--export_formats=savedmodel,keras"]
    assert run("--mode=export", *arguments) == 0
    return old


@pytest.fixture(scope="module")
def network(workdir):
    return keras.saving.load_model(workdir.model(0), compile=False)


@pytest.fixture(scope="module")
def images():
    return formats.example_images(16)


@pytest.fixture(scope="module")
def pixels(images):
    view = clean_view(16)
    return np.stack([view(image, 0) for image in images])


def in_float32(network):
    return all(layer.compute_dtype == "float32" for layer in network.layers)


def logits_of(network, pixels):
    return np.asarray(network(pixels, training=False))


def test_the_folder_holds_what_was_checked(exported):
    record = json.loads((exported / "export.json").read_text())
    names = {path.name for path in exported.iterdir()}
    files = {value["file"] for value in record["formats"].values()}
    assert names == files | {"export.json", "MODEL_CARD.md"}
    assert list(record["formats"]) == ["keras", "savedmodel"]
    for name, value in record["formats"].items():
        assert 0 <= value["deviation"] <= 1e-4, name
    assert record["classes"] == list(CLASSES)


def test_the_served_model_takes_files_as_evaluation_does(
    exported, network, images, pixels
):
    model = tf.saved_model.load(exported / "saved_model")
    serve = model.signatures["serving_default"]
    answer = serve(image_bytes=tf.constant(images))
    logits = logits_of(network, pixels)
    np.testing.assert_allclose(answer["logits"], logits, rtol=1e-4, atol=1e-5)
    probs = np.asarray(tf.nn.softmax(logits))
    np.testing.assert_allclose(answer["probabilities"], probs, rtol=1e-3)
    order = np.argsort(-probs, axis=1)
    names = [[CLASSES[k].encode() for k in row] for row in order]
    assert answer["classes"].numpy().tolist() == names
    np.testing.assert_allclose(
        answer["class_probabilities"], -np.sort(-probs, axis=1), rtol=1e-3
    )
    # One image, none, and one that is none.
    assert serve(image_bytes=tf.constant(images[:1]))["logits"].shape == (1, 3)
    nothing = tf.constant([], tf.string)
    assert serve(image_bytes=nothing)["logits"].shape == (0, 3)
    with pytest.raises(tf.errors.InvalidArgumentError):
        serve(image_bytes=tf.constant([b"no image"]))
    again = model.signatures["pixels"](pixels=tf.constant(pixels[:2]))
    np.testing.assert_allclose(again["logits"], logits[:2], rtol=1e-4)


def test_the_keras_file_is_made_of_stock_layers(exported, network):
    with zipfile.ZipFile(exported / "model.keras") as file:
        config = file.read("config.json").decode()
    assert "noisy_student" not in config
    with zipfile.ZipFile(exported / "../model.keras") as file:
        assert "noisy_student" in file.read("config.json").decode()


# Loads every format where noisy_student cannot be imported.
STRANGER = """
import json, sys
import numpy as np
sys.modules["noisy_student"] = None
known = {"pixels": np.load("pixels.npy")}
for block in json.load(open("blocks.json")):
    exec(block, known)
    logits = known["answer"]["logits"] if "answer" in known else known["logits"]
    np.save(f"logits_{len(known.setdefault('done', []))}.npy", np.array(logits))
    known["done"].append(known.pop("answer", None))
"""


def code_of(card):
    """The Python blocks of a card, with the TFLite runtime of TensorFlow."""
    return [
        block.replace(
            "from ai_edge_litert.interpreter import Interpreter",
            "import tensorflow as tf; Interpreter = tf.lite.Interpreter",
        )
        for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_formats_in_a_new_process(tmp_path, capfd, dtype):
    workdir = make_finished_run(
        tmp_path / "run", CLASSES, dtype=dtype, crop="resized", image_size=40
    )
    assert run("--mode=export", f"--workdir={workdir}") == 0
    out, err = capfd.readouterr()
    assert not err
    folder = workdir.iteration(0) / "export"
    facts = json.loads((folder / "export.json").read_text())
    for name, spec in formats.FORMATS.items():
        assert (name in facts["formats"]) != bool(spec.missing_tools())
        assert (folder / spec.file).exists() == (name in facts["formats"])
        assert (f"{spec.file}: loaded again" in out) == (
            name in facts["formats"]
        )
    # bfloat16 has 8 bits.
    assert facts["as_trained"] < (0.1 if dtype == "bfloat16" else 1e-6)

    photo = formats.example_images(40)[1]
    (folder / "photo.jpg").write_bytes(photo)
    pixels = np.asarray(clean_view(40, "resized")(photo, 0))[np.newaxis]
    np.save(folder / "pixels.npy", pixels)
    blocks = code_of((folder / "MODEL_CARD.md").read_text())
    (folder / "blocks.json").write_text(json.dumps(blocks))
    subprocess.run([sys.executable, "-c", STRANGER], cwd=folder, check=True)
    network = formats.portable(workdir.load_model(0), "float32")
    expected = logits_of(network, pixels)
    answers = sorted(folder.glob("logits_*.npy"))
    assert len(answers) == len(blocks) == len(facts["formats"])
    for path in answers:
        assert formats.compare(np.load(path), expected) < 1e-5, path


def test_a_copy_of_stock_layers_says_the_same():
    noisy = efficientnet.build_model(
        "b0", 3, width=0.1, image_size=16, dtype="bfloat16", dropout_rate=0.5
    )
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 16, 16, 3))
    copy = formats.portable(noisy)
    assert any(isinstance(layer, Dropout) for layer in noisy.layers)
    assert not any(isinstance(layer, Dropout) for layer in copy.layers)
    np.testing.assert_array_equal(
        logits_of(copy, pixels), logits_of(noisy, pixels)
    )
    # Nothing is drawn in training either, and no weight is shared.
    assert not in_float32(copy)
    single = formats.portable(noisy, "float32")
    assert in_float32(single)
    single.layers[-1].kernel.assign(single.layers[-1].kernel * 0)
    assert np.abs(noisy.layers[-1].kernel.numpy()).max() > 0


def changed_format(name, **changes):
    return dataclasses.replace(formats.FORMATS[name], **changes)


def broken(network, path, **_):
    """Writes a model with another last layer."""
    damaged = formats.portable(network)
    kernel = damaged.layers[-1].kernel
    kernel.assign(kernel * 1.01)
    damaged.save(path)


def test_a_file_with_other_logits_is_not_kept(
    workdir, tmp_path, monkeypatch, capsys
):
    changed = {
        "keras": changed_format("keras", write=broken),
        "tflite": changed_format("tflite", tools=("no_such_tool",)),
    }
    monkeypatch.setattr(exporting, "FORMATS", changed)
    output = tmp_path / "export"
    code = run("--mode=export", f"--workdir={workdir}", f"--output={output}")
    assert code == 2
    captured = capsys.readouterr()
    assert "pip install no_such_tool" in captured.out
    assert "differ from those of the network by 0.0" in captured.err
    assert captured.err.count("\n") == 1
    assert not output.exists() and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--export_formats=onnx,pb"], "'pb'"),
        (["--output=mine"], "thesis.txt"),
        (["--output=mine", "--force"], "thesis.txt"),
        (["--output=file", "--force"], "is a file"),
        (["--workdir=none"], "--mode=teach"),
        (["--iteration=4"], "there is no student 4"),
    ],
)
def test_mistakes_are_told_before_any_work(
    workdir, tmp_path, monkeypatch, capsys, arguments, named
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    assert run("--mode=export", f"--workdir={workdir}", *arguments) == 2
    message = capsys.readouterr().err
    assert named in message and message.count("\n") == 1, message
    assert sorted(tmp_path.rglob("*")) == before


def test_a_tool_that_was_asked_for_is_named(workdir, monkeypatch, capsys):
    monkeypatch.setattr(
        formats.Format, "missing_tools", lambda self: list(self.tools)
    )
    arguments = [f"--workdir={workdir}", "--export_formats=keras,onnx"]
    assert run("--mode=export", *arguments) == 2
    assert "pip install tf2onnx onnx" in capsys.readouterr().err


def test_logits_that_are_no_numbers_are_noticed():
    logits = np.array([[1.0, -4.0]], np.float32)
    assert formats.compare(logits + 0.0004, logits) == pytest.approx(
        1e-4, rel=1e-3
    )
    for wrong in (logits * np.nan, logits * 1.002, logits[:, :1]):
        with pytest.raises(formats.Deviation):
            formats.compare(wrong, logits)


@pytest.mark.parametrize("wrong", ["one", "bytes"])
def test_batches_of_one_and_image_files_are_checked_too(wrong):
    logits = np.array([[1.0, -4.0], [2.0, 3.0]], np.float32)
    inputs = {"pixels": np.zeros((2, 1)), "image_bytes": [b"a", b"b"]}
    right = {
        "pixels": lambda batch: logits[: len(batch)],
        "image_bytes": lambda batch: logits[: len(batch)],
    }
    spec = changed_format("keras", load=lambda path: right)
    assert formats.check(spec, "file", inputs, logits) == 0
    if wrong == "one":
        right["pixels"] = lambda batch: logits[: len(batch)] + (len(batch) == 1)
    else:
        right["image_bytes"] = lambda batch: logits[: len(batch)] * np.nan
    with pytest.raises(formats.Deviation):
        formats.check(spec, "file", inputs, logits)


def test_logits_are_compared_on_the_cpu(monkeypatch):
    # With another device in its place, the file's logits come from there.
    monkeypatch.setattr(formats, "DEVICE", "/GPU:9")
    logits = np.zeros((1, 2), np.float32)
    spec = changed_format(
        "keras", load=lambda path: {"pixels": lambda x: tf.zeros([1, 2]) * x}
    )
    soft = tf.config.get_soft_device_placement()
    tf.config.set_soft_device_placement(False)
    try:
        with pytest.raises(tf.errors.InvalidArgumentError, match="GPU:9"):
            formats.check(spec, "file", {"pixels": tf.ones([1, 2])}, logits)
    finally:
        tf.config.set_soft_device_placement(soft)


def test_the_recipe_of_a_card_is_read_back(workdir):
    config = dataclasses.replace(
        command_line.parse(["main.py", f"--workdir={workdir}"]),
        labeled_noise=None,
        unlabeled_noise=None,
    )
    recipe = history._recipe(config)
    assert recipe["labeled_noise"] == recipe["unlabeled_noise"] == ""
    flags = [f"--{name}={value}" for name, value in recipe.items()]
    again = command_line.parse(["main.py", *flags, "--workdir=other"])
    for name in recipe:
        assert getattr(again, name) == getattr(config, name), name


def test_names_do_nothing_in_a_card():
    assert exporting.plain("a|b*\n# c") == r"a\|b\* \# c"
    assert exporting.plain("<img src=x>") == r"\<img src=x\>"
    assert exporting.plain("[x](y) `z`") == r"\[x\](y) \`z\`"


def test_the_card_tells_the_story(exported):
    text = (exported / "MODEL_CARD.md").read_text()
    digest = Workdir(exported.parent.parent).model_hash(0)
    assert digest in text
    assert "| labeled | labeled | 30 |" in text  # no place on a disk
    assert "/home/someone" not in text
    assert r"cat, dög, \|a\*b\|" in text
    assert "--image_size=16" in text and "gone" not in text
    assert "not measured" in text
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    record = json.loads((exported / "export.json").read_text())
    assert len(blocks) == len(record["formats"])


ACCURACY = {
    "image_size": 16, "steps": 7, "top1": 0.9, "top1_low": 0.8256,
    "top1_high": 0.9448, "top5": 1.0, "num_images": 100,
}  # fmt: skip
EMOJI = 'photos of "cats" & \U0001f63a: #1'


@pytest.mark.parametrize("measured", [False, True])
def test_the_hub_reads_the_metadata_of_the_card(exported, measured):
    reason = "pip install -r requirements-dev.txt"
    yaml = pytest.importorskip("yaml", reason=reason)
    facts = json.loads((exported / "export.json").read_text())
    if measured:
        facts["chain"][-1]["accuracy"] = ACCURACY
        evaluation = {**facts["data"]["labeled"], "name": EMOJI}
        facts["data"]["evaluation"] = evaluation
    begin, metadata, text = exporting.render_card(facts).split("---\n", 2)
    assert not begin and text.startswith("\n# EfficientNet-B0")
    metadata = yaml.safe_load(metadata)
    assert metadata["license"] == "unknown"
    assert metadata["library_name"] == "keras"
    assert metadata["pipeline_tag"] == "image-classification"
    assert "noisy-student" in metadata["tags"]
    assert ("model-index" in metadata) == measured
    if measured:
        (entry,) = metadata["model-index"]
        (result,) = entry["results"]
        assert entry["name"] == "efficientnet-b0-teacher"
        assert result["task"] == {"type": "image-classification"}
        assert result["dataset"] == {"type": EMOJI, "name": EMOJI}
        values = {m["name"]: m["value"] for m in result["metrics"]}
        assert values == {"Top-1 accuracy": 0.9, "Top-5 accuracy": 1.0}


def test_the_card_of_a_student_names_its_teachers(exported):
    facts = json.loads((exported / "export.json").read_text())
    selection = {
        "num_images": 50, "num_undecodable": 2, "num_kept": 40,
        "num_selected": 60, "confidence_threshold": 0.3,
        "images_per_class": 20,
    }  # fmt: skip
    teacher = {**facts["chain"][0], "accuracy": ACCURACY, "sha256": "a" * 64}
    student = {
        **teacher, "iteration": 1, "sha256": "b" * 64, "finetuned": True,
        "teacher_sha256": "c" * 64, "selection": selection,
    }  # fmt: skip
    facts["chain"] = [teacher, student]
    facts["finetuning"] = {"base_lr": 0.01}
    facts["model"] |= {"iteration": 1, "trained_in": "bfloat16"}
    text = exporting.render_card(facts)
    assert (
        "| teacher | b0 | 16 | 7 | 90.00 (82.6 to 94.5) | 100.00 | 100 |"
        in text
    )
    assert "student 1, finetuned" in text and "--base_lr=0.01" in text
    # Its labels are of another state of the teacher than the one that is here.
    assert f"(an earlier state, SHA-256 `{'c' * 64}`)" in text
    assert "pseudo-labels by the teacher (an earlier" in text
    assert "40 of 50 unlabeled images selected" in text
    assert "balanced to 20 per class, 60 with repeats" in text
    assert "trained in bfloat16" in text


def test_the_code_of_the_card_runs(exported, images, tmp_path, monkeypatch):
    folder = shutil.copytree(exported, tmp_path / "export")
    (folder / "photo.jpg").write_bytes(images[1])
    monkeypatch.chdir(folder)
    for block in code_of((folder / "MODEL_CARD.md").read_text()):
        known = {"pixels": np.zeros((2, 16, 16, 3), np.float32)}
        exec(compile(block, "MODEL_CARD.md", "exec"), known)
        assert "answer" in known or known["logits"].shape == (2, 3)


def written(network, path, **_):
    """Write the sum of the weights, in no time."""
    path.write_text(str(sum(np.sum(w) for w in network.get_weights())))


@pytest.fixture
def quick(workdir, tmp_path, monkeypatch):
    """A copy of the run, its folder of exports, and a function that exports.

    The formats are files of a few bytes, which are not loaded.
    """
    copy = tmp_path / "run"
    shutil.copytree(workdir.path, copy)
    names = {"keras": "model.keras", "onnx": "model.onnx"}
    changed = {
        name: changed_format(name, file=file, tools=(), write=written)
        for name, file in names.items()
    }
    monkeypatch.setattr(exporting, "FORMATS", changed)
    monkeypatch.setattr(
        exporting, "_portable", lambda network, view: (network, {}, None, 0.0)
    )
    monkeypatch.setattr(formats, "check", lambda *_: 0.0)

    def export(names, *arguments):
        names = f"--export_formats={names}"
        return run("--mode=export", f"--workdir={copy}", names, *arguments)

    return Workdir(copy), Workdir(copy).iteration(0) / "export", export


def files_and_records(folder):
    """Names of the files, without the card and the record, and the formats."""
    record = json.loads((folder / "export.json").read_text())
    names = {path.name for path in folder.iterdir()}
    card = (folder / "MODEL_CARD.md").read_text()
    for spec in exporting.FORMATS.values():
        assert (f"| `{spec.file}` |" in card) == (spec.file in names)
    return names - {"export.json", "MODEL_CARD.md"}, list(record["formats"])


def train_on(workdir):
    """Make the run's model another one."""
    network = workdir.load_model(0)
    kernel = network.layers[-1].kernel
    kernel.assign(kernel * 2)
    workdir.save_model(network, workdir.trained_model(0))


BOTH = {"model.keras", "model.onnx"}, ["keras", "onnx"]


@pytest.mark.parametrize("order", ["keras onnx", "onnx keras"])
def test_a_format_is_added_to_those_of_the_same_model(quick, capsys, order):
    _, folder, export = quick
    first, second = order.split()
    assert export(first) == 0
    stays = exporting.FORMATS[first].file
    before = (folder / stays).read_text()
    assert export(second) == 0
    assert files_and_records(folder) == BOTH
    assert (folder / stays).read_text() == before
    assert "removed" not in capsys.readouterr().out


@pytest.mark.parametrize("record", ["old", "missing", "unknown"])
def test_formats_of_another_model_do_not_look_fresh(quick, capsys, record):
    workdir, folder, export = quick
    assert export("keras,onnx") == 0
    path = folder / "export.json"
    if record == "old":
        train_on(workdir)
    elif record == "missing":
        path.unlink()
    else:
        path.write_text('{"formats": {}}')  # of an earlier version
    assert export("keras") == 0
    assert files_and_records(folder) == ({"model.keras"}, ["keras"])
    out = capsys.readouterr().out
    assert "removed: model.keras, model.onnx, not known to be of this" in out


def fails(network, path, **_):
    """Write half a file, and fail."""
    path.write_text("half")
    raise ValueError("no such operation")


@pytest.mark.parametrize("asked", ["onnx", "keras,onnx"])
def test_a_format_that_fails_leaves_the_good_ones(
    quick, monkeypatch, capsys, asked
):
    _, folder, export = quick
    assert export("keras,onnx") == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    broken_format = changed_format("onnx", tools=(), write=fails)
    monkeypatch.setitem(exporting.FORMATS, "onnx", broken_format)
    assert export(asked) == 2
    assert (
        "onnx could not be exported: no such operation"
        in capsys.readouterr().err
    )
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    # Nothing of another model is lost for a failure either.
    train_on(Workdir(folder.parent.parent))
    assert export("onnx") == 2
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_force_is_asked_for_only_where_something_foreign_is(quick, capsys):
    workdir, folder, export = quick
    output = folder.parent / "given"
    output.mkdir()  # empty
    given = f"--output={output}"
    assert export("keras", given) == 0
    assert export("onnx", given) == 0
    assert files_and_records(output) == BOTH
    train_on(workdir)
    assert export("keras", given) == 2
    message = capsys.readouterr().err
    assert "model.keras, model.onnx, not known" in message
    assert "--force" in message and message.count("\n") == 1
    assert files_and_records(output) == BOTH
    assert export("keras", given, "--force") == 0
    assert files_and_records(output) == ({"model.keras"}, ["keras"])
    # A file that has our name and is in no record of ours.
    (output / "model.onnx").write_text("mine")
    assert export("keras", given) == 2
    assert (output / "model.onnx").read_text() == "mine"


def test_the_card_says_what_wrote_a_file_that_stays(quick, monkeypatch):
    _, folder, export = quick
    monkeypatch.setattr(keras, "__version__", "3.0.1")
    assert export("keras") == 0
    monkeypatch.setattr(keras, "__version__", "3.9.9")
    assert export("onnx") == 0
    card = (folder / "MODEL_CARD.md").read_text()
    assert "| `model.keras` | Keras | 0 | Keras 3.0.1, " in card
    assert "| `model.onnx` | ONNX | 0 | Keras 3.9.9, " in card


@pytest.mark.parametrize("killed", [False, True])
def test_a_folder_outlives_the_moment_between_two_names(
    tmp_path, monkeypatch, killed
):
    path = tmp_path / "export"
    with replacing_folder(path) as folder:
        (folder / "old").write_text("old")
    rename = os.rename

    def interrupted(source, target):
        rename(source, target)
        if str(target).endswith(".old"):
            if killed:  # nothing of the process goes on
                monkeypatch.setattr(os, "rename", lambda *_: os.unlink("/no"))
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", interrupted)
    with (
        pytest.raises((KeyboardInterrupt, OSError)),
        replacing_folder(path) as folder,
    ):
        (folder / "new").write_text("new")
    monkeypatch.setattr(os, "rename", rename)
    if killed:
        assert not path.exists()
        with pytest.raises(ZeroDivisionError), replacing_folder(path):
            assert (path / "old").read_text() == "old"
            raise ZeroDivisionError
    assert (path / "old").read_text() == "old"


def test_a_folder_appears_whole(tmp_path):
    path = tmp_path / "export"
    with replacing_folder(path) as folder:
        (folder / "old").write_text("old")
    with pytest.raises(ZeroDivisionError), replacing_folder(path) as folder:
        (folder / "new").write_text("new")
        raise ZeroDivisionError
    assert [p.name for p in path.iterdir()] == ["old"]
    with replacing_folder(path) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "new").write_text("new")
    assert [p.name for p in path.iterdir()] == ["deep"]
    assert [p.name for p in tmp_path.iterdir()] == ["export"]


def test_the_card_of_released_weights_claims_nothing(exported):
    facts = json.loads((exported / "export.json").read_text())
    nothing = {"labeled": None, "unlabeled": None, "evaluation": None}
    facts |= {"chain": [], "recipe": {}, "finetuning": None, "data": nothing}
    facts["model"] |= {"iteration": None, "init_from": "b0_ns.safetensors"}
    text = exporting.render_card(facts)
    assert r"trained elsewhere (weights: b0\_ns.safetensors)." in text
    assert "was not measured here" in " ".join(text.split())
    assert "student" not in text.lower() and "paper" not in text
