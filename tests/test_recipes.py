# SPDX-License-Identifier: Apache-2.0
"""Recipes and documented commands are code: every one of them parses."""

import re
import shlex

import pytest
from conftest import REPOSITORY

from noisy_student import command_line

RECIPES = sorted((REPOSITORY / "flags").glob("*.flags"))
PAGES = [
    *REPOSITORY.glob("*.md"),
    *(REPOSITORY / "docs").rglob("*.md"),
    *RECIPES,
]
COMMANDS = [
    (page.name, command)
    for page in sorted(PAGES)
    for command in re.findall(
        r"python main\.py[^\n`#|]*(?:\\\n[^\n`#|]*)*", page.read_text()
    )
]


@pytest.fixture
def in_repository(monkeypatch):
    monkeypatch.chdir(REPOSITORY)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.name)
def test_recipes_parse_and_say_how_to_run_them(path, in_repository, tmp_path):
    config = command_line.parse(
        ["main.py", f"--flagfile={path}", f"--workdir={tmp_path}"]
    )
    assert config.student_variants()
    comment = "\n".join(
        line for line in path.read_text().splitlines() if line.startswith("#")
    )
    for part in ("# Run: python main.py", "Expect:", "Cost:"):
        assert part in comment, f"{path.name} lacks {part!r}"
    # A recipe that repeats a default says nothing.
    default = command_line.Config()
    for name, value in command_line.read_flagfile(path).items():
        repeats = value == getattr(default, name)
        assert not repeats or name in KEPT_FOR_CLARITY, f"{name}={value}"


# The figures that a reader compares with the paper's tables stay visible.
KEPT_FOR_CLARITY = {
    "variant",
    "students",
    "unlabeled_ratio",
    "randaugment_num_ops",
    "randaugment_magnitude",
    "labeled_split",
    "eval_split",
    "epochs",
    "lr_decay_epochs",
    "crop_padding",
    "base_lr",
}


@pytest.mark.parametrize(
    ("page", "command"),
    COMMANDS,
    ids=[f"{page}-{number}" for number, (page, _) in enumerate(COMMANDS)],
)
def test_documented_commands_parse(page, command, in_repository):
    words = shlex.split(command.replace("\\\n", " "))[1:]
    # `&& ...` and prose after the command are not part of it.
    ends = [i for i, word in enumerate(words) if word in ("&&", "|", ">")]
    words = words[: ends[0]] if ends else words
    words = [word for word in words if word not in ("...", "[--flag=value")]
    if any(word in command_line.HELP_FLAGS for word in words):
        with pytest.raises(command_line.HelpRequested):
            command_line.parse(words)
    else:
        command_line.parse(words)


def test_documented_python_is_python():
    text = (REPOSITORY / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 2
    for block in blocks:
        compile(block, "README.md", "exec")


def test_the_readme_was_read():
    assert any(page == "README.md" for page, _ in COMMANDS)
    assert len(RECIPES) >= 7
