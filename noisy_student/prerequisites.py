# SPDX-License-Identifier: Apache-2.0
"""What a phase needs before it may begin, and what to say if it is not there.

Each function returns what a phase asks for or raises one sentence: what is
missing, and the command that makes it.
"""

import math
import shlex
import zipfile

import numpy as np

from noisy_student.errors import UserError
from noisy_student.evaluation import accuracy
from noisy_student.evaluation import predictions
from noisy_student.files import read_json
from noisy_student.files import write_json
from noisy_student.pseudo_labels.store import LabelStore
from noisy_student.reporting import console

# The sha256 of `model.keras`, beside the settings.
FINETUNED_OF = "finetuned_of"
# What decides a finetuning, beside the model and the pixels.
FINETUNE_SETTINGS = (
    "batch_size",
    "accumulation_steps",
    "base_lr",
    "final_base_lr",
    "finetune_epochs",
    "finetune_noise",
    "frozen_blocks",
)


def choose_iteration(run, iteration, mode):
    """The iteration that a mode means: asked for, or the next to do."""
    if iteration is None:
        iteration = run.config.iteration
    if iteration is None:
        newest = run.workdir.newest_model()
        iteration = 1 if newest is None else newest + 1
        if iteration > run.last_iteration > 0:
            iteration = run.last_iteration
    if not 1 <= iteration <= run.last_iteration:
        raise UserError(
            f"there is no student {iteration} to {mode} for: --students="
            f"{run.config.students or ''} has {run.last_iteration}"
        )
    return iteration


def choose_model(run, iteration, mode):
    """The model that a mode means: asked for, or the newest."""
    if iteration is None:
        iteration = run.config.iteration
    if iteration is None:
        iteration = run.workdir.newest_model() or 0
    # Weights from elsewhere can be finetuned without training first.
    if not (mode == "finetune" and iteration == 0 and run.config.init_from):
        check_model(run, iteration, mode)
    return iteration


def begin_finetuning(run, iteration):
    """Tie a finetuning to its settings, or check that they are the same.

    They may differ from those of the run, so the run's flags do not hold them.
    """
    config = run.config
    settings = {name: getattr(config, name) for name in FINETUNE_SETTINGS}
    settings["image_size"] = run.finetuning_size(iteration)
    # Of the model that is finetuned, which may be trained anew one day.
    settings[FINETUNED_OF] = run.workdir.trained_hash(iteration)
    path = run.workdir.finetuning(iteration) / "settings.json"
    done = run.workdir.finetuned_model(iteration).exists()
    if not done and not path.with_name("checkpoints").exists():
        write_json(path, settings)
        return
    recorded = read_json(
        path,
        lambda recorded: recorded.keys() == settings.keys(),
        f"delete {path.parent} to begin anew",
    )
    finetuned = run.workdir.finetuned_model(iteration).name
    way_out = f"move the folder and {finetuned} away to begin anew"
    if settings[FINETUNED_OF] not in (None, recorded.pop(FINETUNED_OF)):
        raise UserError(
            f"{path.parent} is of another model than the present "
            f"{run.workdir.trained_model(iteration)}: {way_out}"
        )
    for name, before in recorded.items():
        if settings[name] != before:
            raise UserError(
                f"{path.parent} was begun with --{name}={before}, not "
                f"{settings[name]}: give that flag, or {way_out}"
            )


def has_begun(run, iteration):
    """Whether a student has learned from its labels, for a step at least."""
    directory = run.workdir.iteration(iteration)
    begun = (directory / "checkpoints").exists()
    return begun or run.workdir.has_model(iteration)


def is_trained(run, iteration):
    """Whether the training of a model has ended."""
    phase = "distill" if iteration else "teach"
    return (
        run.workdir.find_result(phase, iteration) is not None
        and run.workdir.trained_model(iteration).exists()
    )


def has_learned_otherwise(run, iteration):
    """Whether a finished student has labels that would be others now.

    Images that were added since, or a teacher that was finetuned, change
    nothing that is finished; this is told in a line.
    """
    labels = run.label_store(iteration)
    has_both = is_trained(run, iteration) and run.workdir.has_model(
        iteration - 1
    )
    if not (has_both and labels.manifest_path.exists()):
        return False
    changed = labels.difference(manifest(run, iteration))
    if changed:
        print(
            f"{console.role(iteration).capitalize()} is trained already, with "
            f"another {changed}: for the present one, add a student to "
            "--students, or use another --workdir"
        )
    return bool(changed)


