# SPDX-License-Identifier: Apache-2.0
"""Imports flow one way, and the settings stop where they should."""

import ast

import pytest
from conftest import REPOSITORY

PACKAGE = REPOSITORY / "noisy_student"
FILES = sorted(PACKAGE.rglob("*.py"))

# Which rooms of the package a room may import; a room may import itself, and
# everyone `errors`, `files` and `stopping`.
ALLOWED = {
    "models": set(),
    "data": set(),
    "training": set(),
    "evaluation": {"data"},
    "pseudo_labels": {"data"},
    # It reads what these two write.
    "reporting": {"data", "evaluation", "pseudo_labels"},
    # `models` for the noise that an exported network does without.
    "outputs": {"models"},
    "knobs": set(),
    "settings": {"knobs"},
    "config": {"knobs", "settings"},
    "contradictions": {"config", "knobs"},
    "command_line": {"config", "contradictions", "knobs", "settings"},
    "workdir": set(),
    "run": {
        "command_line",
        "config",
        "workdir",
        "data",
        "models",
        "training",
        "pseudo_labels",
    },
    "prerequisites": {"pseudo_labels", "reporting"},
    "batches": {"data", "pseudo_labels"},
    "assembly": {"batches", "models", "training"},
    "skipping": {"data", "reporting"},
    "predicting": {
        "assembly",
        "batches",
        "data",
        "evaluation",
        "models",
        "pseudo_labels",
        "reporting",
        "skipping",
        "training",
    },
    "learning": {
        "assembly",
        "batches",
        "predicting",
        "prerequisites",
        "reporting",
        "skipping",
        "training",
        "watching",
    },
    "watching": {"data", "evaluation", "reporting", "training"},
    "finished": {
        "assembly",
        "command_line",
        "data",
        "models",
        "prerequisites",
        "reporting",
        "run",
        "training",
        "workdir",
    },
    "history": {"command_line", "evaluation", "knobs"},
    "using": {
        "batches",
        "data",
        "finished",
        "outputs",
        "predicting",
        "reporting",
    },
    "exporting": {"batches", "data", "finished", "history", "outputs"},
    "planning": {
        "assembly",
        "batches",
        "data",
        "models",
        "pseudo_labels",
        "reporting",
        "run",
        "training",
        "workdir",
    },
    "previewing": {"batches", "reporting", "run", "workdir"},
    "showing": {
        "prerequisites",
        "previewing",
        "reporting",
        "run",
        "workdir",
    },
    "phases": {
        "data",
        "exporting",
        "learning",
        "planning",
        "predicting",
        "prerequisites",
        "previewing",
        "pseudo_labels",
        "reporting",
        "run",
        "showing",
        "skipping",
        "training",
        "using",
        "watching",
    },
    "errors": set(),
    "files": set(),
    "stopping": set(),
    "startup": set(),
    "__init__": set(),
}
EVERYBODYS = {"errors", "files", "stopping"}


def room_of(path):
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = (node.module or "").split(".")
            modules = [base + [alias.name] for alias in node.names]
        elif isinstance(node, ast.Import):
            modules = [alias.name.split(".") for alias in node.names]
        else:
            continue
        for module in modules:
            if module[0] == "noisy_student" and len(module) > 1:
                yield module[1]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.name))
def test_imports_flow_downward(path):
    room = room_of(path)
    allowed = ALLOWED[room] | EVERYBODYS | {room}
    wrong = set(imported_rooms(path)) - allowed
    assert not wrong, f"{path} imports {wrong}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.name))
def test_files_are_licensed_and_read_at_a_sitting(path):
    lines = path.read_text().splitlines()
    assert lines[0] == "# SPDX-License-Identifier: Apache-2.0"
    assert len(lines) <= 350, f"{path.name} has {len(lines)} lines"


def test_the_models_and_the_training_keep_to_keras_ops():
    # On JAX the networks and the step must do without TensorFlow; the devices
    # are TensorFlow's, and the replica's number is asked for when it runs.
    for room in ("models", "training"):
        for path in (PACKAGE / room).glob("*.py"):
            if path.name == "distribution.py":
                continue
            imports = [
                alias.name
                for node in ast.parse(path.read_text()).body
                if isinstance(node, ast.Import)
                for alias in node.names
            ]
            assert "tensorflow" not in imports, path
