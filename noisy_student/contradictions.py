# SPDX-License-Identifier: Apache-2.0
"""What a later command on a workdir may do otherwise than those before it.

Results of two settings would be neither the old run's nor the new one's, so a
flag that contradicts the workdir is refused.
"""

import dataclasses
import filecmp
import os

from noisy_student import files
from noisy_student.config import Config
from noisy_student.errors import UserError
from noisy_student.knobs import MODEL
from noisy_student.knobs import respelled
from noisy_student.knobs import spell

# What a mode may do otherwise than the run did so far.
MODE_FLAGS = {
    # CIFAR-10.1 or ImageNet-V2 are other data sets of the same classes.
    "evaluate": ("eval_", "dataset"),
    "finetune": (
        "image_size",
        "batch_size",
        "accumulation_steps",
        "base_lr",
        "final_base_lr",
        "finetune",
        "frozen_blocks",
    ),
    "select": (
        "selection",
        "confidence_",
        "images_per_class",
        "balance",
        "duplicate",
        "max_copies",
        "max_unlabeled",
    ),
    "plan": ("",),  # everything: it asks what would be
    "preview": ("",),
}

# Settings that say where images are -> the role of those in `data.json`.
IMAGES = {
    f"{prefix}_{kind}": role
    for prefix, role in (
        ("labeled", "labeled"),
        ("unlabeled", "unlabeled"),
        ("eval", "evaluation"),
    )
    for kind in ("dir", "tfrecords")
}

# What a run leaves when a step was trained or an image labeled.
PRODUCTS = (
    "iteration_*/*.keras",
    "iteration_*/checkpoints/*.npz",
    "iteration_*/finetune/checkpoints/*.npz",
    "iteration_*/labels/probs-*.npy",
)


def made_anything(workdir):
    """Whether a step was trained or an image labeled in a workdir.

    Until then nothing depends on its settings and classes.

    Args:
        workdir: `pathlib.Path`.
    """
    return any(any(workdir.glob(pattern)) for pattern in PRODUCTS)


def check_same(workdir, old, new):
    """Refuse settings that contradict what a workdir was made with.

    Images elsewhere may be the same: `check_same_images` decides.

    Args:
        workdir: Its path.
        old: The `Config` of its `run.flags`.
        new: That of a command.

    Raises:
        UserError: Naming the first setting that differs and may not.
    """
    if not made_anything(workdir):
        return  # a first command that failed may be corrected
    selected = _has_selected(workdir)
    for field in dataclasses.fields(Config):
        name = field.name
        before, now = getattr(old, name), getattr(new, name)
        if field.metadata["free"] or name == "workdir":
            continue
        if _is_of_selection(name) and not selected:
            continue
        if _is_same(field, before, now) or _may_change(name, old, new):
            continue
        if name in IMAGES and before and now and files.found(now):
            continue
        raise _contradiction(workdir, name, before, now)


def _is_of_selection(name):
    """Whether a setting decides which images are kept, and how often."""
    return name.startswith(MODE_FLAGS["select"])


def _has_selected(workdir):
    """Whether images were selected, also where only a student shows it."""
    patterns = "iteration_*/labels/selection.json", "iteration_[1-9]*/*.keras"
    return any(any(workdir.glob(pattern)) for pattern in patterns)


def check_selection(workdir, old, new):
    """Refuse to go back to settings that another selection has replaced.

    A run that is opened in Python knows nothing of what other commands do.

    Args:
        workdir: Its path.
        old: The `Config` of its `run.flags`.
        new: That of the run.

    Raises:
        UserError: Naming the first setting that differs.
    """
    if not _has_selected(workdir):
        return
    for field in dataclasses.fields(Config):
        name = field.name
        # The labels themselves tell whose selection they are of.
        if name == "selection_from" or not _is_of_selection(name):
            continue
        before, now = getattr(old, name), getattr(new, name)
        if not (_is_same(field, before, now) or _may_change(name, old, new)):
            raise UserError(
                f"images of {workdir} were selected with "
                f"{_flag(name, before, now)} after this run was opened with "
                f"{_flag(name, now, before)}: open it again"
            )


def check_same_images(workdir, old, new, known, sources):
    """Refuse other images than those that a workdir was made with.

    The same images may have come to lie elsewhere: their fingerprint tells.

    Args:
        workdir: Its path.
        old: The `Config` of its `run.flags`.
        new: That of a command.
        known: Dict of `data.json`.
        sources: Dict of a role in it to the `Source` that was opened, or None.

    Raises:
        UserError: Naming the flag that gives others.
    """
    if not made_anything(workdir):
        return
    for field in dataclasses.fields(Config):
        name = field.name
        before, now = getattr(old, name), getattr(new, name)
        source = sources.get(IMAGES.get(name))
        if source is None or _is_same(field, before, now):
            continue
        recorded = known.get(IMAGES[name]) or {}
        if recorded.get("fingerprint") == source.fingerprint:
            continue
        if not _may_change(name, old, new):
            raise _contradiction(workdir, name, before, now)


def _is_same(field, before, now):
    """Whether two values of a setting mean the same."""
    if before == now:
        return True
    if not (before and now and field.metadata["kind"]):
        return False
    before, now = (respelled(field, v, files.absolute) for v in (before, now))
    if before == now or os.path.realpath(before) == os.path.realpath(now):
        return True
    are_files = os.path.isfile(before) and os.path.isfile(now)
    return are_files and filecmp.cmp(before, now, shallow=False)


def _may_change(name, old, new):
    allowed = MODE_FLAGS.get(new.mode, ())
    return name.startswith(allowed) or _continues(name, old, new)


def _contradiction(workdir, name, before, now):
    return UserError(
        f"{workdir} was made with {_flag(name, before, now)}, not "
        f"{_flag(name, now, before)}: use another --workdir, or leave out "
        f"the flag to go on with that run{_more(workdir, name, before)}"
    )


def _more(workdir, name, before):
    """How to get on from what was trained or labeled already."""
    if _is_of_selection(name):
        return "; with --mode=select it selects anew"
    if name == "students":
        return (
            "; more students come after those that there are: "
            f"--students={before},b0"
        )
    models = [
        (int(path.parent.name.removeprefix("iteration_")), path)
        for path in workdir.glob("iteration_*/model.keras")
        if path.parent.name.removeprefix("iteration_").isdigit()
    ]
    if name in ("epochs", "train_steps") and models:
        return (
            "; to train its model further, give the other --workdir "
            f"--init_from={max(models)[1]}"
        )
    return ""


def _flag(name, value, other):
    """How to name a setting: a text that is not set is no word `auto`."""
    if value is None and isinstance(other, str):
        return f"no --{name}"
    return f"--{name}={spell(Config.__dataclass_fields__[name], value)}"


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
    if per := Config.__dataclass_fields__[name].metadata["per"]:
        made = len(old.student_variants()) + (per == MODEL)
        return old.values_of(name)[:made] == new.values_of(name)[:made]
    return False
