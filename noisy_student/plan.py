# SPDX-License-Identifier: Apache-2.0
"""Estimates what a run needs before it starts: `--mode=plan`.

Nothing is built or trained, and the images need not exist: the sizes of the
paper's data sets are known, and `--num_unlabeled` stands in for the rest.
"""

import dataclasses
import math
import os

import tensorflow as tf

from noisy_student import assembly
from noisy_student import batches
from noisy_student.data import sources
from noisy_student.data import tfds_source
from noisy_student.errors import UserError
from noisy_student.files import free_disk
from noisy_student.models import accounting
from noisy_student.pseudo_labels.rows import bytes_per_image
from noisy_student.reporting import console
from noisy_student.reporting.console import bytes_text
from noisy_student.run import Run
from noisy_student.run import check_settings
from noisy_student.run import open_source
from noisy_student.training import distribution
from noisy_student.workdir import Workdir

FLOAT = 4  # bytes
# Per activation. Of the three tensors that a convolution keeps, two are
# bfloat16, and the input of BatchNormalization is float32.
ACTIVATION_BYTES = {"float32": FLOAT, "bfloat16": (2 + 2 + FLOAT) / 3}
# Graph and workspace. CPU: measured, docs/large_models.md. Others: assumption.
TENSORFLOW_BYTES = 700_000_000
# The newest two of each model (training/checkpointing.py).
KEPT_CHECKPOINTS = 2
# A multiply-add is two operations. The gradients of inputs and weights cost as
# much as the forward pass each.
OPERATIONS_TO_LABEL, OPERATIONS_TO_TRAIN = 2, 6
# Correct within a factor of a few. CPU: B0 at 128 pixels trains on 40 images
# per second on 2 cores (measured). GPU, TPU: assumption.
OPERATIONS_PER_SECOND = {"CPU": 3e10, "GPU": 5e12, "TPU": 5e12}
# With fewer, a model stays close to its initial weights.
FEW_STEPS = 100


@dataclasses.dataclass(frozen=True)
class Images:
    """A set of images, or what is known of one that is not here."""

    name: str
    count: int | None  # None: unknown
    num_classes: int | None = None
    class_names: tuple[str, ...] = ()
    here: bool = True  # on this machine


