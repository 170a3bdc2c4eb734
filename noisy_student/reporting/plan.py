# SPDX-License-Identifier: Apache-2.0
"""The plan of a run as a text: what it needs, in words and with its units."""

import dataclasses

from noisy_student.reporting.needs import bytes_text
from noisy_student.reporting.needs import disk_needs
from noisy_student.reporting.needs import memory_of
from noisy_student.reporting.shortages import shortages

# Forward, the gradient of the inputs and that of the weights cost the same;
# a multiply-add is two operations.
OPERATIONS_TO_LABEL = 2
OPERATIONS_PER_MULTIPLY_ADD = 3 * OPERATIONS_TO_LABEL
# A yardstick that turns operations into days, within a factor of a few. CPU:
# B0 at 128 pixels trains on 40 images a second on 2 cores. GPU and TPU:
# assumption.
OPERATIONS_PER_SECOND = {"CPU": 3e10, "GPU": 5e12, "TPU": 5e12}

# Of a training: fewer do not get far from the weights that it began with.
FEW_STEPS = 100

# Below this share of a step's memory an item is counted among the rest.
SMALL = 0.02

_MEMORY_TEXTS = {
    "weights": ("weights", "what the network has learned"),
    "statistics": ("statistics", "mean and variance of BatchNormalization"),
    "average": ("moving average", "of the weights; it is what is kept"),
    "optimizer": ("optimizer", "two numbers for each weight"),
    "gradients": ("gradients", "which way each weight should go"),
    "accumulated": ("sum of gradients", "over the parts of a step"),
    "update": ("new weights", "before they take the place of the old"),
    "activations": ("activations", "what layers tell each other of the images"),
    "pixels": ("pixels", "the images themselves"),
    "online_teacher": ("on-line teacher", "its weights"),
    "program": ("TensorFlow's graph", "the program that computes a step"),
}


def plan_text(plan):
    """The plan of a run, for a person.

    Args:
        plan: A `Plan`.

    Returns:
        Text of several blocks: the data, each model, the disk, a verdict.
    """
    blocks = [_data_lines(plan)]
    planned = {}
    for training in plan.trainings:
        same = dataclasses.replace(training, name="")
        if same in planned:
            title = f"{_title(training)}: as {planned[same]}"
            blocks.append([title])
        else:
            blocks.append(_training_lines(training, plan))
            planned[same] = training.name
    blocks += [_time_lines(plan), _disk_lines(plan), _verdict_lines(plan)]
    return "\n\n".join("\n".join(lines) for lines in blocks)


def _data_lines(plan):
    rows = []
    for role in ("labeled", "unlabeled", "evaluation"):
        images = getattr(plan, role)
        if images is None:
            rows.append((role, "0", "none given"))
            continue
        count = "unknown" if images.count is None else f"{images.count:,}"
        note = images.name
        if not images.here:
            note += ", not here yet"
        rows.append((role, count, note))
    return [f"Data: {plan.num_classes:,} classes", *_table(rows)]


def _training_lines(training, plan):
    costs = training.costs
    operations = _operations(training)
    speed = OPERATIONS_PER_SECOND[plan.device]
    rows = [
        (
            "parameters",
            _large(costs.parameters),
            "numbers that it learns",
        ),
        (
            "multiply-adds",
            _large(costs.multiply_adds, billion=1e8),
            "to look at one image; papers call them FLOPs",
        ),
        (
            "steps",
            f"{training.steps:,}",
            f"each learns from {_batch_text(training)}",
        ),
        *_passes(training),
        (
            "time",
            _duration(operations, plan),
            f"within a factor of a few: {operations:.1e} operations, "
            f"{speed * plan.num_devices / 1e9:,.0f} billion a second",
        ),
    ]
    return [f"{_title(training)}", *_table(rows + _memory_rows(training, plan))]


def _operations(training):
    """Operations of a whole training."""
    total_images = training.steps * training.images_per_step
    return (
        OPERATIONS_PER_MULTIPLY_ADD
        * training.costs.multiply_adds
        * total_images
    )


def _time_lines(plan):
    """All trainings and labelings together, and whether they are too short."""
    training = sum(map(_operations, plan.trainings))
    rows = [("training", _duration(training, plan), "of all models")]
    if plan.num_labelings:
        count = plan.unlabeled.count if plan.unlabeled else None
        note = "of all unlabeled images, by each teacher"
        if count is None:
            total = "unknown"
            rows.append(("labeling", "unknown", note))
        else:
            labeling = OPERATIONS_TO_LABEL * plan.labeling_multiply_adds * count
            total = _duration(training + labeling, plan)
            rows.append(("labeling", _duration(labeling, plan), note))
        rows.append(("total", total, "without evaluation"))
    few = [t for t in plan.trainings if t.steps < FEW_STEPS]
    lines = ["Time, within a factor of a few", *_table(rows)]
    if few:
        steps = ", ".join(f"{t.name} {t.steps}" for t in few)
        flags = sorted(
            "--finetune_epochs" if t.name.endswith("finetuned") else "--epochs"
            for t in few
        )
        lines.append(
            f"  Too few steps to learn much, below {FEW_STEPS} ({steps}): "
            f"raise {' and '.join(dict.fromkeys(flags))} (or --train_steps), "
            "or lower --batch_size"
        )
    return lines


