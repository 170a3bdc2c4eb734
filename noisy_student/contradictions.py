# SPDX-License-Identifier: Apache-2.0
"""What a later command on a workdir may do otherwise than those before it.

Results of two settings would be neither the old run's nor the new one's, so a
flag that contradicts the workdir is refused.
"""

import dataclasses

from noisy_student.config import Config
from noisy_student.errors import UserError
from noisy_student.knobs import spell

# What a mode may do otherwise than the run did so far.
MODE_FLAGS = {
    "evaluate": ("eval_",),
    "finetune": (
        "image_size",
        "batch_size",
        "accumulation_steps",
        "base_lr",
        "finetune",
        "frozen_blocks",
    ),
    "select": (
        "selection",
        "confidence_",
        "images_per_class",
        "balance",
        "duplicate",
        "max_unlabeled",
    ),
    "plan": ("",),  # everything: it asks what would be
    "preview": ("",),
}


def check_same(workdir, recorded, given):
    """Refuse flags that contradict what the workdir was made with.

    Args:
        workdir: Its path.
        recorded: Dict of the settings in its `run.flags`.
        given: Dict of those on the command line.

    Raises:
        UserError: Naming the first that differs and may not.
    """
    if not any(workdir.glob("iteration_*")):
        return  # nothing was made: a first command that failed may be mended
    old_config, new_config = Config(**recorded), Config(**{**recorded, **given})
    allowed = MODE_FLAGS.get(given.get("mode"), ())
    for field in dataclasses.fields(Config):
        name = field.name
        if field.metadata["free"] or name == "workdir" or name not in given:
            continue
        old, new = getattr(old_config, name), getattr(new_config, name)
        if old == new or name.startswith(allowed):
            continue
        if _continues(name, old_config, new_config):
            continue
        raise UserError(
            f"{workdir} was made with {_flag(name, old, new)}, not "
            f"{_flag(name, new, old)}: use another --workdir, or leave out "
            "the flag to go on with that run"
        )


def _flag(name, value, other):
    """How to name a setting: a text that is not set is no word `auto`."""
    if value is None and isinstance(other, str):
        return f"no --{name}"
    return f"--{name}={spell(value)}"


def _continues(name, old, new):
    """Whether what was done stays true: more students, images to come."""
    role = name.split("_")[0]
    if name in (f"{role}_dir", f"{role}_split", f"{role}_tfrecords"):
        given = (f"{role}_dir", f"{role}_tfrecords")
        comes = not any(getattr(old, other) for other in given)
        if role == "unlabeled":
            return comes and not old.unlabeled_split and old.dataset != "digits"
        return role == "eval" and comes and not old.dataset
    if name == "students":
        return not old.students or f"{new.students},".startswith(
            f"{old.students},"
        )
    if name == "unlabeled_ratio":
        return all(
            old.unlabeled_ratio_of(k) == new.unlabeled_ratio_of(k)
            for k in range(1, len(old.student_variants()) + 1)
        )
    return False
