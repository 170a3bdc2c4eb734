# SPDX-License-Identifier: Apache-2.0
"""A plan says the numbers that follow from its settings, and what is short."""

import dataclasses
import re

import pytest

from noisy_student.models import accounting
from noisy_student.reporting import needs
from noisy_student.reporting.needs import Images
from noisy_student.reporting.needs import Plan
from noisy_student.reporting.needs import Training
from noisy_student.reporting.plan import plan_text
from noisy_student.reporting.shortages import shortages

# Numbers that tell the items apart.
COSTS = accounting.Costs(
    parameters=1_000_000,
    statistics=20_000,
    multiply_adds=390_000_000,
    # The stem, 16 blocks, the end.
    parts=(
        accounting.Part(30_000, 1_070_000, 600_000, 500_000),
        accounting.Part(100_000, 3_000_000, 1_000_000, 800_000),
        *[accounting.Part(10_000, 20_000, 5_000, 5_000)] * 15,
        accounting.Part(50_000, 300_000, 20_000, 200_000),
    ),
)
TEACHER = Training(
    name="teacher",
    variant="b0",
    image_size=100,
    costs=COSTS,
    steps=1000,
    batch_size=30,
    unlabeled_batch_size=0,
    num_labeled=1500,
)
STUDENT = dataclasses.replace(
    TEACHER, name="student 1", unlabeled_batch_size=90, num_unlabeled=6000
)
PLAN = Plan(
    num_classes=10,
    labeled=Images("cifar10/train[:1500]", 1500),
    unlabeled=Images("cifar10/train[1500:]", 48_500, here=False),
    evaluation=None,
    trainings=(TEACHER, STUDENT),
    num_labelings=1,
    labeling_multiply_adds=390_000_000,
    label_bytes=24,
    device="GPU",
    num_devices=2,
    device_memory=10_000_000_000,
    free_disk=1_000_000_000,
)


def blocks_of(plan):
    return plan_text(plan).split("\n\n")


def row(block, name):
    """The words of a block's line, found by its first word."""
    lines = [line.split() for line in block.splitlines()]
    (found,) = [words for words in lines if words and words[0] == name]
    return found


def test_memory_is_the_sum_of_its_items():
    memory = needs.memory_per_device(COSTS, 7, 100)
    assert memory == {
        "weights": 4_000_000,
        "statistics": 80_000,
        "average": 4_080_000,
        "optimizer": 8_000_000,
        "gradients": 4_000_000,
        "update": 4_000_000,
        "activations": 7 * 20_000_000,
        "pixels": 7 * 100 * 100 * 3,
    }
    on_cpu = needs.memory_per_device(COSTS, 7, 100, on_cpu=True)
    program = on_cpu.pop("program")
    assert on_cpu == memory
    assert program == 16 * needs.GRAPH_BYTES_PER_BLOCK
    teaching = needs.memory_per_device(COSTS, 7, 100, online_teacher=COSTS)
    assert teaching.pop("online_teacher") == 4_080_000
    assert teaching == memory


def test_bfloat16_halves_what_batchnorm_does_not_need():
    memory = needs.memory_per_device(COSTS, 7, 100, dtype="bfloat16")
    float32 = 600_000 + 1_000_000 + 15 * 5_000 + 20_000
    image = 2 * (5_000_000 - float32) + 4 * float32
    assert memory["activations"] == 7 * image
    assert memory["weights"] == 4_000_000


def test_rematerialization_keeps_inputs_and_one_part():
    memory = needs.memory_per_device(COSTS, 7, 100, rematerialize=True)
    # The peak is the first block's: the inputs up to it, all inside of it, and
    # once more its largest tensor.
    image = 4 * (30_000 + 100_000 + 3_000_000 + 800_000)
    assert memory["activations"] == 7 * image
    # In a network of one large part there is nothing to win.
    (part,) = [accounting.Part(1000, 4000, 0, 500)]
    costs = dataclasses.replace(COSTS, parts=(part,))
    found = needs.activations_per_image(costs, "float32", True)
    assert found == 4 * (1000 + 4000 + 500)


def test_more_of_a_graph():
    changes = {"rematerialize": True, "accumulation_steps": 3}
    on_cpu = needs.memory_per_device(COSTS, 7, 100, on_cpu=True, **changes)
    assert on_cpu["program"] == 16 * (27_000_000 + 2 * 5_000_000)


def test_parts_of_a_batch_need_a_sum_of_gradients():
    memory = needs.memory_per_device(COSTS, 7, 100, accumulation_steps=3)
    assert memory["activations"] == 3 * 20_000_000  # of 3 + 2 + 2 images
    assert memory["accumulated"] == 8_000_000
    # The batch as it comes and cut.
    assert memory["pixels"] == 2 * 7 * 100 * 100 * 3


def test_devices_share_a_batch_and_the_larger_part_counts():
    assert TEACHER.images_per_device(2) == 15
    assert STUDENT.images_per_device(2) == 60
    assert STUDENT.images_per_device(7) == 18  # 17.14


