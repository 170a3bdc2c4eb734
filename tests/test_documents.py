# SPDX-License-Identifier: Apache-2.0
"""What the documents point at exists: tests, files, flags, Python."""

import dataclasses
import re

import pytest
from conftest import REPOSITORY

from noisy_student.config import Config

PAGES = [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")]


def test_every_claim_of_fidelity_names_a_test_that_exists():
    text = (REPOSITORY / "docs" / "fidelity.md").read_text()
    named = set(re.findall(r"(test_\w+\.py)::(test_\w+)", text))
    assert len(named) > 40
    for file, function in sorted(named):
        tests = (REPOSITORY / "tests" / file).read_text()
        assert re.search(rf"^def {function}\(", tests, re.MULTILINE), (
            f"{file} has no {function}"
        )
    # Every row with a fact ends with its test.
    tables = text[text.index("## Network") : text.index("## Why we deviate")]
    for line in tables.splitlines():
        if (
            line.startswith("|")
            and "---" not in line
            and "| test |" not in line
        ):
            assert "::test_" in line.rsplit("|", 2)[1], line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path) if path else page
        assert linked.exists(), f"{page.name} links to {target}"
        if anchor and linked.suffix == ".md":
            titles = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            assert anchor in {anchor_of(title) for title in titles}, target


def anchor_of(title):
    """How GitHub names a title in a link."""
    kept = re.sub(r"[^\w\- ]", "", title.lower())
    return kept.replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_that_are_named_exist(page):
    known = {field.name for field in dataclasses.fields(Config)}
    known |= {"no" + name for name in known} | {"flagfile", "help"}
    # Of other programs, in the same pages.
    known |= {"zone", "accelerator-type", "version", "project", "name"}
    known |= {"logdir"}
    others = "gcloud|pip|git|curl|tar|jupyter|pytest"
    text = re.sub(rf"^(?!.*python main).*({others}) .*$", "",
                  page.read_text(), flags=re.MULTILINE)  # fmt: skip
    # Scripts have flags of their own.
    text = re.sub(r"python (-m benchmarks|tests/)[^`\n]*", "", text)
    for name in re.findall(r"(?a)(?<![\w-])--([a-z][\w-]*)", text):
        assert name in known, f"{page.name} names --{name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_scripts_that_are_named_have_their_flags(page):
    commands = re.findall(
        r"python (?:-m )?(benchmarks|tests)[./](\w+)(?:\.py)?([^\n`|#]*)",
        page.read_text(),
    )
    for folder, name, flags in commands:
        script = (REPOSITORY / folder / f"{name}.py").read_text()
        for flag in re.findall(r"--(\w+)", flags):
            assert f'"--{flag}"' in script, f"{name} has no --{flag}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_documented_python_compiles(page):
    for block in re.findall(
        r"```python\n(.*?)```", page.read_text(), re.DOTALL
    ):
        compile(block, page.name, "exec")