def check_manifest(run, iteration):
    """Tie labels to what they are made of, or check that it is the same."""
    labels = run.label_store(iteration)
    way_out = f"delete {labels.directory} to label again"
    if has_begun(run, iteration):  # what it learned from is not to be lost
        way_out = "bring that back, or add a student to --students"
    labels.begin(manifest(run, iteration), way_out)


def check_stored_labels(run):
    """Refuse to label for students whose teacher labels in their steps."""
    if run.config.online_teacher:
        raise UserError(
            "with --online_teacher nothing is labeled beforehand: go on with "
            f"{command(run, 'distill')}"
        )


def check_unlabeled(run):
    """Refuse to go on without unlabeled images."""
    if run.unlabeled is None:
        raise UserError(
            "there are no unlabeled images: give --unlabeled_dir=DIR, "
            "--unlabeled_split=SPLIT or --unlabeled_tfrecords=GLOB"
        )


def check_model(run, iteration, purpose):
    """Refuse to go on without the model of an iteration."""
    if run.workdir.has_model(iteration):
        return
    mode = "distill" if iteration else "teach"
    # A path may be mistyped.
    new = "" if run.workdir.path.exists() else ", which does not exist"
    raise UserError(
        f"there is no {console.role(iteration)} to {purpose} in {run.workdir}"
        f"{new}: make it with {command(run, mode)}"
    )


def check_better_than_guessing(run, iteration):
    """Refuse labels of a teacher that held-out images show to be guessing."""
    records = [
        run.workdir.find_result(phase, iteration)
        for phase in ("finetune", "distill", "teach")
    ]
    record = next((r for r in records if r and r["top1"] is not None), None)
    # Of a few images nobody can tell.
    if run.config.force or not record or record["num_examples"] < 30:
        return
    why = _why_at_chance(run, iteration, record)
    if why:
        raise UserError(
            f"{console.role(iteration)} is right on {record['top1']:.2%} of "
            f"{record['num_examples']} held-out images, {why}: give it more "
            "labeled images, more --epochs, another --base_lr or weights to "
            "start from (--init_from, docs/weights.md), in another --workdir, "
            "or go on with --force"
        )


def _why_at_chance(run, iteration, record):
    """What shows that a model has learned nothing to teach, or None."""
    found = _answers(run, iteration)
    if found is None:
        chance, count = 1 / run.num_classes, record["num_examples"]
        bound = chance + 2 * math.sqrt(chance * (1 - chance) / count)
        if record["top1"] > bound:
            return None
        return (
            f"and guessing among {run.num_classes} classes gets up to "
            f"{bound:.2%}"
        )
    labels, answers = found
    if (labels == labels[0]).all():
        return None  # of one class alone nobody can tell
    counts = np.bincount(answers, minlength=run.num_classes)
    favorite = int(counts.argmax())
    share = counts[favorite] / len(answers)
    true_share = (labels == favorite).mean()
    # The other classes are answered ten times less often than they are there.
    if 1 - share < (1 - true_share) / 10:
        return (
            f"but its answer to {share:.2%} of them is "
            f"{run.class_names[favorite]}, which {true_share:.2%} are"
        )
    mean, deviation = accuracy.chance(labels, answers)
    bound = mean + 2 * deviation
    if (labels == answers).sum() > bound:
        return None
    return (
        "and the same answers in random order get up to "
        f"{bound / len(labels):.2%}"
    )


def _answers(run, iteration):
    """Labels and answers for the images that a model was measured on."""
    if run.evaluation is None:
        return None
    path = predictions.path_of(
        run.workdir.model_folder(iteration), run.evaluation.fingerprint
    )
    try:
        found = predictions.load(path)
    except (OSError, ValueError, LookupError, zipfile.BadZipFile):
        return None  # the record will do
    decoded = found.decoded
    return found.label[decoded], found.classes[decoded, 0]


