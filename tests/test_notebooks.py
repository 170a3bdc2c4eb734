# SPDX-License-Identifier: Apache-2.0
"""The notebooks in docs/colab: what stands in them, and that they run.

Each runs in a kernel of its own, from top to bottom, in a copy of the
repository made of links, so that whatever it writes is seen. Its cell of
parameters is replaced, and cells that need a download or Colab are left out.
"""

import ast
import csv
import importlib
import inspect
import json
import operator
import re
import tarfile

import numpy as np
import pytest
import test_import_weights
from conftest import REPOSITORY
from PIL import Image

from noisy_student.config import Config
from noisy_student.models import efficientnet
from noisy_student.models import import_weights

for package in ("ipykernel", "matplotlib", "nbclient", "nbformat"):
    pytest.importorskip(package, reason="pip install -r requirements-dev.txt")
import nbformat  # noqa: E402
from nbclient import NotebookClient  # noqa: E402

FOLDER = REPOSITORY / "docs" / "colab"
NAMES = [path.stem for path in sorted(FOLDER.glob("*.ipynb"))]
HOME = "https://github.com/noisy-student-keras/noisy-student"
COLAB = HOME.replace(
    "https://github.com", "https://colab.research.google.com/github"
)
BLOB = "/blob/main/"
# What makes a cell special: it finds the package; it is replaced here; it is
# left out here.
TAGS = {"setup", "parameters", "colab", "download"}
# As the fixture `one_block`, in the process of the notebook.
FEW_BLOCKS = """
from noisy_student.models import efficientnet
efficientnet.STAGES = efficientnet.STAGES[:1]
"""
SMALL = {
    "students": "b0",
    "train_steps": 3,
    "force": True,  # a teacher of three steps guesses
}


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def tags_of(cell):
    return set(cell.metadata.get("tags", ()))


def keep_kernels_in(folder, monkeypatch):
    """Let kernels write their ports and history there, not to the home."""
    for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "KERAS_HOME"):
        monkeypatch.setenv(variable, str(folder / variable))


def execute(name, root, monkeypatch, **parameters):
    """Run a notebook in a copy of the repository; returns what it became."""
    for link in ("noisy_student", "flags"):
        (root / link).symlink_to(REPOSITORY / link)
    place = root / "docs" / "colab"
    place.mkdir(parents=True)
    keep_kernels_in(root.parent, monkeypatch)
    notebook = read(name)
    cells = []
    for cell in notebook.cells:
        if "parameters" in tags_of(cell):
            assigned = ast.parse(cell.source).body
            known = [node.targets[0].id for node in assigned]
            assert parameters.keys() <= set(known), known
            lines = (f"{key} = {value!r}" for key, value in parameters.items())
            cell.source = "\n".join([FEW_BLOCKS, cell.source, *lines])
        if not tags_of(cell) & {"colab", "download"}:
            cells.append(cell)
    notebook.cells = cells
    resources = {"metadata": {"path": str(place)}}
    NotebookClient(notebook, timeout=300, resources=resources).execute()
    made = {path.name for path in root.iterdir()}
    assert made == {"noisy_student", "flags", "docs", "runs"}
    assert not list(place.iterdir())
    return notebook


def printed(notebook):
    outputs = (o for c in notebook.cells for o in c.get("outputs", ()))
    return "".join(o.text for o in outputs if o.get("name") == "stdout")


def shown(notebook, kind="image/png"):
    outputs = (o for c in notebook.cells for o in c.get("outputs", ()))
    return [o.data[kind] for o in outputs if kind in o.get("data", ())]


def results(workdir):
    return json.loads((workdir / "results.json").read_text())


@pytest.mark.slow
def test_the_method(tmp_path, monkeypatch):
    root = tmp_path / "clone"
    root.mkdir()
    notebook = execute(
        "method", root, monkeypatch, recipe="flags/smoke.flags", changes=SMALL
    )
    records = results(root / "runs" / "method")
    phases = [record["phase"] for record in records]
    assert phases == ["teach", "label", "distill"]
    text = printed(notebook)
    for name, record in (("teacher", records[0]), ("student", records[2])):
        found = f"{name}: {record['top1']:.1%} of 500 images, 95% interval"
        assert found in text
    # Images, noise, confidence, surest, balance, disagreements.
    assert len(shown(notebook)) == 6
    assert any("srcdoc" in page for page in shown(notebook, "text/html"))


