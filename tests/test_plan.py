# SPDX-License-Identifier: Apache-2.0
"""A plan needs neither the images nor the machine, and its numbers add up."""

import dataclasses
import re

import pytest
from conftest import REPOSITORY

import main
from noisy_student import command_line
from noisy_student import plan
from noisy_student.config import Config
from noisy_student.errors import UserError
from noisy_student.models.accounting import Costs

RECIPES = sorted((REPOSITORY / "flags").glob("*.flags"))
# Numbers that tell the items apart.
COSTS = Costs(
    parameters=1_000_000,
    statistics=20_000,
    multiply_adds=390_000_000,
    activations=5_000_000,
    block_inputs=300_000,
    largest_block=700_000,
)
MODEL_STATE = 4 * (6 * 1_000_000 + 2 * 20_000)


def plan_of(recipe, **changes):
    path = REPOSITORY / "flags" / f"{recipe}.flags"
    settings = command_line.read_flagfile(path)
    return plan.make_plan(Config(**{**settings, **changes}))


def rows_of(planned, title):
    """Dict of name to (number, note, ...) in the block with this title.

    Rows without a name are numbered.
    """
    blocks = plan.plan_text(planned).split("\n\n")
    (block,) = [block for block in blocks if block.startswith(title)]
    rows = {}
    for line in block.splitlines()[1:]:
        name, *columns = re.split(" {2,}", line[2:])
        rows[name or len(rows)] = tuple(columns)
    return rows


def memory(images=7, image_size=100, costs=COSTS, teacher=None, **settings):
    """Bytes of activations, weights and so on, pixels, and TensorFlow."""
    found = plan.memory_per_device(
        Config(**settings), costs, images, image_size, teacher
    )
    return tuple(found.values())


