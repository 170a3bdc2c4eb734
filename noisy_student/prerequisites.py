# SPDX-License-Identifier: Apache-2.0
"""What a phase needs before it may begin, and what to say if it is not there.

Each function returns what a phase asks for or raises one sentence: what is
missing, and the command that makes it.
"""

import hashlib
import math
import os
import shlex
import zipfile

import numpy as np
import tensorflow as tf

from noisy_student import assembly
from noisy_student.data import sources
from noisy_student.errors import UserError
from noisy_student.evaluation import accuracy
from noisy_student.evaluation import predictions
from noisy_student.files import free_disk
from noisy_student.files import read_json
from noisy_student.files import write_json
from noisy_student.models import import_weights
from noisy_student.pseudo_labels.rows import bytes_per_image
from noisy_student.pseudo_labels.store import LabelStore
from noisy_student.pseudo_labels.store import recorded_sizes
from noisy_student.reporting import console

# The sha256 of `model.keras`, beside the settings.
FINETUNED_OF = "finetuned_of"
TRAINING = ("teach", "distill", "finetune")
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


def check_ahead(run, left):
    """Refuse at once what a phase would refuse after hours.

    Args:
        run: The `Run` with its images.
        left: Of `Run.phases_left`: what is still to do.

    Raises:
        UserError: For weights that are not there or do not fit, a schedule that
            is impossible, or labels, a selection or a disk that do not fit.
    """
    config, workdir = run.config, run.workdir
    trained = [(phase, k) for phase, k in left if phase in TRAINING]
    # A run that was made with more goes on: it stores all classes.
    is_new = trained and run.num_classes and not run.known_classes
    if is_new and (config.label_top_k or 0) > run.num_classes:
        raise UserError(
            f"--label_top_k={config.label_top_k}, but there are "
            f"{run.num_classes} classes: give fewer, or auto for all"
        )
    for phase, k in trained:
        begins = phase == "teach" or not workdir.has_model(k)
        if config.init_from and not k and begins:
            import_weights.check_there(config.init_from)
        if phase == "finetune":
            assembly.check_frozen_blocks(config, k)
        if run.labeled:
            count = run.labeled.num_examples
            assembly.make_schedule(config, phase, count, k)
    students = [k for phase, k in trained if phase == "distill"]
    if config.student_init_from and students:
        import_weights.check_there(config.student_init_from)
        # All students are of one variant, so what fits one fits all. Its own
        # training would find out after labeling.
        if run.class_names:
            assembly.first_network(run, "distill", students[0])
    if trained and run.evaluation:
        _check_evaluation_labels(run)
    size = 0
    for k in (k for phase, k in left if phase == "label"):
        labels = run.label_store(k)
        missing = labels.missing_shards()
        made = len(missing) < len(labels.shard_sizes)
        if made and not workdir.has_model(k - 1):
            raise UserError(
                f"the labels in {labels.directory} are of a teacher that is "
                "not here: delete that folder to label again, or use another "
                "--workdir"
            )
        images = sum(labels.shard_sizes[shard] for shard in missing)
        size += images * bytes_per_image(run.num_classes, config.label_top_k)
    free = free_disk(workdir.path)
    if size > free:
        raise UserError(
            f"the labels need {console.bytes_text(size)}, and {workdir} has "
            f"{console.bytes_text(free)} left: make room, use another "
            "--workdir, or store less of each label with --label_top_k=10"
        )
    if config.selection_from and {"label", "select"} & {p for p, _ in left}:
        fingerprint = run.unlabeled and run.unlabeled.fingerprint
        check_other_selection(run, fingerprint)


def _check_evaluation_labels(run):
    """Read the labels of evaluation images that no phase has read yet."""
    known = run.workdir.data().get("evaluation") or {}
    if known.get("fingerprint") == run.evaluation.fingerprint:
        return
    try:
        sources.images_per_class(run.evaluation)
    except tf.errors.OpError as error:
        raise (sources.read_error(error) or error) from None


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