def check_complete(run, iteration):
    """Refuse to go on while shards are not labeled."""
    if run.label_store(iteration).missing_shards():
        _raise_missing_labels(run, iteration)


def _raise_missing_labels(run, iteration):
    check_model(run, iteration - 1, "learn from")
    raise UserError(
        f"the pseudo-labels for student {iteration} are missing or not "
        f"complete in {run.workdir}: make them with {command(run, 'label')}"
    )


def command(run, mode):
    """The command that makes what is missing."""
    workdir = shlex.quote(str(run.workdir))
    text = f"python main.py --mode={mode} --workdir={workdir}"
    if not (run.workdir.path / "run.flags").exists():
        # Nothing there yet that would remember the others.
        text += " and your other flags"
    return text


def finished_labels(run, iteration):
    """The labels that a student learns from, complete and fitting."""
    labels = run.label_store(iteration)
    check_complete(run, iteration)
    selection = labels.read_selection()
    if selection is None:
        _raise_missing_labels(run, iteration)
    check_manifest(run, iteration)
    if labels.num_selected() != selection["num_selected"]:
        raise UserError(
            f"the copies in {labels.directory} are damaged, for selection.json "
            f"counts others: make them again with {command(run, 'select')}"
        )
    _check_selection(run, labels, selection)
    return labels


def _check_selection(run, labels, selection):
    """Refuse to learn from next to nothing, or from a part of the classes."""
    kept, num_classes = selection["num_kept"], run.num_classes
    if not kept:
        raise UserError(
            f"no unlabeled image passed --confidence_threshold="
            f"{run.config.confidence_threshold} (see {labels.selection_path}): "
            "lower it, or train a better teacher"
        )
    empty = selection["kept_per_class"].count(0)
    enough = kept >= num_classes and empty <= num_classes / 2
    # Of two classes one is not more than half, and yet nothing to learn from.
    if run.config.force or (enough and num_classes - empty > 1):
        return
    raise UserError(
        f"{kept} of {selection['num_images']} unlabeled images are kept, and "
        f"none for {empty} of {num_classes} classes: lower "
        f"--confidence_threshold with {command(run, 'select')}, train a "
        "better teacher, or go on with --force"
    )


def check_not_begun(run, iteration):
    """Refuse to select anew what a student has learned from already."""
    if has_begun(run, iteration):
        raise UserError(
            f"student {iteration} in {run.workdir} has learned from its "
            "selection already: select for the next one (--iteration), or in "
            "another --workdir"
        )


def other_selection(run, labels, confidence):
    """The copies that other labels of the same images were given.

    The paper filters once, with the labels of a B0; later teachers label
    again what it kept (official reassign.sh).

    Args:
        run: The `Run`.
        labels: The `LabelStore` to select from.
        confidence: float `(N,)` of its `confidences`.

    Returns:
        uint32 `(N,)`, 0 where there is no label now.
    """
    directory = run.config.selection_from
    other = LabelStore(directory, labels.shard_sizes, labels.num_classes)
    if other.read_selection() is None:
        raise UserError(
            f"--selection_from={directory} holds no selection: give the "
            "labels folder of a run that has labeled"
        )
    sources = [
        store.manifest()["source"]["fingerprint"] for store in (labels, other)
    ]
    if sources[0] != sources[1]:
        raise UserError(
            f"--selection_from={directory} is a selection of other images "
            "than those of this run: give one of the same unlabeled images"
        )
    copies = other.copies()
    copies[np.isnan(confidence)] = 0
    return copies


def manifest(run, iteration):
    """What the labels of an iteration depend on."""
    teacher, noise = iteration - 1, run.config.noise("teacher")
    return {
        "source": {
            "name": run.unlabeled.name,
            "fingerprint": run.unlabeled.fingerprint,
            "shard_sizes": list(run.unlabeled.shard_sizes),
        },
        "teacher": {
            "iteration": teacher,
            "variant": run.config.variant_of(teacher),
            "sha256": run.workdir.model_hash(teacher),
        },
        "classes": list(run.class_names),
        "crop": run.config.crop,
        "teacher_noise": sorted(noise),
        "label_top_k": run.label_store(iteration).top_k,
    }
