# SPDX-License-Identifier: Apache-2.0
"""The page of a run: whatever state the run is in, and however large."""

import html.parser
import json
import re
import shutil
import time

import made_up_run
import numpy as np
import pytest
from PIL import Image

import main
from noisy_student import command_line
from noisy_student import phases
from noisy_student import previewing
from noisy_student import showing
from noisy_student.data import folder_sources

HOSTILE = (
    b"<script>alert(1)</script>".replace(b"/", b"\xe2\x88\x95"),
    b'" onload="x',
    b"no utf-8 \xff",
    b"a\nnewline & {{ 7 * 7 }}",
    b"x" * 250,
)


class Page(html.parser.HTMLParser):
    """The tags and the text of a page, and whether its tags are balanced."""

    VOID = ("meta", "link", "img", "path", "rect", "circle", "br")

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.texts, self.unbalanced = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.texts))

    def sections(self):
        return [attrs["id"] for tag, attrs in self.tags if tag == "section"]


def report(workdir, *flags):
    assert main.main(["main.py", "--mode=report", f"--workdir={workdir}",
                      *flags]) == 0  # fmt: skip
    return read(workdir)


def read(workdir):
    text = (workdir / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not page.unbalanced and not page.open
    return page


@pytest.fixture(scope="module", autouse=True)
def few_draws():
    """Most of a page's time is the noise that it shows."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(previewing, "ORIGINALS", 1)
        patched.setattr(previewing, "DRAWS", 2)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run of three classes and two students."""
    root = tmp_path_factory.mktemp("made")
    names = ("blue sky", "grass", "sea")
    workdir, _ = made_up_run.make(root, names, students="b0,b0")
    return workdir


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


def test_the_page_tells_this_runs_numbers(made):
    page = report(made)
    assert page.sections() == [
        "idea", "accuracy", "curves", "confidence", "balance", "gallery",
        "noise", "mistakes", "agreement", "settings",
    ]  # fmt: skip
    records = json.loads((made / "results.json").read_text())
    for record in records:
        if record["phase"] == "label":
            assert str(record["num_kept"]) in page.text
        else:
            assert f"{record['top1']:.1%}" in page.text
    for words in ("blue sky", "threshold 0.3", "SolarizeAdd", "student 2"):
        assert words in page.text
    assert "label_smoothing" in page.text and "1 min 02 s" in page.text


def test_the_page_needs_nothing_else(made):
    page = report(made)
    assert not {"script", "iframe", "object"} & {tag for tag, _ in page.tags}
    for tag, attrs in page.tags:
        for name in ("src", "href"):
            target = attrs.get(name) or "#"
            assert target.startswith(("data:", "#")), (tag, target)
    style = (made / "report.html").read_text().partition("</style>")[0]
    assert "url(" not in style and "@import" not in style


def test_counts_of_a_class_add_up(made):
    selection = json.loads(
        (made / "iteration_2" / "labels" / "selection.json").read_text()
    )
    page = report(made)
    for number, name in enumerate(selection["class_names"]):
        kept = selection["kept_per_class"][number]
        copies = selection["selected_per_class"][number] - kept
        found = re.search(rf"{name}\s*(\d+)\s*(\d+)\s*(\d+)", page.text)
        assert found and (int(found[1]), int(found[3])) == (kept, copies)


def test_names_that_are_hostile_stay_names(tmp_path):
    workdir, _ = made_up_run.make(tmp_path, HOSTILE)
    page = report(workdir)
    assert "script" not in {tag for tag, _ in page.tags}
    assert not any("onload" in attrs for _, attrs in page.tags)
    assert "<script>alert(1)" in page.text and "no utf-8 \\xff" in page.text
    assert "{{ 7 * 7 }}" in page.text
    assert "x" * 81 not in page.text


def test_a_thousand_classes_stay_below_ten_megabytes(tmp_path):
    names = [f"class {k:04d} {'long ' * 20}" for k in range(1000)]
    workdir, _ = made_up_run.make(
        tmp_path, names, unlabeled=3000, students="b0,b0", side=96
    )
    started = time.monotonic()
    page = report(workdir)
    took = time.monotonic() - started
    # Plain noise hardly compresses: photographs take half of it.
    assert (workdir / "report.html").stat().st_size < 10e6 / 2
    assert len([tag for tag, _ in page.tags]) < 10_000, took
    assert "10 of 1,000 classes" in page.text
    assert "the teacher is least sure of it" in page.text
    assert "Confusion matrix" not in page.text


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ("iteration_2/predictions-*", "--mode=evaluate"),
        ("iteration_*/predictions-*", "--mode=evaluate"),
        ("iteration_1/labels/selection.json", "Round 1"),
        ("iteration_2/labels/copies-*", "Round 1"),
        ("iteration_*/labels/*", "--mode=label"),
        ("iteration_*/metrics.jsonl", "was trained here"),
        ("times.json", "No phase has ended yet"),
        ("results.json", "Not finished: the teacher is at step 40"),
        ("run.flags", "has no run.flags"),
    ],
)
def test_a_file_that_is_missing_is_told(copy, missing, says, made):
    found = list(copy.glob(missing))
    assert found
    for path in found:
        path.unlink()
    flags = []
    if missing == "run.flags":
        root = made.parent
        flags = [f"--labeled_dir={root / 'labeled'}"]
        flags += [f"--unlabeled_dir={root / 'unlabeled'}"]
        flags += [f"--eval_dir={root / 'eval'}", "--image_size=32"]
    assert says in report(copy, *flags).text


