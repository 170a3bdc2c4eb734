# SPDX-License-Identifier: Apache-2.0
"""A mode asks for what it uses and no more, and for the model's own classes."""

import contextlib
import shutil

import pytest
from test_end_to_end import save_images

import main
from noisy_student.workdir import Workdir

pytestmark = pytest.mark.usefixtures("one_block", "no_report")

CLASSES = {"cat": (200, 40, 40), "dog": (40, 200, 40), "owl": (40, 40, 200)}
FOLDERS = ("labeled", "unlabeled", "eval")
# What each mode needs of them in a run that is done. All others can be gone.
NEEDS = {
    "iterate": (),
    "teach": (),
    "label": (),
    "select": (),
    "distill": (),
    "finetune": ("labeled",),
    "evaluate": ("eval",),
    "predict": (),
    "embed": (),
    "export": (),
    "report": (),
    "plan": (),
    "preview": ("unlabeled",),  # any of the three
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for number, (name, color) in enumerate(CLASSES.items()):
        save_images(root / "labeled" / name, color, 4, number)
        save_images(root / "eval" / name, color, 3, 10 + number)
        save_images(root / "unlabeled" / name, color, 3, 20 + number)
    return root


def flags(images, workdir):
    return (
        f"--workdir={workdir}",
        *(f"--{name}_dir={images / name}" for name in FOLDERS),
        "--width=0.1", "--depth=0.1", "--image_size=16", "--small_images",
        "--crop=padded", "--randaugment_num_ops=0", "--batch_size=4",
        "--unlabeled_ratio=1", "--train_steps=2", "--students=b0",
        "--confidence_threshold=0", "--finetune_epochs=0.5", "--force",
    )  # fmt: skip


def run(*arguments):
    return main.main(["main.py", *map(str, arguments)])


@pytest.fixture(scope="module")
def finished(one_block, no_report, images, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished") / "run"
    # A teacher alone needs no unlabeled images.
    with away(images, ["unlabeled"]):
        assert run(*flags(images, workdir), "--mode=teach") == 0
    assert run(*flags(images, workdir)) == 0
    return workdir


@pytest.fixture
def workdir(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


@contextlib.contextmanager
def away(images, names):
    """Take folders of images away for a while."""
    for name in names:
        (images / name).rename(images / f"{name} away")
    try:
        yield
    finally:
        for name in names:
            (images / f"{name} away").rename(images / name)


def command(mode, workdir, images):
    more = {
        "predict": (f"--input={workdir.parent / 'some'}",),
        "embed": (f"--input={workdir.parent / 'some'}",),
        "export": ("--export_formats=keras",),
    }
    if mode in ("predict", "embed"):
        shutil.copytree(images / "eval", workdir.parent / "some")
    return (f"--mode={mode}", f"--workdir={workdir}", *more.get(mode, ()))


@pytest.mark.parametrize("mode", NEEDS)
def test_a_finished_run_misses_no_images_that_a_mode_does_not_use(
    mode, images, workdir, capsys
):
    if mode == "select":  # of a student that has not begun
        shutil.rmtree(workdir / "iteration_1" / "checkpoints")
        (workdir / "iteration_1" / "model.keras").unlink()
    data = (workdir / "data.json").read_bytes()
    arguments = command(mode, workdir, images)
    with away(images, [name for name in FOLDERS if name not in NEEDS[mode]]):
        assert run(*arguments) == 0, capsys.readouterr().err
    assert (workdir / "data.json").read_bytes() == data
    capsys.readouterr()
    for name in NEEDS[mode]:
        gone = FOLDERS if mode == "preview" else [name]
        shutil.rmtree(workdir / "iteration_1" / "finetune", ignore_errors=True)
        (workdir / "iteration_1" / "finetuned.keras").unlink(missing_ok=True)
        with away(images, gone):
            assert run(*arguments) == 2
        assert f"{images}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("mode", "gone", "missed"),
    [
        ("teach", ("labeled",), "labeled"),
        ("teach", ("eval",), "eval"),  # mistyped: nothing knows of it yet
        ("iterate", ("unlabeled",), "unlabeled"),
    ],
)
def test_a_new_run_misses_what_it_will_need(
    mode, gone, missed, images, tmp_path, capsys
):
    arguments = flags(images, tmp_path / "run")
    with away(images, gone):
        code = run(*arguments, f"--mode={mode}")
    assert code == 2
    assert f"{images / missed} is missing" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_what_is_left_is_trained_without_the_evaluation_images(
    images, workdir, capsys
):
    shutil.rmtree(workdir / "iteration_1" / "checkpoints")
    (workdir / "iteration_1" / "model.keras").unlink()
    with away(images, ["eval"]):
        assert run(*command("iterate", workdir, images)) == 0
    assert "going on without evaluation images" in capsys.readouterr().out
    assert Workdir(workdir).results()[-1]["top1"] is None


def rename(images, old, new):
    for name in ("labeled", "eval"):
        (images / name / old).rename(images / name / new)


def rename_one(images):
    rename(images, "dog", "wolf")


def add_one(images):
    for name in ("labeled", "eval"):
        save_images(images / name / "ant", (9, 9, 9), 2, 0)


def remove_one(images):
    for name in ("labeled", "eval"):
        shutil.rmtree(images / name / "dog")


@pytest.mark.parametrize(
    ("change", "named"),
    [(rename_one, "wolf"), (add_one, "ant"), (remove_one, "dog")],
)
@pytest.mark.parametrize("mode", ["iterate", "distill", "finetune", "evaluate"])
def test_a_model_keeps_the_classes_that_it_was_made_with(
    change, named, mode, images, workdir, tmp_path, capsys
):
    if mode in ("iterate", "distill"):
        (workdir / "iteration_1" / "model.keras").unlink()
    changed = shutil.copytree(images, tmp_path / "images")
    change(changed)
    text = (workdir / "run.flags").read_text()
    (workdir / "run.flags").write_text(text.replace(f"{images}", f"{changed}"))
    before = Workdir(workdir).results()
    if mode == "evaluate" and change is remove_one:
        return  # a subset may be evaluated on
    assert run(*command(mode, workdir, images)) == 2
    message = capsys.readouterr().err
    assert named in message and message.count("\n") == 1, message
    assert Workdir(workdir).results() == before


@pytest.mark.parametrize("mode", ["predict", "report", "label"])
def test_what_reads_no_labeled_images_keeps_the_classes_too(
    mode, images, workdir, tmp_path, capsys
):
    changed = shutil.copytree(images, tmp_path / "images")
    rename_one(changed)
    text = (workdir / "run.flags").read_text()
    (workdir / "run.flags").write_text(text.replace(f"{images}", f"{changed}"))
    assert run(*command(mode, workdir, images)) == 0, capsys.readouterr().err
    assert Workdir(workdir).data()["classes"] == ["cat", "dog", "owl"]
