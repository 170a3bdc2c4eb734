# SPDX-License-Identifier: Apache-2.0
"""The commands of a user, from folders of images to a student."""

import csv
import json
import shutil

import numpy as np
import pytest
from conftest import REPOSITORY
from PIL import Image

import main
from noisy_student import command_line
from noisy_student.evaluation import predictions

pytestmark = pytest.mark.usefixtures("one_block")

SMOKE = REPOSITORY / "flags" / "smoke.flags"
TINY = (
    "--train_steps=4",
    "--batch_size=8",
    "--eval_batch_size=6",
    "--students=b0,b0",
)
COLORS = {
    "blue sky": (20, 20, 220),
    "grass": (20, 220, 20),
    "red": (220, 20, 20),
}
# Every format that the README names, and a name that is no identifier.
ENDINGS = (".jpg", ".png", ".bmp", ".gif", ".webp", ".JPEG")


def save_images(folder, color, count, seed):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        noise = rng.integers(-20, 20, (12, 10, 3))
        pixels = np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)
        path = folder / f"a picture {i:02d}{ENDINGS[i % len(ENDINGS)]}"
        Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Folders of images as a user has them: some of them broken."""
    root = tmp_path_factory.mktemp("photos")
    for number, (name, color) in enumerate(COLORS.items()):
        save_images(root / "labeled" / name, color, 6, number)
        save_images(root / "eval" / name, color, 5, 10 + number)
        save_images(
            root / "unlabeled" / f"album {number}" / "deep",
            color,
            7,
            20 + number,
        )
    (root / "labeled" / "grass" / "broken.jpg").write_bytes(b"\xff\xd8\xff no")
    (root / "eval" / "red" / "text.png").write_text("this is text")
    (root / "unlabeled" / "album 0" / "cut off.jpg").write_bytes(
        (root / "labeled" / "red" / "a picture 00.jpg").read_bytes()[:200]
    )
    (root / "unlabeled" / "notes.txt").write_text("no image")
    (root / "labeled" / "red" / "scan.tif").write_text("not read")
    save_images(root / "labeled" / "@eaDir", (9, 9, 9), 1, 30)
    return root


def run(*arguments):
    """Run a command in this process, on two CPU devices or one."""
    return main.main(["main.py", f"--flagfile={SMOKE}", *TINY, *arguments])


def folder_flags(photos):
    return [
        "--dataset=",
        f"--labeled_dir={photos / 'labeled'}",
        f"--unlabeled_dir={photos / 'unlabeled'}",
        f"--eval_dir={photos / 'eval'}",
    ]


def results(workdir):
    return json.loads((workdir / "results.json").read_text())


@pytest.fixture(scope="module")
def trained(one_block, photos, tmp_path_factory):
    """A workdir in which teach, label and distill were run one by one."""
    workdir = tmp_path_factory.mktemp("runs") / "photos"
    flags = [*folder_flags(photos), f"--workdir={workdir}"]
    for mode in ("teach", "label", "distill"):
        assert run(f"--mode={mode}", *flags) == 0, mode
    return workdir


@pytest.fixture
def copy_of_trained(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def test_phases_leave_what_the_design_says(trained):
    names = {
        str(p.relative_to(trained)) for p in trained.rglob("*") if p.is_file()
    }
    for expected in (
        "run.flags",
        "data.json",
        "results.json",
        "iteration_0/model.keras",
        "iteration_1/model.keras",
        "iteration_1/labels/manifest.json",
        "iteration_1/labels/probs-00000-of-00001.npy",
        "iteration_1/labels/top-00000-of-00001.npy",
        "iteration_1/labels/copies-00000-of-00001.npy",
        "iteration_1/labels/selection.json",
    ):
        assert expected in names, f"{expected} is not in {sorted(names)}"
    phases = [(r["phase"], r["iteration"]) for r in results(trained)]
    assert phases == [("teach", 0), ("label", 1), ("distill", 1)]


def test_phases_leave_a_report_of_real_images(trained):
    page = (trained / "report.html").read_text()
    for record in results(trained):
        if record["phase"] != "label":
            assert f"{record['top1']:.1%}" in page
    # 17 of the operations, 36 of the noise, and those that were labeled.
    assert page.count("<img") > 60 and "Confusion matrix" in page
    for k in (0, 1):
        (path,) = (trained / f"iteration_{k}").glob("predictions-*.npz")
        found = predictions.load(path)
        assert found.about["classes"] == list(COLORS)
        # 15 images and one text called .png.
        assert len(found.label) == 16 and found.decoded.sum() == 15
        right = results(trained)[2 * k]["top1"] * 15
        assert found.right.sum() == pytest.approx(right)


def test_results_count_every_image_that_decodes(trained):
    for record in results(trained):
        if record["phase"] != "label":
            # 15 images and one text called .png; a batch holds 6.
            assert record["num_examples"] == 15
            assert 0 <= record["top1"] <= record["top5"] == 1  # 3 classes
            assert record["steps"] == 4


def test_labels_keep_class_names_and_skip_the_broken(trained):
    labels = trained / "iteration_1" / "labels"
    manifest = json.loads((labels / "manifest.json").read_text())
    assert manifest["classes"] == list(COLORS)
    probs = np.load(labels / "probs-00000-of-00001.npy")
    copies = np.load(labels / "copies-00000-of-00001.npy")
    assert probs.dtype == np.float16 and probs.shape == (22, 3)
    assert copies.dtype == np.uint32 and copies.shape == (22,)
    (left_out,) = json.loads((trained / "skipped_unlabeled.json").read_text())[
        "skipped"
    ]
    is_whole = np.arange(22) != left_out["row"]
    assert np.isnan(probs[~is_whole]).all() and copies[~is_whole] == [0]
    np.testing.assert_allclose(probs[is_whole].sum(axis=1), 1, atol=3e-3)
    selection = json.loads((labels / "selection.json").read_text())
    assert selection["num_undecodable"] == 1
    assert selection["num_selected"] == copies.sum()
    with open(trained / "skipped.csv", newline="") as file:
        skipped = list(csv.DictReader(file))
    assert [(s["images"], s["file"].split("/")[-1]) for s in skipped] == [
        ("labeled", "broken.jpg"),
        ("labeled", "@eaDir"),
        ("labeled", "scan.tif"),
        ("unlabeled", "cut off.jpg"),
        ("evaluation", "text.png"),
    ]
    assert "JPEG" in skipped[0]["reason"]
    assert "none of JPEG, PNG" in skipped[4]["reason"]


def test_a_workdir_knows_what_it_learned_from(trained):
    data = json.loads((trained / "data.json").read_text())
    assert data["classes"] == list(COLORS)
    counts = {"labeled": 19, "unlabeled": 22, "evaluation": 16}
    for role, count in counts.items():
        assert data[role]["num_images"] == count, role
        assert len(data[role]["fingerprint"]) == 64


def test_images_are_predicted_when_those_of_the_training_are_gone(
    copy_of_trained, photos, tmp_path
):
    images = shutil.copytree(photos / "eval" / "grass", tmp_path / "images")
    run_flags = copy_of_trained / "run.flags"
    text = run_flags.read_text().replace(str(photos), "gone")
    run_flags.write_text(text)
    output = tmp_path / "p.csv"
    arguments = [f"--workdir={copy_of_trained}", f"--output={output}"]
    assert (
        main.main(
            ["main.py", "--mode=predict", f"--input={images}", *arguments]
        )
        == 0
    )
    lines = output.read_text().splitlines()
    assert len(lines) == 1 + 5
    for line in lines[1:]:
        assert set(line.split(",")[1:6:2]) == set(COLORS), line


def test_the_same_command_again_repeats_nothing(copy_of_trained, capsys):
    before = results(copy_of_trained)
    for mode in ("teach", "distill"):
        code = run(
            f"--mode={mode}", "--iteration=1", f"--workdir={copy_of_trained}",
            "--dataset=", *recorded(copy_of_trained),
        )  # fmt: skip
        assert code == 0
        assert "already" in capsys.readouterr().out
    assert results(copy_of_trained) == before


def recorded(workdir):
    """The data flags that a workdir was made with."""
    lines = (workdir / "run.flags").read_text().splitlines()
    return [line for line in lines if "_dir=" in line and "data" not in line]


def test_the_workdir_alone_is_enough(copy_of_trained, capsys):
    arguments = ["main.py", "--mode=evaluate", f"--workdir={copy_of_trained}"]
    assert main.main(arguments) == 0
    first = results(copy_of_trained)[-1]
    assert main.main([*arguments, "--eval_batch_size=64"]) == 0
    second = results(copy_of_trained)[-1]
    for record in (first, second):
        assert record["phase"] == "evaluate" and record["iteration"] == 1
        assert record["num_examples"] == 15
    assert (first["top1"], first["top5"]) == (second["top1"], second["top5"])
    assert results(copy_of_trained)[2]["top1"] == first["top1"]
    assert "top-1" in capsys.readouterr().out


def test_labeling_goes_on_at_the_missing_shard(copy_of_trained):
    labels = copy_of_trained / "iteration_1" / "labels"
    path = labels / "probs-00000-of-00001.npy"
    probs = path.read_bytes()
    path.unlink()
    arguments = [
        "main.py", "--mode=label", "--iteration=1",
        f"--workdir={copy_of_trained}",
    ]  # fmt: skip
    assert main.main(arguments) == 0
    assert path.read_bytes() == probs


def test_labels_of_another_teacher_are_refused(copy_of_trained, capsys):
    model = copy_of_trained / "iteration_0" / "model.keras"
    shutil.copy(copy_of_trained / "iteration_1" / "model.keras", model)
    arguments = [
        "main.py", "--mode=label", "--iteration=1",
        f"--workdir={copy_of_trained}",
    ]  # fmt: skip
    assert main.main(arguments) == 2
    assert "another teacher" in capsys.readouterr().err


def test_labels_of_other_images_are_refused(
    copy_of_trained, photos, capsys, tmp_path
):
    other = shutil.copytree(photos / "unlabeled", tmp_path / "unlabeled")
    run_flags = copy_of_trained / "run.flags"
    text = run_flags.read_text()
    run_flags.write_text(text.replace(str(photos / "unlabeled"), str(other)))
    (other / "album 0" / "deep" / "a picture 00.jpg").unlink()
    for mode in ("label", "distill"):
        arguments = [
            "main.py", f"--mode={mode}", "--iteration=1",
            f"--workdir={copy_of_trained}",
        ]  # fmt: skip
        if mode == "distill":
            (copy_of_trained / "iteration_1" / "model.keras").unlink()
        assert main.main(arguments) == 2, mode
        assert "another source" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.two_devices
def test_the_whole_loop_on_two_devices(photos, tmp_path, capsys):
    flags = [
        *folder_flags(photos),
        f"--workdir={tmp_path / 'run'}",
        "--distribution=mirrored",
        "--cpu_devices=2",
        "--students=b0",
    ]
    assert run(*flags) == 0
    out = capsys.readouterr().out
    assert "on 2 devices" in out
    table = out[out.rindex("model ") :].splitlines()
    assert [line.split("  ")[0] for line in table[2:4]] == [
        "teacher",
        "student 1",
    ]
    # What was trained on two devices evaluates on one.
    workdir = tmp_path / "run"
    arguments = ["main.py", "--mode=evaluate", f"--workdir={workdir}"]
    assert main.main([*arguments, "--distribution=cpu"]) == 0
    assert results(workdir)[-1]["top1"] == results(workdir)[-2]["top1"]


def test_run_flags_say_what_was_run(trained):
    recipe = command_line.read_flagfile(trained / "run.flags")
    assert recipe["train_steps"] == 4 and recipe["width"] == 0.1
    assert recipe["labeled_dir"].endswith("labeled")