@dataclasses.dataclass(frozen=True)
class Model:
    """A model as one phase of the run trains it."""

    # "teacher", "student 1" or "student 1, finetuned". Models that differ in
    # nothing else are equal: a plan describes the first of them.
    name: str = dataclasses.field(compare=False)
    network: str  # for display
    costs: accounting.Costs
    steps: int  # 0 for a teacher that is used as it is
    batch: dict  # "labeled" and "pseudo-labeled" -> images per step, if any
    memory: dict  # of `memory_per_device`

    @property
    def images_per_step(self):
        return sum(self.batch.values())

    @property
    def operations(self):
        multiply_adds = self.costs.multiply_adds * self.images_per_step
        return OPERATIONS_TO_TRAIN * multiply_adds * self.steps


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run before it starts."""

    num_classes: int
    images: dict  # "labeled", "unlabeled", "evaluation" -> `Images` or None
    per_pass: dict  # "labeled", "pseudo-labeled" -> images, None: not known yet
    models: list  # each `Model` that is trained, in order
    label_operations: int | None  # of all teachers; None: not known yet
    disk: dict  # "labels" (None: not known yet), "checkpoints", "models"
    free_disk: int
    device: str  # "CPU", "GPU" or "TPU"
    num_devices: int
    device_memory: int | None  # bytes per device; None: unknown


def print_plan(config):
    """Prints what a run needs.

    Args:
        config: A `Config`.

    Raises:
        UserError: If memory or disk space is insufficient, or as `make_plan`.
    """
    check_settings(config)
    planned = make_plan(config)
    print(plan_text(planned))
    found = shortages(planned)
    if found:
        more = f" (and {len(found) - 1} more above)" if found[1:] else ""
        raise UserError(f"the run does not fit: {found[0]}{more}")


def make_plan(config):
    """Plans a run.

    Args:
        config: A `Config`.

    Returns:
        A `Plan`.

    Raises:
        UserError: If the number of labeled images is unknown, the evaluation
            images have other classes, or a batch does not divide.
    """
    labeled = _images(config, "labeled")
    unlabeled = _images(config, "unlabeled")
    evaluation = _images(config, "eval", labeled and labeled.class_names)
    if labeled is None:
        raise UserError(
            "there are no labeled images to plan for: give --labeled_dir=DIR, "
            "--dataset=NAME or --labeled_tfrecords=GLOB"
        )
    num_classes = labeled.num_classes
    strategy = distribution.make_strategy(
        config.distribution, config.cpu_devices
    )
    device, num_devices, device_memory = _devices(config, strategy)
    run = Run(config, Workdir(config.workdir), strategy, None, None, None)
    models, teachers = [], []
    for phase, k in run.phases():
        if phase == "label":
            teachers.append(models[-1].costs)
        else:
            models.append(
                _model(run, phase, k, labeled.count, num_classes, num_devices)
            )
    models = [model for model in models if model.steps]

    num_unlabeled = unlabeled.count if unlabeled else None
    selected = None  # until the teacher has labeled
    if config.online_teacher:
        selected = num_unlabeled
    elif config.balance and config.images_per_class:
        selected = config.images_per_class * num_classes
    operations = OPERATIONS_TO_LABEL * sum(c.multiply_adds for c in teachers)
    label_bytes = bytes_per_image(num_classes, config.label_top_k)
    # Weights and statistics with their EMA, and two optimizer slots.
    checkpoints = [
        FLOAT * (4 * model.costs.parameters + 2 * model.costs.statistics)
        for model in models
    ]
    return Plan(
        num_classes=num_classes,
        images={
            "labeled": labeled,
            "unlabeled": unlabeled,
            "evaluation": evaluation,
        },
        per_pass={"labeled": labeled.count, "pseudo-labeled": selected},
        models=models,
        label_operations=_times(operations, num_unlabeled),
        disk={
            "labels": _times(label_bytes * len(teachers), num_unlabeled),
            "checkpoints": KEPT_CHECKPOINTS * sum(checkpoints)
            + max(checkpoints, default=0),  # while it is written
            "models": FLOAT
            * sum(m.costs.parameters + m.costs.statistics for m in models),
        },
        free_disk=free_disk(run.workdir.path),
        device=device,
        num_devices=num_devices,
        device_memory=device_memory,
    )


def _times(amount, count):
    """A product; None if the count is unknown and matters."""
    return None if amount and count is None else amount * (count or 0)


def _model(run, phase, k, num_labeled, num_classes, num_devices):
    """The `Model` of a phase other than `label`."""
    config = run.config
    is_finetuned = phase == "finetune"
    size = run.finetuning_size(k) if is_finetuned else run.image_size(k)
    name = console.role(k) + (", finetuned" if is_finetuned else "")
    labeled, unlabeled = batches.batch_sizes(run, phase, k)
    distribution.check_divisible(
        num_devices,
        config.accumulation_steps,
        given=name,
        labeled=labeled,
        unlabeled=unlabeled,
    )

    def costs_of(iteration):
        return accounting.costs(
            config.variant_of(iteration),
            num_classes,
            image_size=size,
            small_images=config.small_images,
            width=config.width,
            depth=config.depth,
        )

    teaches = config.online_teacher and phase == "distill"
    batch = {"labeled": labeled, "pseudo-labeled": unlabeled}
    return Model(
        name=name,
        network=f"EfficientNet-{config.variant_of(k).upper()} at {size} pixels",
        costs=costs_of(k),
        steps=assembly.num_steps(config, phase, num_labeled, k),
        batch={kind: images for kind, images in batch.items() if images},
        memory=memory_per_device(
            config,
            costs_of(k),
            (labeled + unlabeled) // num_devices,
            size,
            online_teacher=costs_of(k - 1) if teaches else None,
        ),
    )


def _devices(config, strategy):
    """Devices to plan for: kind, number, bytes of memory each or None."""
    here = "gpu" if tf.config.get_visible_devices("GPU") else "cpu"
    if isinstance(strategy, tf.distribute.TPUStrategy):
        here = "tpu"
    device = here if config.plan_device == "auto" else config.plan_device
    num_devices, memory = 1, None
    if device == here:
        num_devices = strategy.num_replicas_in_sync
        memory = distribution.device_memory(strategy)
    if config.plan_memory_gb is not None:
        memory = int(config.plan_memory_gb * 1e9)
    return device.upper(), config.plan_devices or num_devices, memory


def _images(config, role, class_names=None):
    """`Images` of a role; None if the settings name none."""
    given = config.num_unlabeled if role == "unlabeled" else None
    found = error = None
    try:
        source = open_source(config, role, class_names)
    except UserError as caught:
        source, error = None, caught
    split = getattr(config, f"{role}_split")
    if source:
        names = () if role == "unlabeled" else source.class_names
        count = source.num_examples
        found = Images(source.name, count, len(names), names)
    elif error and config.dataset and split:
        known = tfds_source.known_split(
            config.dataset, split, data_dir=config.data_dir
        )
        if known:
            found = Images(f"{config.dataset} {split}", *known, here=False)
    if found and given not in (None, found.count):
        ignored = f"{found.name}; known, so --num_unlabeled is ignored"
        return dataclasses.replace(found, name=ignored)
    if error and not found and not given:
        found = _recorded(config, role)
    if not found and role == "unlabeled" and (given or error):
        path = config.unlabeled_tfrecords or config.unlabeled_dir
        name = sources.printable(path) if path else "--num_unlabeled"
        return Images(name, given, here=False)
    if error and not found:
        raise error
    return found


def _recorded(config, role):
    """`Images` of a started run that are not here any more, or None."""
    data = Workdir(config.workdir).data()
    known = data.get("evaluation" if role == "eval" else role)
    directory = getattr(config, f"{role}_dir")
    name = directory or getattr(config, f"{role}_tfrecords")
    if not known or not name or known["name"] != sources.printable(name):
        return None
    if directory and os.path.exists(os.path.expanduser(directory)):
        return None  # it exists, so something else is wrong
    names = () if role == "unlabeled" else tuple(data["classes"])
    count = known["num_images"]
    return Images(known["name"], count, len(names), names, here=False)


def memory_per_device(config, costs, images, image_size, online_teacher=None):
    """Estimates the peak memory of a training step on one device.

    docs/large_models.md compares it with measured steps.

    Args:
        config: A `Config`: `dtype`, `rematerialize`, `accumulation_steps`.
        costs: `accounting.Costs` of the network.
        images: Images per step on this device: (B + U) / R.
        image_size: Pixels.
        online_teacher: `Costs` of a teacher that labels in the step, or None.

    Returns:
        Dict of item to bytes.
    """
    activations = costs.activations
    if config.rematerialize:  # inputs of all blocks, and one block at a time
        activations = costs.block_inputs + costs.largest_block
    activations *= math.ceil(images / config.accumulation_steps)
    # Weights, EMA, two optimizer slots, gradients, and new weights before they
    # are assigned; moving statistics and their EMA.
    values = 6 * costs.parameters + 2 * costs.statistics
    if config.accumulation_steps > 1:
        values += 2 * costs.parameters  # sums of gradients, old and new
    if online_teacher:
        values += online_teacher.parameters + online_teacher.statistics
    return {
        "activations kept for backpropagation": round(
            ACTIVATION_BYTES[config.dtype] * activations
        ),
        "weights, EMA, optimizer, gradients": FLOAT * values,
        "input images": 3 * image_size**2 * images,
        "TensorFlow itself": TENSORFLOW_BYTES,
    }


def shortages(plan):
    """Lists what does not fit, in sentences that end in the way out."""
    found, available = [], plan.device_memory
    for number, model in enumerate(plan.models):
        total = sum(model.memory.values())
        is_first = plan.models.index(model) == number
        if is_first and available is not None and total > available:
            found.append(
                f"{model.name.replace('teacher', 'the teacher')} needs "
                f"{bytes_text(total)} of memory, but {_device_text(plan)}: "
                "lower --batch_size, --unlabeled_ratio or --image_size, use "
                "more devices or a smaller network, or add --rematerialize, "
                "--accumulation_steps or --dtype=bfloat16"
            )
    total = sum(size or 0 for size in plan.disk.values())
    if total > plan.free_disk:
        found.append(
            f"the run needs {bytes_text(total)} of disk space, but only "
            f"{bytes_text(plan.free_disk)} are free: use a --workdir on a "
            "larger disk, or --label_top_k=10 for smaller labels"
        )
    return found


def plan_text(plan):
    """Formats a plan: the data, each model, time, disk space and a verdict."""
    rows = []
    for role, images in plan.images.items():
        images = images or Images("none given", 0)
        note = images.name + ("" if images.here else " (not on this machine)")
        rows.append((role, images.count and f"{images.count:,}", note))
    blocks = [_block(f"Data: {plan.num_classes:,} classes", rows)]
    for model in plan.models:
        title = f"{model.name.capitalize()}: {model.network}"
        first = plan.models[plan.models.index(model)]
        if first is model:
            blocks.append(_block(title, _model_rows(model, plan)))
        else:
            blocks.append(f"{title}, same as {first.name}")
    blocks.append(_time_block(plan))
    rows = [
        (item, size and bytes_text(size), "")
        for item, size in plan.disk.items()
    ]
    rows.append(("free", bytes_text(plan.free_disk), "at --workdir"))
    blocks.append(_block("Disk space", rows))
    unknown = []
    if plan.device_memory is None:
        unknown.append(f"the memory of the {plan.device}")
    if plan.disk["labels"] is None:
        unknown.append("the size of the labels")
    if found := shortages(plan):
        blocks.append("\n  - ".join(["The run does not fit", *found]))
    elif unknown:
        blocks.append(f"Not checked, because unknown: {' and '.join(unknown)}")
    else:
        blocks.append(f"The run fits: {_device_text(plan)} of memory")
    return "\n\n".join(blocks)


def _model_rows(model, plan):
    batch = " + ".join(f"{size:,} {kind}" for kind, size in model.batch.items())
    yield "parameters", _large(model.costs.parameters), ""
    note = "per image, forward pass (FLOPs in papers)"
    yield "multiply-adds", _large(model.costs.multiply_adds), note
    yield "steps", f"{model.steps:,}", f"of {batch} images"
    for kind, size in model.batch.items():
        count = plan.per_pass[kind]
        passes = count and f"{model.steps * size / count:,.1f}"
        name = "epochs" if kind == "labeled" else "passes"
        note = f"over {count:,} {kind} images" if count else "until labeled"
        yield name, passes, note
    yield "time", _duration(model.operations, plan), ""
    each = model.images_per_step // plan.num_devices
    total = bytes_text(sum(model.memory.values()))
    yield "memory", total, f"per {plan.device}, for {each:,} images per step"
    for item, size in model.memory.items():
        yield "", bytes_text(size), item


def _time_block(plan):
    training = sum(model.operations for model in plan.models)
    rows = [("training", _duration(training, plan), "")]
    labeling = plan.label_operations
    if labeling != 0:  # 0 with an online teacher
        total = None if labeling is None else training + labeling
        note = "all unlabeled images, once per student"
        rows.append(("labeling", _duration(labeling, plan), note))
        rows.append(("total", _duration(total, plan), "without evaluation"))
    speed = OPERATIONS_PER_SECOND[plan.device] / 1e9
    block = _block(
        f"Time, if one {plan.device} sustains {speed:,.0f} billion operations "
        "per second (correct within a factor of a few)",
        rows,
    )
    few = [model for model in plan.models if model.steps < FEW_STEPS]
    if not few:
        return block
    steps = ", ".join(f"{model.name}: {model.steps}" for model in few)
    flags = {
        "--finetune_epochs"
        if "finetuned" in model.name
        else "--epochs (or --train_steps)"
        for model in few
    }
    return (
        f"{block}\n  Warning: fewer than {FEW_STEPS} steps are too few to "
        f"learn much ({steps}): raise {' and '.join(sorted(flags))}, or lower "
        "--batch_size"
    )


def _device_text(plan):
    every = "the" if plan.num_devices == 1 else "each"
    return f"{every} {plan.device} has {bytes_text(plan.device_memory)}"


def _block(title, rows):
    """Formats a title and rows (name, number or None, note)."""
    rows = [
        (name, "unknown" if number is None else str(number), note)
        for name, number, note in rows
    ]
    name, number = (max(len(row[column]) for row in rows) for column in (0, 1))
    lines = [f"  {a:<{name}}  {b:>{number}}  {c}".rstrip() for a, b, c in rows]
    return "\n".join([title, *lines])


def _large(number):
    """Formats `5.3 million`."""
    for unit, size in (("billion", 1e9), ("million", 1e6)):
        if number >= size:
            return f"{number / size:,.1f} {unit}"
    return f"{number:,}"


def _duration(operations, plan):
    if operations is None:
        return None
    speed = OPERATIONS_PER_SECOND[plan.device] * plan.num_devices
    minutes = operations / speed / 60
    for unit, size in (("years", 525_600), ("days", 1440), ("hours", 60)):
        if minutes >= 2 * size:
            return f"{minutes / size:,.0f} {unit}"
    return f"{minutes:.0f} minutes" if minutes >= 2 else "< 2 minutes"