def test_memory_follows_its_formula():
    pixels = 7 * 3 * 100 * 100
    fixed = MODEL_STATE, pixels, plan.TENSORFLOW_BYTES
    assert memory() == (7 * 4 * 5_000_000, *fixed)
    # Two of three tensors take half: 8/3 bytes a value.
    activations = pytest.approx(7 * 4 * 5_000_000 * 2 / 3, abs=1)
    assert memory(dtype="bfloat16") == (activations, *fixed)
    # The inputs of all blocks, and all of one.
    assert memory(rematerialize=True) == (7 * 4 * 1_000_000, *fixed)
    # 3 + 2 + 2 images; two sums of gradients.
    assert memory(accumulation_steps=3) == (
        3 * 4 * 5_000_000,
        MODEL_STATE + 2 * 4 * 1_000_000,
        *fixed[1:],
    )
    teacher = dataclasses.replace(COSTS, parameters=300, statistics=40)
    assert memory(teacher=teacher)[1] == MODEL_STATE + 4 * 340


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_can_be_planned(path, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["main.py", f"--flagfile={path}", "--mode=plan"]
    code = main.main(flags)
    output = capsys.readouterr()
    if path.stem == "own_images":
        assert code == 2
        assert "no labeled images to plan for" in output.err
        return
    for word in ("Data", "parameters", "multiply-adds", "memory", "labels"):
        assert word in output.out, word
    assert ("The run fits" in output.out) == (code == 0)
    assert ("The run does not fit" in output.out) == (code == 2)
    assert ("the run does not fit" in output.err) == (code == 2)
    assert not list(tmp_path.iterdir())  # a plan leaves nothing behind


def test_the_papers_chain():
    planned = plan_of("imagenet_l2", plan_device="tpu", plan_devices=2048)
    names = [model.name for model in planned.models]
    assert names[:3] == ["teacher", "student 1", "student 1, finetuned"]
    assert len(names) == 7
    teacher, student, finetuned = planned.models[:3]
    assert teacher.network == "EfficientNet-B7 at 600 pixels"
    assert student.network == "EfficientNet-L2 at 475 pixels"
    assert finetuned.network == "EfficientNet-L2 at 800 pixels"
    # 1,281,167 / 2048 steps an epoch: 350 and 1.5 of them.
    assert (student.steps, finetuned.steps) == (218949, 938)
    assert student.batch == {"labeled": 2048, "pseudo-labeled": 14 * 2048}
    assert planned.models[5].batch["pseudo-labeled"] == 28 * 2048
    assert finetuned.batch == {"labeled": 2048}
    assert planned.per_pass["pseudo-labeled"] == 130_000_000
    images = planned.images
    assert images["labeled"].count == 1_281_167 and not images["labeled"].here
    assert images["unlabeled"].count == 300_000_000
    assert planned.device_memory is None
    # A teacher labels at the size at which it was trained last.
    labeling = [planned.models[k].costs.multiply_adds for k in (0, 2, 4)]
    assert planned.label_operations == 2 * sum(labeling) * 300_000_000
    # As the arithmetic: 15 images on each device.
    of_l2 = student.costs
    assert tuple(student.memory.values()) == memory(15, 475, of_l2)

    rows = rows_of(planned, "Student 1: ")
    assert rows["parameters"][0] == "480.3 million"
    assert rows["multiply-adds"][0] == "170.9 billion"
    assert rows["steps"] == (
        "218,949",
        "of 2,048 labeled + 28,672 pseudo-labeled images",
    )
    assert rows["epochs"] == ("350.0", "over 1,281,167 labeled images")
    # 218,949 * 28,672 / 130,000,000
    assert rows["passes"] == ("48.3", "over 130,000,000 pseudo-labeled images")
    assert rows["memory"][1] == "per TPU, for 15 images per step"
    # 218,949 steps of 30,720 images of 6 * 170.9e9 operations, at 2048 * 5e12
    # per second: within a factor of 10 of the paper's 6 days (section 3.1).
    assert rows["time"][0] == "8 days"
    text = plan.plan_text(planned)
    assert "imagenet2012 train (not on this machine)" in text
    alike = "Student 2: EfficientNet-L2 at 475 pixels, same as student 1\n"
    assert alike in text
    assert "\nStudent 3: EfficientNet-L2 at 475 pixels\n" in text


def test_the_digits_are_on_this_machine():
    planned = plan_of("digits", plan_memory_gb=2.0)
    assert {k: (v.count, v.here) for k, v in planned.images.items()} == {
        "labeled": (50, True),
        "unlabeled": (947, True),
        "evaluation": (500, True),
    }
    assert [model.steps for model in planned.models] == [150] * 3
    teacher, student = (
        rows_of(planned, "Teacher"),
        rows_of(planned, "Student 1"),
    )
    assert "passes" not in teacher
    assert teacher["steps"] == ("150", "of 50 labeled images")
    # How many pass the filter is known after labeling.
    assert student["passes"] == ("unknown", "until labeled")
    text = plan.plan_text(planned)
    assert text.endswith("The run fits: the CPU has 2.0 GB of memory")


def test_memory_is_the_sum_of_its_rows():
    planned = plan_of("digits")
    rows = rows_of(planned, "Student 1")
    units = {"kB": 1e3, "MB": 1e6, "GB": 1e9}
    sizes = [
        float(number.split()[0]) * units[number.split()[1]]
        for name, (number, *_) in rows.items()
        if name == "memory" or isinstance(name, int)
    ]
    assert len(sizes) == 5
    assert sizes[0] == pytest.approx(sum(sizes[1:]), rel=0.01)


def test_time_has_training_labeling_and_a_total():
    def times(**changes):
        planned = plan_of("imagenet_l2", plan_device="tpu", **changes)
        rows = rows_of(planned, "Time, if one TPU sustains 5,000 billion")
        return {name: number for name, (number, *_) in rows.items()}

    planned = plan_of("imagenet_l2", plan_device="tpu")
    training = sum(model.operations for model in planned.models)
    years = 5e12 * 365 * 86400
    assert times() == {
        "training": f"{training / years:,.0f} years",
        "labeling": f"{planned.label_operations / years:,.0f} years",
        "total": f"{(training + planned.label_operations) / years:,.0f} years",
    }
    # Unlabeled images that are elsewhere, of which nobody gave the number.
    elsewhere = {"num_unlabeled": None, "unlabeled_tfrecords": "/nowhere/u-*"}
    found = times(**elsewhere)
    assert (found["labeling"], found["total"]) == ("unknown", "unknown")
    planned = plan_of("imagenet_l2", plan_memory_gb=1e6, **elsewhere)
    planned = dataclasses.replace(planned, free_disk=10**12)
    assert planned.disk["labels"] is None
    text = plan.plan_text(planned)
    assert text.endswith("because unknown: the size of the labels")


@pytest.mark.parametrize(
    ("settings", "few"),
    [
        ({"train_steps": 100, "epochs": 1.0}, None),
        ({"train_steps": 99}, "(teacher: 99, student 1: 99, student 2: 99)"),
        (
            {"train_steps": 100, "finetune": True, "finetune_epochs": 38.0},
            "(student 1, finetuned: 38, student 2, finetuned: 38)",
        ),
    ],
)
def test_too_few_steps_are_a_warning(settings, few):
    text = plan.plan_text(plan_of("digits", **settings))
    assert ("Warning" in text) == (few is not None)
    if few:
        flag = "--finetune_epochs" if "finetuned" in few else "--epochs (or"
        assert f"{few}: raise {flag}" in text


def test_disk_space():
    planned = plan_of("digits")
    costs = planned.models[0].costs
    checkpoint = 4 * (4 * costs.parameters + 2 * costs.statistics)
    assert planned.disk == {
        # Ten classes and the top one, and how often it is repeated.
        "labels": 2 * 947 * (2 * 10 + 2 + 1 + 4),
        # Two of each model stay, and one more is being written.
        "checkpoints": 7 * checkpoint,
        "models": 3 * 4 * (costs.parameters + costs.statistics),
    }
    needed = sum(planned.disk.values())
    planned = dataclasses.replace(planned, free_disk=needed)
    assert plan.shortages(planned) == []
    planned = dataclasses.replace(planned, free_disk=needed - 1)
    (sentence,) = plan.shortages(planned)
    assert f"needs {plan.bytes_text(needed)} of disk space" in sentence
    assert "--workdir" in sentence


def test_labels_of_a_few_classes_need_less_disk():
    # float16 for each class; or float16 and uint16 for three of them; and
    # float16 and uint16 for the top one, uint32 for the repeats.
    for top_k, expected in (
        (None, 2 * 1000 + 4 + 4),
        (1000, 2 * 1000 + 4 + 4),
        (3, 3 * 4 + 4 + 4),
    ):
        planned = plan_of("imagenet_l2", label_top_k=top_k)
        assert planned.disk["labels"] == 3 * 300_000_000 * expected


def test_a_model_that_does_not_fit_is_told_once_with_the_way_out():
    planned = plan_of("digits", plan_devices=2, plan_device="gpu")
    _, student, again = planned.models
    assert student == again
    total = sum(student.memory.values())
    planned = dataclasses.replace(planned, device_memory=total)
    assert plan.shortages(planned) == []
    planned = dataclasses.replace(planned, device_memory=total - 1)
    (sentence,) = plan.shortages(planned)
    assert sentence.startswith("student 1 needs ")
    assert "each GPU has" in sentence and "\n" not in sentence
    for flag in ("batch_size", "rematerialize", "accumulation_steps", "dtype"):
        assert f"--{flag}" in sentence
    text = plan.plan_text(planned)
    assert text.endswith(f"The run does not fit\n  - {sentence}")


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 2**31 - 1},
        {"plan_memory_gb": 0.001},
        {"image_size": 10_000, "batch_size": 2**31 - 1, "epochs": 2.0**31 - 1},
        {"batch_size": 2**31 - 1, "plan_devices": 2**31 - 1},
        {"unlabeled_ratio": "10000", "batch_size": 2**31 - 1},
    ],
    ids=lambda settings: ",".join(settings),
)
def test_extreme_numbers_are_answered_in_one_sentence(settings, capsys):
    """At once: nothing is searched for or tried out."""
    flags = [f"--{name}={value}" for name, value in settings.items()]
    flags += [] if "plan_memory_gb" in settings else ["--plan_memory_gb=0.5"]
    assert main.main(["main.py", "--mode=plan", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "does not fit: the teacher needs" in line


@pytest.mark.parametrize("name", ["plan_devices", "accumulation_steps"])
def test_a_batch_that_does_not_divide_is_refused_as_in_the_run(name):
    with pytest.raises(UserError, match="does not divide"):
        plan_of("digits", batch_size=8, **{name: 3})


def test_an_online_teacher_needs_memory_and_no_labels():
    planned = plan_of("svhn_b0_online")
    assert planned.label_operations == planned.disk["labels"] == 0
    (student,) = planned.models  # the teacher is used as it is
    assert planned.per_pass["pseudo-labeled"] == 531_131
    expected = memory(768, 32, student.costs, student.costs)
    assert tuple(student.memory.values()) == expected
    assert list(rows_of(planned, "Time")) == ["training"]


def test_only_pseudo_labeled_images_in_a_batch():
    planned = plan_of("digits", joint_training=False)
    rows = rows_of(planned, "Student 1")
    assert rows["steps"] == ("150", "of 150 pseudo-labeled images")
    assert "epochs" not in rows and "passes" in rows


def test_a_number_that_is_ignored_is_told():
    images = plan_of("digits", num_unlabeled=5000).images["unlabeled"]
    assert images.count == 947 and "--num_unlabeled is ignored" in images.name
    # The paper's images are not here.
    images = plan_of("imagenet_b0", num_unlabeled=5000).images["unlabeled"]
    assert images.count == 5000 and "ignored" not in images.name


@pytest.fixture
def folders(tmp_path):
    """Settings that name folders of two classes."""
    for place in ("labeled/cat", "labeled/dog", "eval/cat", "eval/dog"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "1.jpg").write_bytes(b"is not read for this")
    return {f"{k}_dir": str(tmp_path / k) for k in ("labeled", "eval")}


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_the_readmes_advice_fits_a_usual_machine(folders, device):
    text = (REPOSITORY / "README.md").read_text()
    (advice,) = re.findall("`(--image_size=[^`]*)`", text)
    flags = re.findall(r"--(\w+)(?:=(\w+))?", advice)
    settings = {name: int(value) if value else True for name, value in flags}
    usual = {"plan_device": device, "plan_memory_gb": 8.0}
    planned = plan_of("own_images", **settings, **folders, **usual)
    assert plan.shortages(planned) == []


def test_folders_that_are_missing_are_named(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        plan_of("own_images", labeled_dir=str(tmp_path / "nowhere"))


def test_other_classes_are_refused_before_anything_begins(folders, tmp_path):
    (tmp_path / "eval" / "dog").rename(tmp_path / "eval" / "cow")
    with pytest.raises(UserError, match="images of cow, but .* are cat, dog"):
        plan_of("own_images", **folders)