@pytest.mark.slow
def test_own_images(tmp_path, monkeypatch):
    root = tmp_path / "clone"
    root.mkdir()
    notebook = execute(
        "own_images",
        root,
        monkeypatch,
        recipe="flags/smoke.flags",
        changes=SMALL,
    )
    workdir = root / "runs" / "own_images"
    text = printed(notebook)
    # The second time nothing is done again.
    assert len(results(workdir)) == 3
    assert "Student 1 is trained already" in text
    with open(workdir / "predictions.csv", newline="") as file:
        predicted = list(csv.DictReader(file))
    files = {row["file"] for row in predicted}
    drawn = (root / "runs" / "drawn" / "unlabeled").iterdir()
    assert files == {str(path.resolve()) for path in drawn}
    assert np.load(workdir / "features.npy").shape[0] == len(predicted)
    assert (workdir / "model.zip").exists()


@pytest.mark.slow
def test_released_weights(one_block, tmp_path, monkeypatch):
    root = tmp_path / "clone"
    folder = root / "runs" / "weights"
    folder.mkdir(parents=True)
    network = {"width": 0.1, "depth": 0.1, "image_size": 32}
    make_released(folder, network)
    make_evaluation(tmp_path / "val")
    notebook = execute(
        "released_weights",
        root,
        monkeypatch,
        network=network,
        evaluation={"eval_dir": str(tmp_path / "val")},
        other={"dataset": "digits", "image_size": 16, "train_steps": 3},
    )
    text = printed(notebook)
    assert "0 tensors differ" in text
    workdir = root / "runs" / "released_weights"
    (record,) = results(workdir / "evaluate")
    assert record["num_examples"] == 1000 and record["image_size"] == 32
    assert "the last layer is new" in text
    (record,) = results(workdir)
    assert record["phase"] == "teach" and record["steps"] == 3


def make_released(folder, network):
    """A small network's weights, as they are released: both kinds of file."""
    model = efficientnet.build_model("b0", 1000, **network)
    test_import_weights.randomize(model, 0)
    arrays = test_import_weights.arrays_of(model)
    average = "/ExponentialMovingAverage"
    official, timm = {}, {}
    for key, names in import_weights.foreign_names(arrays).items():
        official[f"efficientnet-b0/{names[0]}{average}"] = arrays[key]
        timm[names[1]] = test_import_weights.to_pytorch(names[1], arrays[key])
    name = "noisy_student_efficientnet-b0"
    made = folder.parent / "made" / name
    test_import_weights.write_checkpoint(made / "model.ckpt", official)
    with tarfile.open(folder / f"{name}.tar.gz", "w:gz") as archive:
        archive.add(made, arcname=name)
    test_import_weights.write_safetensors(folder / "b0.safetensors", timm)


def make_evaluation(folder):
    """A folder per class of ImageNet, with one image."""
    for number in range(1000):
        (folder / f"n{number:08d}").mkdir(parents=True)
        color = (number % 256, number // 4 % 256, 0)
        path = folder / f"n{number:08d}" / "image.png"
        Image.new("RGB", (8, 8), color).save(path)


def test_elsewhere_the_first_cell_fetches_the_repository(tmp_path, monkeypatch):
    if not (REPOSITORY / ".git").exists():
        pytest.skip("this is no checkout")
    keep_kernels_in(tmp_path, monkeypatch)
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # nothing is to be installed
    place = tmp_path / "content"
    place.mkdir()
    setup = next(
        c.source for c in read("method").cells if "setup" in tags_of(c)
    )
    assert f'URL = "{HOME}"' in setup
    setup = setup.replace(HOME, str(REPOSITORY))
    tell = "import noisy_student\nprint(noisy_student.__file__)"
    expected = place / "noisy-student" / "noisy_student" / "__init__.py"
    # The second time, as after a restart, the clone is found.
    for again in (False, True):
        if again:
            setup = setup.replace(str(REPOSITORY), "nowhere")
        cells = [nbformat.v4.new_code_cell(code) for code in (setup, tell)]
        notebook = nbformat.v4.new_notebook(cells=cells)
        resources = {"metadata": {"path": str(place)}}
        NotebookClient(notebook, timeout=120, resources=resources).execute()
        assert printed(notebook).splitlines()[-1] == str(expected)
        assert not again or "fatal" not in printed(notebook)


def test_a_mistake_is_told_in_one_sentence(tmp_path, monkeypatch):
    keep_kernels_in(tmp_path, monkeypatch)
    raised = {
        "noisy_student.errors": "UserError('give another --workdir')",
        "noisy_student.stopping": "Stopped(2)",
    }
    cells = [f"import sys\nsys.path.insert(0, {str(REPOSITORY)!r})"]
    cells += [f"import {name}\nraise {name}.{raised[name]}" for name in raised]
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell) for cell in cells]
    )
    NotebookClient(notebook, timeout=60, allow_errors=True).execute()
    told = [cell.outputs[0].traceback for cell in notebook.cells[1:]]
    assert told == [
        ["error: give another --workdir"],
        ["stopped by Ctrl-C; the same cell goes on"],
    ]


