# SPDX-License-Identifier: Apache-2.0
"""A plan needs neither the images nor the machine that it plans for."""

import re

import pytest
from conftest import REPOSITORY

import main
from noisy_student import command_line
from noisy_student import planning
from noisy_student.config import Config
from noisy_student.errors import UserError
from noisy_student.reporting.needs import disk_needs
from noisy_student.reporting.shortages import shortages

RECIPES = sorted((REPOSITORY / "flags").glob("*.flags"))


def plan_of(recipe, **changes):
    path = REPOSITORY / "flags" / f"{recipe}.flags"
    settings = command_line.read_flagfile(path)
    return planning.make_plan(Config(**{**settings, **changes}))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_can_be_planned(path, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["main.py", f"--flagfile={path}", "--mode=plan"]
    if path.stem == "own_images":
        with pytest.raises(UserError, match="no labeled images to plan for"):
            plan_of(path.stem)
        return
    code = main.main(flags)
    output = capsys.readouterr()
    for word in ("Data", "parameters", "multiply-adds", "memory", "labels"):
        if word != "labels" or "online" not in path.stem:
            assert word in output.out, word
    assert ("it fits" in output.out) == (code == 0)
    assert ("does not fit" in output.out) == (code == 2)
    assert ("cannot be run here" in output.err) == (code == 2)
    assert not list(tmp_path.iterdir())  # a plan leaves nothing behind


def test_the_papers_chain():
    plan = plan_of("imagenet_l2", plan_device="tpu", plan_devices=2048)
    names = [training.name for training in plan.trainings]
    assert names[:3] == ["teacher", "student 1", "student 1, finetuned"]
    assert len(names) == 7
    teacher, student, finetuned = plan.trainings[:3]
    assert (teacher.variant, teacher.image_size) == ("b7", 600)
    assert (student.variant, student.image_size) == ("l2", 475)
    assert finetuned.image_size == 800
    # 1,281,167 / 2048 steps an epoch: 350 and 1.5 of them.
    assert (student.steps, finetuned.steps) == (218949, 938)
    assert student.unlabeled_batch_size == 14 * 2048
    assert plan.trainings[5].unlabeled_batch_size == 28 * 2048
    assert student.num_unlabeled == 130_000_000
    assert student.costs.parameters == 480_309_308
    assert student.images_per_device(plan.num_devices) == 15
    assert plan.labeled.count == 1_281_167 and not plan.labeled.here
    assert plan.unlabeled.count == 300_000_000
    assert plan.num_labelings == 3
    assert plan.device_memory is None


def test_labels_of_a_few_classes_need_less_disk():
    # float16 for each class; or float16 and uint16 for three of them; and
    # float16 and uint16 for the top one, uint32 for the copies.
    for top_k, expected in (
        (None, 2 * 1000 + 4 + 4),
        (1000, 2 * 1000 + 4 + 4),
        (3, 3 * 4 + 4 + 4),
    ):
        plan = plan_of("imagenet_l2", label_top_k=top_k)
        assert disk_needs(plan)["labels"] == 300_000_000 * expected


def test_a_machine_that_is_large_enough_holds_it():
    large = {"plan_device": "gpu", "plan_devices": 8}
    plan = plan_of("imagenet_b0", **large, plan_memory_gb=1000.0)
    assert not any("needs" in text for text in shortages(plan))
    plan = plan_of("imagenet_b0", **large, plan_memory_gb=1.0)
    short = shortages(plan)
    assert "GPU has 1.0 GB" in short[0]
    assert "--batch_size" in short[0]


def test_where_the_network_alone_is_too_large_no_step_fits():
    (short, *_) = shortages(plan_of("digits", plan_memory_gb=0.001))
    assert "it cannot hold even one image" in short


def test_a_batch_of_billions_is_answered_at_once():
    (short, *_) = shortages(plan_of("digits", batch_size=2**31 - 1))
    assert "lower --batch_size" in short


@pytest.mark.parametrize("name", ["plan_devices", "accumulation_steps"])
def test_a_batch_that_does_not_divide_is_refused_as_in_the_run(name):
    with pytest.raises(UserError, match="does not divide"):
        plan_of("digits", batch_size=8, **{name: 3})


def test_an_online_teacher_needs_memory_and_no_labels():
    plan = plan_of("svhn_b0_online")
    assert plan.num_labelings == 0
    (student,) = plan.trainings  # the teacher is taken as it is
    assert student.online_teacher.parameters == student.costs.parameters
    assert student.num_unlabeled == 531_131


def test_what_is_here_is_counted():
    plan = plan_of("digits")
    assert plan.labeled.here and plan.labeled.count == 50
    assert (plan.unlabeled.count, plan.evaluation.count) == (947, 500)
    assert [training.steps for training in plan.trainings] == [150] * 3


def test_a_number_that_is_not_used_is_said(capsys):
    plan = plan_of("digits", num_unlabeled=5000)
    assert plan.unlabeled.count == 947
    assert "--num_unlabeled is not used" in plan.unlabeled.name
    # The paper's images are not here.
    plan = plan_of("imagenet_b0", num_unlabeled=5000)
    assert plan.unlabeled.count == 5000 and "used" not in plan.unlabeled.name


def test_a_teacher_labels_at_the_size_that_it_was_trained_at_last():
    plan = plan_of("imagenet_l2")
    labeling = [plan.trainings[k].costs.multiply_adds for k in (0, 2, 4)]
    assert plan.labeling_multiply_adds == sum(labeling)


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_the_readmes_advice_fits_a_usual_machine(tmp_path, device):
    for place in ("labeled/cat", "labeled/dog"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "1.jpg").write_bytes(b"is not read for this")
    text = (REPOSITORY / "README.md").read_text()
    (advice,) = re.findall("`(--image_size=[^`]*)`", text)
    flags = re.findall(r"--(\w+)(?:=(\w+))?", advice)
    settings = {name: int(value) if value else True for name, value in flags}
    plan = plan_of(
        "own_images",
        **settings,
        labeled_dir=str(tmp_path / "labeled"),
        plan_device=device,
        plan_memory_gb=8.0,
    )
    assert shortages(plan) == []


def test_folders_that_are_missing_are_named(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        plan_of("own_images", labeled_dir=str(tmp_path / "nowhere"))


def test_other_classes_are_refused_before_anything_begins(tmp_path):
    for place in ("labeled/cat", "labeled/dog", "eval/cat", "eval/cow"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "1.jpg").write_bytes(b"is not read for this")
    folders = {f"{k}_dir": str(tmp_path / k) for k in ("labeled", "eval")}
    with pytest.raises(UserError, match="images of cow, but .* are cat, dog"):
        plan_of("own_images", **folders)
