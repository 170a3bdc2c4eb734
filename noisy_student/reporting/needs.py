# SPDX-License-Identifier: Apache-2.0
"""What a run needs: memory on each device, disk, and what is short of it.

Arithmetic on plain numbers; nothing is built, read or measured here.
`models/accounting.py` counts what a network costs, and `plan.py` makes a text
of it. Memory is that of a training step, as TensorFlow's graph holds it;
labeling and evaluating need less.
"""

import dataclasses
import math
from typing import Any

FLOAT, HALF = 4, 2  # bytes
# TensorFlow's own memory on a CPU, for each block of a network: the graph of
# the step and its executor. Measured for 7 to 55 blocks: 22 to 29 MB.
GRAPH_BYTES_PER_BLOCK = 27_000_000
# Measured likewise: a loop over parts adds 4.6 MB, and computing again 4.4 MB.
MORE_GRAPH_BYTES_PER_BLOCK = 5_000_000
# The newest two stay (training/checkpointing.py); a third while it is written.
KEPT_CHECKPOINTS = 2


@dataclasses.dataclass(frozen=True)
class Images:
    """A set of images that a run uses.

    Attributes:
        name: What a person calls it.
        count: How many, or None if nobody knows yet.
        here: Whether they are on this machine.
        class_names: Of the classes, as far as they are known.
    """

    name: str
    count: int | None
    here: bool = True
    class_names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Training:
    """One model that a run will train.

    Attributes:
        name: `teacher`, `student 1`, `student 1, finetuned`.
        variant: Name of its network.
        image_size: Pixels.
        costs: A `Costs` of `models/accounting.py`, at these pixels.
        steps: Training steps.
        batch_size: B, global; 0 without labeled images.
        unlabeled_batch_size: U, global; 0 without pseudo-labeled images.
        num_labeled: Labeled images.
        num_unlabeled: Pseudo-labeled images in a pass, duplicates counted, or
            None if that is not known yet.
        online_teacher: `Costs` of a teacher that labels in the step, or None.
        dtype: Of the activations, `float32` or `bfloat16`.
        rematerialize: Whether blocks are computed again for their gradients.
        accumulation_steps: N, the parts in which a step computes its batch.
    """

    name: str
    variant: str
    image_size: int
    costs: Any
    steps: int
    batch_size: int
    unlabeled_batch_size: int
    num_labeled: int
    num_unlabeled: int | None = None
    online_teacher: Any = None
    dtype: str = "float32"
    rematerialize: bool = False
    accumulation_steps: int = 1

    @property
    def images_per_step(self):
        return self.batch_size + self.unlabeled_batch_size

    def images_per_device(self, num_devices):
        return math.ceil(self.images_per_step / num_devices)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run that has not begun.

    Attributes:
        num_classes: C.
        labeled: `Images`.
        unlabeled: `Images`, or None.
        evaluation: `Images`, or None.
        trainings: Tuple of `Training`, in order.
        num_labelings: How often all unlabeled images are labeled and the
            labels stored: once for each student, 0 with an on-line teacher.
        labeling_multiply_adds: Of all teachers together, to label one image.
        label_bytes: What the labels of an image take on disk.
        device: `CPU`, `GPU` or `TPU`.
        num_devices: R.
        device_memory: Bytes of one device, or None if unknown.
        free_disk: Bytes free where the workdir is, or None if unknown.
    """

    num_classes: int
    labeled: Images
    unlabeled: Images | None
    evaluation: Images | None
    trainings: tuple[Training, ...]
    num_labelings: int
    labeling_multiply_adds: int
    label_bytes: int
    device: str
    num_devices: int
    device_memory: int | None
    free_disk: int | None


def memory_per_device(
    costs,
    images,
    image_size,
    *,
    dtype="float32",
    rematerialize=False,
    accumulation_steps=1,
    on_cpu=False,
    online_teacher=None,
):
    """Bytes that a training step holds on one device at its peak.

    How good it is: `benchmarks/memory_estimate.py` compares it with the peak
    of real steps of seven networks on a CPU. They take 0.88 to 1.04 times the
    sum, if the heap gives back what is freed. glibc's, as it comes, keeps
    freed pieces: 0.9 to 1.2 times, and 1.6 times where the weights outweigh
    the activations. With bfloat16, parts and blocks computed again they take
    0.91 to 1.05 times the sum (`benchmarks/large_models.py`). On GPUs and TPUs
    nothing was measured: XLA, where it compiles the step, merges operations
    and may keep less, and cuDNN's workspace comes on top. Finetuning with
    frozen blocks needs less.

    Args:
        costs: A `Costs` of `models/accounting.py`.
        images: Images of a step on this device: (B + U) / R.
        image_size: Pixels.
        dtype: Of the activations, `float32` or `bfloat16`.
        rematerialize: Whether blocks are computed again for their gradients.
        accumulation_steps: N, the parts in which a step computes its batch.
        on_cpu: Whether TensorFlow's own memory counts: on other devices it is
            the host's.
        online_teacher: `Costs` of a teacher that labels in the step, or None;
            its weights count.

    Returns:
        Dict from the name of an item to bytes.
    """
    weights = FLOAT * costs.parameters
    statistics = FLOAT * costs.statistics
    activations = activations_per_image(costs, dtype, rematerialize)
    pixels = 3 * image_size**2 * images
    memory = {
        "weights": weights,
        "statistics": statistics,
        "average": weights + statistics,
        # RMSprop's mean of squares and momentum.
        "optimizer": 2 * weights,
        "gradients": weights,
        # The new values of many variables exist before the first is assigned:
        # measured, 1.3 to 1.6 times the weights, if no activations are left.
        "update": weights,
        "activations": activations * math.ceil(images / accumulation_steps),
        "pixels": pixels,
    }
    if accumulation_steps > 1:
        # Their sum so far, and the next one (measured: 2.2 times the weights).
        memory["accumulated"] = 2 * weights
        # The batch as it comes, and in parts.
        memory["pixels"] = 2 * pixels
    if online_teacher:
        values = online_teacher.parameters + online_teacher.statistics
        memory["online_teacher"] = FLOAT * values
    if on_cpu:
        more = rematerialize + (accumulation_steps > 1)
        memory["program"] = costs.blocks * (
            GRAPH_BYTES_PER_BLOCK + more * MORE_GRAPH_BYTES_PER_BLOCK
        )
    return memory


def activations_per_image(costs, dtype, rematerialize):
    """Bytes that one image needs between its way forward and its gradients.

    Args:
        costs: A `Costs` of `models/accounting.py`.
        dtype: `float32` or `bfloat16`, of what has no need of float32.
        rematerialize: Whether blocks are computed again: then the inputs of
            the blocks stay, and at the peak one block beside them.

    Returns:
        Integer.
    """

    def size(values, float32=0):
        if dtype == "float32":
            return FLOAT * values
        return HALF * (values - float32) + FLOAT * float32

    if not rematerialize:
        return sum(
            size(part.inputs + part.inside, part.float32_inside)
            for part in costs.parts
        )
    peak = inputs = 0
    # The gradients come from the end: later inputs are freed by then.
    for part in costs.parts:
        inputs += size(part.inputs)
        inside = size(part.inside, part.float32_inside)
        # Nothing that is freed elsewhere makes room for the gradients.
        peak = max(peak, inputs + inside + FLOAT * part.largest)
    return peak


def disk_needs(plan):
    """Bytes that a run leaves in its workdir.

    Args:
        plan: A `Plan`.

    Returns:
        Dict of `labels` of one iteration (None if the number of images is
        unknown), `checkpoints` of all trainings and their final `models`.
    """
    labels = 0
    if plan.num_labelings:
        count = plan.unlabeled.count if plan.unlabeled else None
        labels = None if count is None else count * plan.label_bytes
    checkpoints, models = [0], 0
    for training in plan.trainings:
        costs = training.costs
        weights, statistics = costs.parameters, costs.statistics
        # Weights and statistics with their averages, two optimizer values.
        checkpoints.append(FLOAT * (4 * weights + 2 * statistics))
        models += FLOAT * (weights + statistics)
    return {
        "labels": labels,
        "checkpoints": KEPT_CHECKPOINTS * sum(checkpoints) + max(checkpoints),
        "models": models,
    }


def memory_of(training, plan, **changes):
    """`memory_per_device` of a training, or of a changed one."""
    settings = {
        name: getattr(training, name)
        for name in ("dtype", "rematerialize", "accumulation_steps")
    }
    return memory_per_device(
        training.costs,
        training.images_per_device(plan.num_devices),
        training.image_size,
        on_cpu=plan.device == "CPU",
        online_teacher=training.online_teacher,
        **{**settings, **changes},
    )


def bytes_text(number):
    """`12.4 GB`: bytes in the decimal unit that suits them."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number >= size:
            return f"{number / size:,.1f} {unit}"
    return f"{number / 1e3:.1f} kB"