def _title(training):
    name = training.name[0].upper() + training.name[1:]
    variant, size = training.variant.upper(), training.image_size
    return f"{name}: EfficientNet-{variant} at {size} pixels"


def _passes(training):
    """Rows on how often each image is seen."""
    for kind, batch_size, count in (
        ("labeled", training.batch_size, training.num_labeled),
        (
            "pseudo-labeled",
            training.unlabeled_batch_size,
            training.num_unlabeled,
        ),
    ):
        if batch_size and count:
            passes = f"{training.steps * batch_size / count:,.1f}"
            yield "passes", passes, f"over all {count:,} {kind} images"
        elif batch_size:
            note = f"over the {kind} images; the teacher's labels will show"
            yield "passes", "?", f"{note} how many there are"


def _memory_rows(training, plan):
    """What a step holds at once: large items, and the rest together."""
    memory = memory_of(training, plan)
    total = sum(memory.values())
    images = training.images_per_device(plan.num_devices)
    where = "needed at once"
    if plan.num_devices > 1:
        where += f" by each of {plan.num_devices:,} {plan.device}s"
    parts = ""
    if training.accumulation_steps > 1:
        parts = f" in {training.accumulation_steps} parts"
    rows = [
        (
            "memory",
            bytes_text(total),
            f"{where}, for {images:,} images a step{parts}:",
        )
    ]
    # The largest first.
    items = sorted(memory, key=memory.get, reverse=True)
    small = [item for item in items if memory[item] < SMALL * total]
    rows += [
        ("", bytes_text(memory[item]), _memory_text(item, training))
        for item in items
        if item not in small
    ]
    if small:
        rest = bytes_text(sum(memory[item] for item in small))
        names = ", ".join(_MEMORY_TEXTS[item][0] for item in small)
        rows.append(("", rest, names))
    return rows


def _memory_text(item, training):
    name, text = _MEMORY_TEXTS[item]
    text = f"{name}: {text}"
    if item == "activations" and training.dtype != "float32":
        text += (
            f", in {training.dtype}; those for BatchNormalization in float32"
        )
    if item == "activations" and training.rematerialize:
        text += ", one block at a time"
    return text


def _batch_text(training):
    parts = {
        "labeled": training.batch_size,
        "pseudo-labeled": training.unlabeled_batch_size,
    }
    shown = [f"{size:,} {kind}" for kind, size in parts.items() if size]
    return f"{' + '.join(shown)} images"


def _disk_lines(plan):
    needs = disk_needs(plan)
    rows = []
    if plan.num_labelings:
        labels = needs["labels"]
        size = "unknown" if labels is None else bytes_text(labels)
        note = "what a teacher says to all unlabeled images"
        if plan.num_labelings > 1:
            note += f"; for each of {plan.num_labelings} students"
        rows.append(("labels", size, note))
    checkpoints, models = needs["checkpoints"], needs["models"]
    rows.append(
        ("checkpoints", bytes_text(checkpoints), "to go on from after a stop")
    )
    rows.append(("models", bytes_text(models), "what comes out"))
    if plan.free_disk is not None:
        free = bytes_text(plan.free_disk)
        rows.append(("free", free, "where --workdir is"))
    return ["Disk", *_table(rows)]


def _verdict_lines(plan):
    found = shortages(plan)
    if found:
        return ["Verdict: it does not fit", *(f"  - {text}" for text in found)]
    unknown = []
    if plan.device_memory is None:
        unknown.append(f"the memory of a {plan.device}")
    if plan.free_disk is None or disk_needs(plan)["labels"] is None:
        unknown.append("the disk")
    if unknown:
        return [
            "Verdict: nothing is known to be short; compare "
            f"{' and '.join(unknown)} yourself"
        ]
    memory = bytes_text(plan.device_memory)
    return [f"Verdict: it fits, for {_the_device(plan)} has {memory} of memory"]


def _the_device(plan):
    return (
        f"the {plan.device}"
        if plan.num_devices == 1
        else (f"each {plan.device}")
    )


def _table(rows):
    """Rows of (name, number, note), the numbers flush right."""
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return [
        f"  {name:<{widths[0]}}  {number:>{widths[1]}}  {note}".rstrip()
        for name, number, note in rows
    ]


def _large(number, billion=1e9):
    """`5.3 million`, `0.39 billion`."""
    if number >= billion:
        return f"{number / 1e9:.{1 if number >= 1e10 else 2}f} billion"
    if number >= 1e5:
        return f"{number / 1e6:.1f} million"
    return f"{number:,}"


def _duration(operations, plan):
    speed = OPERATIONS_PER_SECOND[plan.device]
    seconds = operations / speed / plan.num_devices
    for unit, size in (
        ("years", 365 * 86400),
        ("days", 86400),
        ("hours", 3600),
    ):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    if seconds < 90:
        return "1 minute" if seconds > 60 else "< 1 minute"
    return f"{seconds / 60:.0f} minutes"