def test_disk():
    found = needs.disk_needs(PLAN)
    assert found["labels"] == 48_500 * 24
    checkpoint = 4 * (4 * 1_000_000 + 2 * 20_000)
    # Two of each model stay, and one more is being written.
    assert found["checkpoints"] == 5 * checkpoint
    assert found["models"] == 2 * 4_080_000


def test_disk_without_labels_or_without_their_number():
    plan = dataclasses.replace(PLAN, num_labelings=0)
    assert needs.disk_needs(plan)["labels"] == 0
    for unlabeled in (None, Images("somewhere", None)):
        plan = dataclasses.replace(PLAN, unlabeled=unlabeled)
        assert needs.disk_needs(plan)["labels"] is None
        assert "unknown" in row(blocks_of(plan)[4], "labels")
        assert "compare the disk yourself" in plan_text(plan)


def test_a_plan_that_fits():
    assert shortages(PLAN) == []
    data, teacher, student, _, disk, verdict = blocks_of(PLAN)
    assert row(data, "labeled") == ["labeled", "1,500", "cifar10/train[:1500]"]
    assert row(data, "unlabeled")[1] == "48,500"
    assert "not here yet" in data
    assert row(data, "evaluation") == ["evaluation", "0", "none", "given"]

    assert teacher.startswith("Teacher: EfficientNet-B0 at 100 pixels\n")
    assert row(teacher, "parameters")[:3] == ["parameters", "1.0", "million"]
    assert row(teacher, "multiply-adds")[1:3] == ["0.39", "billion"]
    assert row(teacher, "steps")[1:] == (
        "1,000 each learns from 30 labeled images".split()
    )
    # 1000 steps of 30 out of 1500.
    assert row(teacher, "passes")[1:4] == ["20.0", "over", "all"]
    assert "over all 1,500 labeled images" in teacher
    # 1000 * 30 images of 6 * 390 million operations.
    assert "7.0e+13 operations, 10,000 billion a second" in teacher
    assert row(teacher, "time")[1:3] == ["<", "1"]
    assert "for 15 images a step" in teacher

    assert "30 labeled + 90 pseudo-labeled images" in student
    # 1000 steps of 90 out of 6000.
    assert re.search(r"passes +15\.0 +over all 6,000 pseudo-labeled", student)
    # 28 MB of weights and so on, and 60 times 20.03 MB.
    assert row(student, "memory")[1:3] == ["1.2", "GB"]
    assert "by each of 2 GPUs, for 60 images a step" in student

    assert row(disk, "labels")[:3] == ["labels", "1.2", "MB"]
    assert verdict == "Verdict: it fits, for each GPU has 10.0 GB of memory"


def test_the_time_has_labeling_and_a_total():
    # Networks so slow that the units are days.
    slow = dataclasses.replace(COSTS, multiply_adds=10**14)
    trainings = [dataclasses.replace(t, costs=slow) for t in PLAN.trainings]
    plan = dataclasses.replace(
        PLAN, trainings=tuple(trainings), labeling_multiply_adds=3 * 10**14
    )
    time = blocks_of(plan)[3]
    # (1000 * 30 + 1000 * 120) images * 6e14 / 1e13 a second are 104 days.
    assert row(time, "training")[1:3] == ["104", "days"]
    # 48,500 images * 6e14 operations / 1e13 are 34 days.
    assert row(time, "labeling")[1:3] == ["34", "days"]
    assert row(time, "total")[1:3] == ["138", "days"]
    unknown = dataclasses.replace(plan, unlabeled=None)
    assert row(blocks_of(unknown)[3], "total")[1] == "unknown"
    online = dataclasses.replace(plan, num_labelings=0)
    assert "labeling" not in blocks_of(online)[3]


@pytest.mark.parametrize(("steps", "is_few"), [(38, True), (100, False)])
@pytest.mark.parametrize("name", ["student 1", "student 1, finetuned"])
def test_too_few_steps_are_said(steps, is_few, name):
    training = dataclasses.replace(STUDENT, steps=steps, name=name)
    text = plan_text(dataclasses.replace(PLAN, trainings=(TEACHER, training)))
    assert ("Too few steps" in text) == is_few
    assert (f"({name} 38): raise --" in text) == is_few
    assert ("--finetune_epochs" in text) == (is_few and "fine" in name)


def test_too_little_memory_names_the_model_and_a_batch_that_fits():
    plan = dataclasses.replace(PLAN, device_memory=1_000_000_000)
    (sentence,) = shortages(plan)
    assert sentence.startswith("student 1 needs 1.2 GB of memory, and each GPU")
    assert "--batch_size" in sentence and "\n" not in sentence
    fit = int(re.search(r"a step of (\d+) fits, not one of 120", sentence)[1])
    assert fit == 96

    def student(images):
        training = dataclasses.replace(
            STUDENT, batch_size=images, unlabeled_batch_size=0
        )
        return dataclasses.replace(plan, trainings=(training,))

    assert shortages(student(fit)) == []
    assert shortages(student(fit + 2))
    assert f"Verdict: it does not fit\n  - {sentence}" in plan_text(plan)