@pytest.mark.parametrize("name", NAMES)
def test_it_is_committed_without_outputs(name):
    text = (FOLDER / f"{name}.ipynb").read_text()
    # As it stands, for nbformat mends what it reads and validates.
    notebook = json.loads(text)
    cells = notebook["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    for cell in cells:
        assert not cell.get("outputs") and not cell.get("execution_count")
    nbformat.validate(notebook)
    # Of the machine that it was written on.
    assert not re.search(r"[\"' =](/home|/root|/tmp|/work|/Users|C:)", text)


@pytest.mark.parametrize("name", NAMES)
def test_it_opens_in_colab(name):
    badge = read(name).cells[0]
    address = f"{COLAB}{BLOB}docs/colab/{name}.ipynb"
    assert badge.cell_type == "markdown"
    assert badge.source.endswith(f"]({address})")
    assert address in (FOLDER / "README.md").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_its_cells_are_of_known_kinds(name):
    cells = read(name).cells
    assert set().union(*map(tags_of, cells)) <= TAGS
    assert sum("parameters" in tags_of(cell) for cell in cells) == 1

    def setup(cells):
        return [c.source for c in cells if "setup" in tags_of(c)]

    assert len(setup(cells)) == 2
    assert setup(cells) == setup(read(NAMES[0]).cells)


@pytest.mark.parametrize("name", NAMES)
def test_its_links_lead_somewhere_from_colab_too(name):
    for cell in read(name).cells:
        if cell.cell_type != "markdown":
            continue
        for target in re.findall(r"\]\(([^)\s]+)\)", cell.source):
            # From Colab, no relative link leads back to the repository.
            assert target.startswith("https://"), target
            for home in (HOME, COLAB):
                if target.startswith(home + BLOB):
                    path = REPOSITORY / target.removeprefix(home + BLOB)
                    assert path.exists(), target


@pytest.mark.parametrize("name", NAMES)
def test_functions_that_its_code_calls_exist(name):
    # Sooner than running it, which is slow, and in cells that are left out.
    code = "\n".join(
        re.sub(r"^( *)[!%].*", r"\1pass", cell.source, flags=re.MULTILINE)
        for cell in read(name).cells
        if cell.cell_type == "code"
    )
    ours = {}
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and "noisy_student" in node.module:
            for alias in node.names:
                module = importlib.import_module(node.module)
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
                ours[alias.name] = getattr(module, alias.name)
    called = 0
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.Call):
            continue
        owner, _, attribute = ast.unparse(node.func).partition(".")
        if owner in ours and attribute:
            function = operator.attrgetter(attribute)(ours[owner])
            given = {keyword.arg: None for keyword in node.keywords}
            given.pop(None, None)  # **settings
            inspect.signature(function).bind_partial(*node.args, **given)
            called += 1
    assert called > 5


@pytest.mark.parametrize("name", NAMES)
def test_settings_that_its_text_names_exist(name):
    text = "\n".join(
        cell.source
        for cell in read(name).cells
        if cell.cell_type == "markdown" or "parameters" in tags_of(cell)
    )
    for found in re.findall(r"\{[\"'].*?\}", text):
        if "..." not in found:
            Config(**ast.literal_eval(found))
