# SPDX-License-Identifier: Apache-2.0
"""What a plan is short of, in sentences that name the way out."""

import dataclasses

from noisy_student.reporting.needs import bytes_text
from noisy_student.reporting.needs import disk_needs
from noisy_student.reporting.needs import memory_of

_MOST_PARTS = 4096  # of a step; more would take longer to try than they help


def shortages(plan):
    """What the machine lacks.

    Args:
        plan: A `Plan`.

    Returns:
        List of sentences, each naming what is short and the way out; empty if
        everything fits or nobody knows.
    """
    # Of several that are alike, the first speaks for all.
    different = {
        dataclasses.replace(training, name=""): training
        for training in reversed(plan.trainings)
    }
    found = [_memory_shortage(t, plan) for t in reversed(different.values())]
    needs = disk_needs(plan)
    labels = (needs["labels"] or 0) * plan.num_labelings
    total = labels + needs["checkpoints"] + needs["models"]
    if plan.free_disk is not None and total > plan.free_disk:
        found.append(
            f"the run will fill {bytes_text(total)} of the workdir's disk "
            f"({bytes_text(labels)} of them labels), and "
            f"{bytes_text(plan.free_disk)} are free: choose a --workdir on a "
            "larger disk"
        )
    return [sentence for sentence in found if sentence]


def _memory_shortage(training, plan):
    """A sentence, or None."""
    memory, available = memory_of(training, plan), plan.device_memory
    total = sum(memory.values())
    if available is None or total <= available:
        return None
    images = training.images_per_device(plan.num_devices)
    by_images = memory["activations"] + memory["pixels"]
    # How many images fit if all that they need grows with their number.
    steps = training.accumulation_steps
    fit = int((available - (total - by_images)) / (by_images / images))
    # Below 0 where the network alone is too large.
    fit = max(0, fit) * plan.num_devices // steps * steps
    flags = _flags_that_fit(training, plan)
    ways = []
    if fit:
        found = (
            f"a step of {fit:,} fits, not one of "
            f"{training.images_per_step:,} images"
        )
        ways = ["lower --batch_size or --unlabeled_ratio", "use more devices"]
    else:
        found = "it cannot hold even one image"
    if flags:
        ways.append(f"give {flags}")
    elif not fit:
        ways = [
            "choose smaller networks (--variant, --students) or a smaller "
            "--image_size"
        ]
    # "student 1", but "the teacher".
    name = training.name.replace("teacher", "the teacher")
    every = "the" if plan.num_devices == 1 else "each"
    return (
        f"{name} needs {bytes_text(total)} of memory, and {every} "
        f"{plan.device} has {bytes_text(available)}; {found}: "
        f"{', or '.join(ways)}"
    )


def _flags_that_fit(training, plan):
    """What to add to the settings, in words, or None if nothing suffices.

    First what changes no number, then what changes BatchNormalization's
    batches, then what rounds.
    """
    parts = [
        steps
        for steps in range(
            training.accumulation_steps,
            min(training.images_per_device(plan.num_devices), _MOST_PARTS) + 1,
        )
        if not training.batch_size % (steps * plan.num_devices)
        and not training.unlabeled_batch_size % (steps * plan.num_devices)
    ]
    for dtype in dict.fromkeys((training.dtype, "bfloat16")):
        for steps in parts or [training.accumulation_steps]:
            memory = memory_of(
                training,
                plan,
                dtype=dtype,
                rematerialize=True,
                accumulation_steps=steps,
            )
            total = sum(memory.values())
            if total > plan.device_memory:
                continue
            flags = []
            if not training.rematerialize:
                flags.append("--rematerialize")
            if steps != training.accumulation_steps:
                flags.append(f"--accumulation_steps={steps}")
            if dtype != training.dtype:
                flags.append(f"--dtype={dtype}")
            return f"{' '.join(flags)}, with which it is {bytes_text(total)}"
    return None
