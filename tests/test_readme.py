# SPDX-License-Identifier: Apache-2.0
"""What a stranger reads first is whole: READMEs, index, citation, hooks."""

import re
import tomllib

from conftest import REPOSITORY

import noisy_student

HOME = "https://github.com/noisy-student-keras/noisy-student"


def links_of(text):
    return re.findall(r"\]\(([^)\s]+)\)", text)


def test_the_readme_is_short_enough_to_be_read():
    for name in ("README.md", "README.ko.md"):
        text = (REPOSITORY / name).read_text()
        assert text.count("\n") < 150, name


def test_the_two_readmes_do_not_drift():
    english, korean = (
        (REPOSITORY / name).read_text()
        for name in ("README.md", "README.ko.md")
    )

    def code(text):
        # What stands after two spaces is a comment, in the reader's language.
        blocks = re.findall(r"```.*?```", text, re.DOTALL)
        return [re.sub(r"(?<=\S) {2,}.*", "", block) for block in blocks]

    def tables(text):
        # Titles are translated, but for code and numbers.
        rows = re.findall(r"^\|.*$", text, re.MULTILINE)
        return [(row.count("|"), re.findall(r"`.*?`|\d[\d.]*", row))
                for row in rows]  # fmt: skip

    def in_code(text):
        outside = re.sub(r"```.*?```|^\|.*$", "", text,
                         flags=re.DOTALL | re.MULTILINE)  # fmt: skip
        return sorted(re.findall(r"`[^`]+`", outside))

    def headings(text):
        return re.findall(r"^#+(?= )", text, re.MULTILINE)

    def links(text):
        # Each leads to the other.
        others = ("README.md", "README.ko.md")
        return [link for link in links_of(text) if link not in others]

    for part in (code, tables, headings, in_code):
        assert part(english) == part(korean), part.__name__
    assert sorted(links(english)) == sorted(links(korean))
    assert "(README.ko.md)" in english and "(README.md)" in korean


def test_the_picture_has_the_numbers_of_the_table():
    readme = (REPOSITORY / "README.md").read_text()
    picture = (REPOSITORY / "docs/pictures/idea.svg").read_text()
    row = re.search(r"^\| 0 \|(.*)\|$", readme, re.MULTILINE)[1]
    teacher, first, second = row.replace(" ", "").split("|")
    shown = re.findall(r">([\d.]+)%<", picture)
    assert shown == [teacher, first, first, second]
    assert len(picture) < 200_000 and "<image" not in picture


def test_every_page_is_reached_from_the_index():
    docs = REPOSITORY / "docs"
    index = links_of((docs / "README.md").read_text())
    pages = {str(page.relative_to(docs)) for page in docs.rglob("*.md")}
    pages -= {"README.md"}
    assert pages <= set(index), pages - set(index)
    lines = re.findall(r"^(\d+)\. \[", (docs / "README.md").read_text(), re.M)
    assert lines == [str(n + 1) for n in range(len(lines))] and lines
    assert "docs/README.md" in (REPOSITORY / "README.md").read_text()


def test_the_citation_is_of_this_version():
    text = (REPOSITORY / "CITATION.cff").read_text()
    assert f"\nversion: {noisy_student.__version__}\n" in text
    assert f"repository-code: {HOME}\n" in text
    assert "cff-version: 1.2.0\n" in text
    assert "arxiv.org/abs/1911.04252" in text
    with open(REPOSITORY / "pyproject.toml", "rb") as file:
        urls = tomllib.load(file)["project"]["urls"]
    assert urls["Repository"] == HOME
    assert all(url.startswith(HOME) or "arxiv" in url for url in urls.values())


def test_hooks_use_the_versions_that_were_tested():
    hooks = (REPOSITORY / ".pre-commit-config.yaml").read_text()
    pins = (REPOSITORY / ".ci" / "constraints.txt").read_text()
    (tested,) = re.findall(r"^ruff==(.+)$", pins, re.MULTILINE)
    assert set(re.findall(r"ruff==([\d.]+)", hooks)) == {tested}
    wanted = (REPOSITORY / "requirements-dev.txt").read_text()
    low, high = re.search(r"^ruff>=([\d.]+),<([\d.]+)$", wanted, re.M).groups()

    def number(version):
        return [int(part) for part in version.split(".")]

    assert number(low) <= number(tested) < number(high)