@pytest.mark.parametrize(
    "damaged",
    ["iteration_1/predictions-*", "iteration_1/labels/top-*",
     "iteration_1/labels/manifest.json", "iteration_1/metrics.jsonl"],
)  # fmt: skip
def test_a_file_that_is_damaged_does_not_matter(copy, damaged):
    (path,) = copy.glob(damaged)
    path.write_bytes(path.read_bytes()[:-7])
    assert "student 2" in report(copy).text


def test_a_workdir_is_shown_without_its_images(copy, made):
    flags = copy / "run.flags"
    gone = flags.read_text().replace(str(made.parent), "/nowhere")
    flags.write_text(gone)
    page = report(copy)
    assert "No labeled images can be shown" in page.text
    assert page.text.count("none is shown") == 3
    assert "Confusion matrix" in page.text and "blue sky" in page.text
    assert [tag for tag, _ in page.tags].count("img") == 0


def test_images_that_are_broken_are_left_out(tmp_path):
    workdir, _ = made_up_run.make(tmp_path, ("a", "b"))
    whole = [tag for tag, _ in report(workdir).tags].count("img")
    for number, path in enumerate(sorted((tmp_path / "pictures").iterdir())):
        if number % 2:
            path.write_bytes(path.read_bytes()[:300])  # links see it too
    broken = [tag for tag, _ in report(workdir).tags].count("img")
    assert 0 < broken < whole


def test_only_a_teacher(tmp_path):
    workdir, _ = made_up_run.make(tmp_path, ("a", "b"), students="")
    page = report(workdir)
    assert page.sections() == [
        "idea", "accuracy", "curves", "noise", "mistakes", "settings",
    ]  # fmt: skip
    assert "no students" in page.text


def test_a_finetuned_model_stands_for_its_iteration(copy, made):
    records = json.loads((copy / "results.json").read_text())
    records.append({**records[-1], "phase": "finetune", "steps": 2})
    (copy / "results.json").write_text(json.dumps(records))
    source = folder_sources.class_folders(made.parent / "eval")
    folder = copy / "iteration_2" / "finetune"
    rng = np.random.default_rng(5)
    top1 = made_up_run.answer(folder, source, 1.0, rng)
    page = report(copy)
    assert top1 == 1 and "student 2, finetuned, top-1 100.0%" in page.text
    assert "What student 2, finetuned takes evaluation images for: 0 of" in (
        page.text
    )


def test_weights_that_were_only_evaluated(copy):
    (answers,) = copy.glob("iteration_0/predictions-*")
    answers.rename(copy / answers.name)
    for folder in copy.glob("iteration_*"):
        shutil.rmtree(folder)
    record = json.loads((copy / "results.json").read_text())[0]
    record.update(phase="evaluate", init_from="weights.h5")
    (copy / "results.json").write_text(json.dumps([record]))
    page = report(copy)
    assert page.sections() == ["accuracy", "mistakes", "settings"]
    assert f"{record['top1']:.1%}" in page.text


