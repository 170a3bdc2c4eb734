# SPDX-License-Identifier: Apache-2.0
"""The plan of a run as a text: what it needs, in words and with its units."""

from noisy_student.reporting.needs import bytes_text
from noisy_student.reporting.needs import disk_needs
from noisy_student.reporting.needs import memory_of
from noisy_student.reporting.shortages import shortages

# Forward, the gradient of the inputs and that of the weights cost the same;
# a multiply-add is two operations.
OPERATIONS_PER_MULTIPLY_ADD = 3 * 2
# A yardstick that turns operations into days, within a factor of a few. CPU:
# B0 at 128 pixels trains on 40 images a second on 2 cores. GPU and TPU:
# assumption.
OPERATIONS_PER_SECOND = {"CPU": 3e10, "GPU": 5e12, "TPU": 5e12}

_MEMORY_TEXTS = {
    "weights": "weights",
    "statistics": "normalization statistics",
    "average": "moving average of both",
    "optimizer": "optimizer, 2 values a weight",
    "gradients": "gradients",
    "accumulated": "sum of gradients over the parts",
    "update": "new values while they are written",
    "activations": "activations",
    "pixels": "pixels",
    "online_teacher": "on-line teacher",
    "program": "TensorFlow's graph",
}


def plan_text(plan):
    """The plan of a run, for a person.

    Args:
        plan: A `Plan`.

    Returns:
        Text of several blocks: the data, each model, the disk, a verdict.
    """
    blocks = [_data_lines(plan)]
    blocks += [_training_lines(t, plan) for t in plan.trainings]
    blocks += [_disk_lines(plan), _verdict_lines(plan)]
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
            note += ", not here"
            note += "" if images.count is None else ", size known"
        rows.append((role, count, note))
    return [f"Data: {plan.num_classes:,} classes", *_table(rows)]


def _training_lines(training, plan):
    costs = training.costs
    total_images = training.steps * training.images_per_step
    operations = (
        OPERATIONS_PER_MULTIPLY_ADD * costs.multiply_adds * total_images
    )
    speed = OPERATIONS_PER_SECOND[plan.device]
    seconds = operations / speed / plan.num_devices
    devices = f"the {plan.device}"
    if plan.num_devices > 1:
        devices = f"each of {plan.num_devices} {plan.device}s"
    rows = [
        ("parameters", _large(costs.parameters), ""),
        (
            "multiply-adds",
            _large(costs.multiply_adds, billion=1e8),
            "for one image, the FLOPs of papers",
        ),
        ("steps", f"{training.steps:,}", _batch_text(training)),
    ]
    for kind, batch_size, count in (
        ("labeled", training.batch_size, training.num_labeled),
        (
            "unlabeled",
            training.unlabeled_batch_size,
            training.num_unlabeled,
        ),
    ):
        if batch_size and count:
            passes = f"{training.steps * batch_size / count:,.1f}"
            rows.append(("passes", passes, f"over {count:,} {kind} images"))
        elif batch_size:
            note = f"over the {kind} images: their number is not known"
            rows.append(("passes", "?", note))
    rows.append(
        (
            "operations",
            f"{operations:.1e}",
            f"{_duration(seconds)} if {devices} does "
            f"{speed / 1e12:g} million million a second",
        )
    )
    memory = memory_of(training, plan)
    images = training.images_per_device(plan.num_devices)
    parts = ""
    if training.accumulation_steps > 1:
        parts = f" in {training.accumulation_steps} parts"
    rows.append(
        (
            "memory",
            bytes_text(sum(memory.values())),
            f"on {devices}, for {images:,} images a step{parts}:",
        )
    )
    rows += [
        ("", bytes_text(size), _memory_text(item, training))
        for item, size in memory.items()
    ]
    title = (
        f"{training.name[0].upper()}{training.name[1:]}: EfficientNet-"
        f"{training.variant.upper()} at {training.image_size} pixels"
    )
    return [title, *_table(rows)]


def _memory_text(item, training):
    text = _MEMORY_TEXTS[item]
    if item == "activations" and training.dtype != "float32":
        text += f" in {training.dtype}, those for BatchNormalization in float32"
    if item == "activations" and training.rematerialize:
        text += ", one block at a time"
    return text


def _batch_text(training):
    parts = {
        "labeled": training.batch_size,
        "pseudo-labeled": training.unlabeled_batch_size,
    }
    shown = [f"{size:,} {kind}" for kind, size in parts.items() if size]
    return f"of {' + '.join(shown)} images"


def _disk_lines(plan):
    needs = disk_needs(plan)
    rows = []
    if plan.num_labelings:
        labels = needs["labels"]
        size = "unknown" if labels is None else bytes_text(labels)
        note = f"for each of {plan.num_labelings} students"
        rows.append(("labels", size, note if plan.num_labelings > 1 else ""))
    rows.append(("checkpoints", bytes_text(needs["checkpoints"]), ""))
    rows.append(("models", bytes_text(needs["models"]), ""))
    if plan.free_disk is not None:
        rows.append(("free", bytes_text(plan.free_disk), ""))
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
    return [f"Verdict: it fits; a {plan.device} has {memory}"]


def _table(rows):
    """Rows of (name, number, note), the numbers flush right."""
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return [
        f"  {name:<{widths[0]}}  {number:>{widths[1]}}  {note}".rstrip()
        for name, number, note in rows
    ]


def _large(number, billion=1e9):
    """`5.3 M`, `0.39 B`: millions and billions, as the papers write them."""
    if number >= billion:
        return f"{number / 1e9:.{1 if number >= 1e10 else 2}f} B"
    if number >= 1e5:
        return f"{number / 1e6:.1f} M"
    return f"{number:,}"


def _duration(seconds):
    for unit, size in (
        ("years", 365 * 86400),
        ("days", 86400),
        ("hours", 3600),
    ):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds / 60:.1f} minutes"