def test_what_is_alike_is_said_once():
    again = dataclasses.replace(STUDENT, name="student 2")
    plan = dataclasses.replace(
        PLAN, trainings=(STUDENT, again), device_memory=1_000_000_000
    )
    assert blocks_of(plan)[2] == (
        "Student 2: EfficientNet-B0 at 100 pixels: as student 1"
    )
    (sentence,) = shortages(plan)
    assert sentence.startswith("student 1 ")


def test_memory_is_listed_from_large_to_small():
    block = blocks_of(PLAN)[1]
    sizes = [
        float(line.split()[0]) * {"kB": 1e3, "MB": 1e6}[line.split()[1]]
        for line in block[block.index("a step:") :].splitlines()[1:]
    ]
    assert sizes[0] == max(sizes) and len(sizes) < 8
    total = sum(needs.memory_of(TEACHER, PLAN).values())
    assert sum(sizes) == pytest.approx(total, rel=0.01)


def test_too_little_memory_for_a_single_image():
    plan = dataclasses.replace(PLAN, device_memory=30_000_000)
    sentences = shortages(plan)
    assert len(sentences) == 2
    assert all("cannot hold even one image" in text for text in sentences)


@pytest.mark.parametrize(
    ("gigabytes", "flags"),
    [
        (0.98, "--rematerialize"),
        (0.5, "--rematerialize --accumulation_steps=3"),
        (0.2, "--rematerialize --accumulation_steps=15"),
        (0.085, "--rematerialize --accumulation_steps=15 --dtype=bfloat16"),
        (0.02, None),
    ],
)
def test_flags_that_would_suffice_are_named(gigabytes, flags):
    plan = dataclasses.replace(
        PLAN, trainings=(STUDENT,), device_memory=int(gigabytes * 1e9)
    )
    (sentence,) = shortages(plan)
    named = re.search(r"give (.*), with which it is", sentence)
    assert (named and named[1]) == flags, sentence
    if not flags:
        assert "choose smaller networks" in sentence
        return
    settings = {"rematerialize": True}
    if steps := re.search(r"steps=(\d+)", flags):
        settings["accumulation_steps"] = int(steps[1])
    if "bfloat16" in flags:
        settings["dtype"] = "bfloat16"
    training = dataclasses.replace(STUDENT, **settings)
    plan = dataclasses.replace(plan, trainings=(training,))
    assert shortages(plan) == []
    block = blocks_of(plan)[1]
    assert "one block at a time" in block
    assert ("in bfloat16; those for" in block) == ("bfloat16" in flags)
    assert (" parts:" in block) == ("steps" in flags)


def test_too_little_disk():
    plan = dataclasses.replace(PLAN, free_disk=80_000_000)
    (sentence,) = shortages(plan)
    # Checkpoints 80.8, models 8.2, labels 1.2.
    assert "90.1 MB" in sentence and "80.0 MB are free" in sentence
    assert "--workdir" in sentence


def test_nobody_knows():
    plan = dataclasses.replace(PLAN, device="TPU", device_memory=None)
    assert shortages(plan) == []
    assert "compare the memory of a TPU yourself" in plan_text(plan)
    student = dataclasses.replace(STUDENT, num_unlabeled=None)
    plan = dataclasses.replace(PLAN, trainings=(student,))
    assert "will show how many" in plan_text(plan)


def test_l2_on_a_pod_is_planned_without_being_built():
    student = dataclasses.replace(
        STUDENT,
        variant="l2",
        image_size=475,
        costs=accounting.costs("l2"),
        steps=218_949,
        batch_size=2048,
        unlabeled_batch_size=28_672,
    )
    plan = dataclasses.replace(
        PLAN,
        trainings=(student,),
        device="TPU",
        num_devices=2048,
        device_memory=None,
        free_disk=None,
    )
    block = blocks_of(plan)[1]
    assert row(block, "parameters")[1:3] == ["480.3", "million"]
    assert row(block, "multiply-adds")[1:3] == ["170.9", "billion"]
    assert "for 15 images a step" in block
    # The paper's 6 days (section 3.1) and the yardstick agree within a factor
    # of 10: 6.9e21 operations at 2048 * 5e12 a second are 8 days.
    assert row(block, "time")[1:3] == ["8", "days"] and "6.9e+21" in block


@pytest.mark.parametrize("device", ("CPU", "GPU", "TPU"))
def test_every_device_has_a_plan(device):
    plan = dataclasses.replace(PLAN, device=device, num_devices=1)
    assert "needed at once, for 120 images a step" in plan_text(plan)
    assert ("TensorFlow's graph" in plan_text(plan)) == (device == "CPU")


def test_only_batches_of_pseudo_labeled_images():
    student = dataclasses.replace(STUDENT, batch_size=0)
    plan = dataclasses.replace(PLAN, trainings=(student,))
    block = blocks_of(plan)[1]
    assert "learns from 90 pseudo-labeled images" in block
    assert row(block, "passes")[1:4] == ["15.0", "over", "all"]
