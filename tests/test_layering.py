# SPDX-License-Identifier: Apache-2.0
"""Imports flow one way, and the settings stop where they should."""

import ast

import pytest
from conftest import REPOSITORY

PACKAGE = REPOSITORY / "noisy_student"
FILES = sorted(PACKAGE.rglob("*.py"))

# The subjects, each in a folder of its own, and what else of the package a
# folder may import; everyone may import `errors`, `files` and `stopping`.
ALLOWED = {
    "models": set(),
    "data": set(),
    "training": set(),
    "evaluation": {"data"},
    "pseudo_labels": {"data"},
    "reporting": {"data", "evaluation", "pseudo_labels"},
    "outputs": {"models"},
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
    if room in ALLOWED:
        wrong = set(imported_rooms(path)) - ALLOWED[room] - EVERYBODYS - {room}
        assert not wrong, f"{path} imports {wrong}"
    if room not in ("phases", "__init__"):
        assert "phases" not in set(imported_rooms(path)), path


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.name))
def test_files_are_licensed(path):
    first = path.read_text().partition("\n")[0]
    assert first == "# SPDX-License-Identifier: Apache-2.0"


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