def test_other_evaluation_images_do_not_change_the_report(copy, made):
    arguments = ["main.py", f"--workdir={copy}", "--mode=evaluate",
                 f"--eval_dir={made.parent / 'labeled'}"]  # fmt: skip
    run = phases.open_run(command_line.parse(arguments))
    (copy / "report.html").unlink(missing_ok=True)
    showing.refresh(run)
    assert not (copy / "report.html").exists()


def test_an_online_teacher_stores_no_labels(tmp_path):
    workdir, _ = made_up_run.make(tmp_path, ("a", "b"), online_teacher=True)
    shutil.rmtree(workdir / "iteration_1" / "labels")
    page = report(workdir)
    assert "With --online_teacher" in page.text
    assert "gallery" not in page.sections()


def test_a_report_needs_a_run(tmp_path, capsys):
    arguments = ["main.py", "--mode=report", f"--workdir={tmp_path / 'none'}"]
    assert main.main(arguments) == 2
    assert "--mode=teach" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_report_while_another_process_trains(made):
    config = command_line.parse(["main.py", f"--workdir={made}"])
    (made / "report.html").unlink(missing_ok=True)
    with phases.open_run(config).workdir.owned():
        report(made)
    assert not list(made.glob(".report*"))


def test_a_report_that_fails_does_not_fail_the_run(copy, capsys, monkeypatch):
    run = phases.open_run(command_line.parse(["main.py", f"--workdir={copy}"]))
    monkeypatch.setattr(showing, "make_page", lambda *_: 1 / 0)
    (copy / "report.html").unlink(missing_ok=True)
    showing.refresh(run)
    (line,) = capsys.readouterr().out.splitlines()
    assert "warning" in line and "ZeroDivisionError" in line
    with pytest.raises(ZeroDivisionError):
        monkeypatch.setattr(showing, "make_page", lambda run, notes: 1 / 0)
        report(copy)


def test_a_report_is_made_anew_after_a_phase_and_not_otherwise(copy):
    run = phases.open_run(command_line.parse(["main.py", f"--workdir={copy}"]))
    path = copy / "report.html"
    path.unlink(missing_ok=True)
    showing.refresh(run)
    first = path.stat().st_mtime_ns
    showing.refresh(run)
    assert path.stat().st_mtime_ns == first
    run.workdir.append_result(run.workdir.results()[-1], 7)
    showing.refresh(run)
    assert path.stat().st_mtime_ns > first


def test_preview_needs_images_alone(made, tmp_path, monkeypatch):
    workdir = tmp_path / "new"
    monkeypatch.setattr(previewing, "ORIGINALS", 4)
    monkeypatch.setattr(previewing, "DRAWS", 8)
    for flag in ("labeled_dir", "unlabeled_dir"):
        folder = made.parent / flag.removesuffix("_dir")
        arguments = [
            "main.py", "--mode=preview", f"--{flag}={folder}",
            f"--workdir={workdir}", "--image_size=32",
        ]  # fmt: skip
        # The digits' recipe is not for the images of others.
        assert command_line.parse(arguments).dataset is None
        assert main.main(arguments) == 0
        with Image.open(workdir / "preview.png") as sheet:
            pixels = np.asarray(sheet.convert("L"))
        # 17 tiles and 4 rows of 9 on paper of one color.
        assert pixels.shape[1] > 1000 and (pixels < 245).mean() > 0.4
        assert [path.name for path in workdir.iterdir()] == ["preview.png"]
        (workdir / "preview.png").unlink()


def test_preview_of_another_magnitude_leaves_the_run_alone(copy):
    before = (copy / "run.flags").read_bytes()
    sheets = []
    for magnitude in (3, 27):
        arguments = ["main.py", "--mode=preview", f"--workdir={copy}",
                     f"--randaugment_magnitude={magnitude}"]  # fmt: skip
        assert main.main(arguments) == 0
        sheets.append((copy / "preview.png").read_bytes())
    assert sheets[0] != sheets[1]
    assert (copy / "run.flags").read_bytes() == before


def test_preview_without_images_says_which_flag(tmp_path, capsys):
    arguments = ["main.py", "--mode=preview", f"--workdir={tmp_path}"]
    assert main.main([*arguments, "--dataset=", "--eval_dir=x"]) == 2
    assert "--unlabeled_dir=DIR" in capsys.readouterr().err