def has_learned_otherwise(run, iteration):
    """Whether a finished student has labels that would be others now.

    Images that were added since, or a teacher that was finetuned, change
    nothing that is finished; this is told in a line.
    """
    labels = run.label_store(iteration)
    workdir = run.workdir
    has_both = workdir.is_done("distill", iteration) and workdir.has_model(
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


def check_manifest(run, iteration, **more):
    """Tie labels to what they are made of, or check that it is the same.

    Args:
        run: The `Run`.
        iteration: Of the student.
        **more: What is not in `manifest`, for it matters to labeling alone.
    """
    labels = run.label_store(iteration)
    way_out = f"delete {labels.directory} to label again"
    if has_begun(run, iteration):  # what it learned from is not to be lost
        way_out = "bring that back, or add a student to --students"
    labels.begin(manifest(run, iteration) | more, way_out)


def check_stored_labels(run):
    """Refuse to label for students whose teacher labels in their steps."""
    if run.config.online_teacher:
        raise UserError(
            "with --online_teacher nothing is labeled beforehand: go on with "
            f"{command(run, 'distill')}"
        )


def check_images(run, role):
    """Refuse to go on without the images of a role."""
    if getattr(run, role) is not None:
        return
    if not run.reads(role):  # from Python, where a run has many phases
        raise UserError(
            f"a run opened with mode={run.config.mode!r} reads no {role} "
            "images: open it again with the mode of the phase, or with "
            "'iterate' for all of them"
        )
    flag = "eval" if role == "evaluation" else role
    raise UserError(
        f"there are no {role} images: give --{flag}_dir=DIR, "
        f"--{flag}_split=SPLIT or --{flag}_tfrecords=GLOB"
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
    # Who labels need not have the images on which the teacher was measured.
    known = run.workdir.data().get("evaluation") or {}
    source = run.evaluation
    fingerprint = source.fingerprint if source else known.get("fingerprint")
    if fingerprint is None:
        return None
    folder = run.workdir.model_folder(iteration)
    path = predictions.path_of(folder, fingerprint)
    try:
        found = predictions.load(path)
    except (OSError, ValueError, LookupError, zipfile.BadZipFile):
        return None  # the record will do
    decoded = found.decoded
    return found.label[decoded], found.classes[decoded, 0]


def check_complete(run, iteration):
    """Refuse to go on while shards are not labeled, or with other classes."""
    labels = run.label_store(iteration)
    if not labels.shard_sizes or labels.missing_shards():
        _raise_missing_labels(run, iteration)
    check_label_classes(run, labels)


def check_label_classes(run, labels):
    """Refuse labels of other classes than the run has."""
    if not labels.manifest_path.exists():
        return  # nothing says what they are
    classes = labels.manifest().get("classes")
    if classes is not None and tuple(classes) != run.class_names:
        raise UserError(
            f"the labels in {labels.directory} are of other classes than those "
            f"of {run.workdir}: label again in another --workdir, or give the "
            "labels of a run with the same classes"
        )


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
            f"{selection['confidence_threshold']} (see "
            f"{labels.selection_path}): lower it with "
            f"{command(run, 'select')}, or train a better teacher"
        )
    empty = selection["kept_per_class"].count(0)
    enough = kept >= num_classes and empty <= num_classes / 2
    # Of two classes one is not more than half, and yet nothing to learn from.
    if run.config.force or (enough and num_classes - empty > 1):
        return
    confidence, predicted_class = labels.confidences()
    lower = ""
    predicted = np.unique(predicted_class[~np.isnan(confidence)])
    # No threshold finds an image of a class that the teacher never names.
    if any(selection["kept_per_class"][k] == 0 for k in predicted):
        lower = f"lower --confidence_threshold with {command(run, 'select')}, "
    raise UserError(
        f"{kept} of {selection['num_images']} unlabeled images are kept, and "
        f"none for {empty} of {num_classes} classes: {lower}train a better "
        "teacher, or go on with --force"
    )


def check_not_begun(run, iteration):
    """Refuse to select anew what a student has learned from already."""
    if has_begun(run, iteration):
        raise UserError(
            f"student {iteration} in {run.workdir} has learned from its "
            "selection already: select for a student that has not "
            f"(--students={run.config.students},b0 adds one), or give another "
            "--workdir the same teacher, with --notrain_teacher "
            f"--init_from={run.workdir.model(iteration - 1)}"
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
    other = check_other_selection(
        run, labels.manifest()["source"]["fingerprint"]
    )
    labeled = labels.labeled_subset()
    if labeled and labeled["sha256"] != describe_kept(other)["sha256"]:
        raise UserError(
            f"the labels in {labels.directory} are of those images alone that "
            f"the selection in {labeled['name']} kept: give that one as "
            "--selection_from, or label in another --workdir"
        )
    copies = other.copies()
    copies[np.isnan(confidence)] = 0
    return copies


def check_other_selection(run, fingerprint=None):
    """The labels at `--selection_from`, if they can be selected from.

    Args:
        run: The `Run`.
        fingerprint: Of its unlabeled images; None if they are not known.
    """
    directory = os.path.expanduser(run.config.selection_from)
    sizes = recorded_sizes(directory)
    other = LabelStore(directory, sizes, run.num_classes)
    if not sizes or other.read_selection() is None:
        raise UserError(
            f"--selection_from={directory} holds no selection: give the "
            "labels folder of a run that has labeled"
        )
    check_label_classes(run, other)
    if fingerprint not in (None, other.manifest()["source"]["fingerprint"]):
        raise UserError(
            f"--selection_from={directory} is a selection of other images "
            "than those of this run: give one of the same unlabeled images"
        )
    if not any([other.is_kept(shard).any() for shard in range(len(sizes))]):
        raise UserError(
            f"the selection in --selection_from={directory} keeps no image: "
            "select anew there, with a lower --confidence_threshold"
        )
    return other


def describe_kept(other):
    """Which images a selection kept, for a manifest.

    Args:
        other: The `LabelStore` of the selection.

    Returns:
        Dict of its `name`, `num_images` and `sha256`, of one bit an image.
    """
    digest, count = hashlib.sha256(), 0
    for shard in range(len(other.shard_sizes)):
        kept = other.is_kept(shard)
        digest.update(np.packbits(kept).tobytes())
        count += int(kept.sum())
    return {
        "name": str(other.directory),
        "num_images": count,
        "sha256": digest.hexdigest(),
    }


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
