# SPDX-License-Identifier: Apache-2.0
"""Noisy Student Training, phase by phase.

    teach      train a teacher on labeled images
    label      teacher, un-noised, predicts every unlabeled image; filter and
               balance the classes
    distill    train an equal or larger student, noised, on both together
    iterate    repeat: the student becomes the teacher

Each phase leaves its result in the workdir and finds there what the one
before left, so each works by itself, and a phase that is done is not done
again.
"""

import time

import numpy as np
import tensorflow as tf

from noisy_student import exporting
from noisy_student import learning
from noisy_student import plan
from noisy_student import predicting
from noisy_student import prerequisites
from noisy_student import previewing
from noisy_student import showing
from noisy_student import skipping
from noisy_student import using
from noisy_student import watching
from noisy_student.data import sources
from noisy_student.errors import UserError
from noisy_student.pseudo_labels import selection
from noisy_student.reporting import console
from noisy_student.reporting import selection_summary
from noisy_student.run import READS
from noisy_student.run import open_run
from noisy_student.training import distribution


def run_mode(config):
    """Do what `--mode` says.

    Args:
        config: A `Config`.
    """
    modes = {
        "iterate": iterate,
        "teach": teach,
        "label": label,
        "select": select,
        "distill": distill,
        "finetune": finetune,
        "evaluate": evaluate,
    }
    alone = {
        "plan": plan.print_plan,
        "preview": previewing.preview,
        "report": showing.report,
        "predict": using.predict,
        "embed": using.embed,
        "export": exporting.export,
    }
    if config.mode in alone:
        # Without the images of the run, or as far as they are there.
        alone[config.mode](config)
        return
    run = open_run(config)
    print(f"Device: {distribution.describe(run.strategy)}")
    print(data_summary(run))
    try:
        with run.workdir.owned():
            modes[config.mode](run)
    except tf.errors.OpError as error:
        # Files may vanish, and what they hold is checked while it is read.
        raise (sources.read_error(error) or error) from None


def data_summary(run):
    """What a run learns from, in a few lines of text."""
    return console.data_summary(
        run.class_names,
        {role: getattr(run, role) for role in READS[run.config.mode]},
        batch_size=run.config.batch_size,
        unlabeled_batch_size=run.unlabeled_batch_size(1),
    )


def iterate(run):
    """Teach, then label and distill for each student; end with a table."""
    config = run.config
    left = run.phases_left()
    if {"label", "distill"} & {phase for phase, _ in left}:
        prerequisites.check_images(run, "unlabeled")
    teach(run)
    for iteration in range(1, run.last_iteration + 1):
        if run.unlabeled:  # told what has changed since it learned
            prerequisites.has_learned_otherwise(run, iteration)
        if ("label", iteration) in left:
            label(run, iteration)
        distill(run, iteration)
        if config.finetune:
            finetune(run, iteration)
    records = run.workdir.results()
    seconds = [run.workdir.seconds(record) for record in records]
    print(console.results_table(records, seconds, run.num_classes))
    print(f"\nTo look at: {run.workdir.path / 'report.html'}")


def teach(run):
    """Train the teacher on the labeled images, or take it as it is."""
    learning.train(run, 0)
    showing.refresh(run)


def label(run, iteration=None):
    """Let the teacher label the unlabeled images, then filter and balance.

    All of them, or those that `--selection_from` kept (official reassign.sh).
    """
    prerequisites.check_stored_labels(run)
    iteration = prerequisites.choose_iteration(run, iteration, "label")
    if run.unlabeled is None and run.workdir.is_done("label", iteration):
        print("  all labeled and selected already")
        return
    prerequisites.check_images(run, "unlabeled")
    teacher = iteration - 1
    prerequisites.check_model(run, teacher, "label with")
    prerequisites.check_better_than_guessing(run, teacher)
    labels = run.label_store(iteration)
    missing = labels.missing_shards()
    selected = labels.read_selection() is not None
    is_wanted = None
    if selected and not missing:
        # Needs the other selection no more.
        prerequisites.check_manifest(run, iteration)
    elif run.config.selection_from:
        other = prerequisites.check_other_selection(
            run, run.unlabeled.fingerprint
        )
        is_wanted = other.is_kept
        kept = prerequisites.describe_kept(other)
        prerequisites.check_manifest(run, iteration, selection_from=kept)
    else:
        prerequisites.check_manifest(run, iteration, selection_from=None)
    run.begin()
    print(f"Label {iteration}: {labels.num_images()} images")
    num_shards = len(run.unlabeled.shard_sizes)
    if 0 < len(missing) < num_shards:
        print(f"  {len(missing)} of {num_shards} shards left")
    started = time.monotonic()
    for shard, probs in predicting.labels_of(
        run, teacher, run.unlabeled, missing, is_wanted
    ):
        labels.write_probs(shard, probs)
    if not selected:
        skipping.record(run, "unlabeled", labels.undecodable(is_wanted))
        _select(run, iteration)
    # A run may have been killed between the two.
    if missing or run.workdir.find_result("label", iteration) is None:
        run.workdir.append_result(
            {
                "phase": "label",
                "iteration": iteration,
                "variant": run.config.variant_of(teacher),
                "num_examples": labels.num_images(),
                "num_kept": labels.read_selection()["num_kept"],
            },
            time.monotonic() - started,
        )
    elif selected:
        print("  all labeled and selected already")
    else:
        _record_kept(run, iteration)
    showing.refresh(run)


def select(run, iteration=None):
    """Filter by confidence and balance the classes, from the stored labels."""
    _record_kept(run, _select(run, iteration))
    showing.refresh(run)


def _record_kept(run, iteration):
    """Let the record of a labeling tell of a selection made anew."""
    kept = run.label_store(iteration).read_selection()["num_kept"]
    run.workdir.update_result("label", iteration, num_kept=kept)


def _select(run, iteration):
    iteration = prerequisites.choose_iteration(run, iteration, "select")
    labels = run.label_store(iteration)
    prerequisites.check_complete(run, iteration)
    prerequisites.check_not_begun(run, iteration)
    run.begin()
    config = run.config
    confidence, predicted_class = labels.confidences()
    rows = {
        "num_classes": run.num_classes,
        "threshold": config.confidence_threshold_of(iteration),
        "ceiling": config.confidence_ceiling,
    }
    images_per_class = None
    if config.balance and not config.selection_from:
        images_per_class = (
            config.images_per_class
            or selection.average_per_class(
                confidence,
                predicted_class,
                **rows,
                inclusive=config.selection == "official_bins",
            )
        )
    if config.selection_from:
        copies = prerequisites.other_selection(run, labels, confidence)
    else:
        choose = {
            "exact": selection.select,
            "official_bins": selection.select_official_bins,
        }[config.selection]
        copies = choose(
            confidence,
            predicted_class,
            **rows,
            images_per_class=images_per_class,
            duplicate=config.duplicate,
            seed=run.seed("selection", iteration),
        )
    if config.max_unlabeled:
        copies = selection.subsample(
            copies,
            config.max_unlabeled,
            seed=run.seed("max_unlabeled", iteration),
        )
    if config.max_copies:
        np.minimum(copies, config.max_copies, out=copies)
    summary = selection_summary.summarize(
        confidence,
        predicted_class,
        copies,
        threshold=config.confidence_threshold_of(iteration),
        ceiling=config.confidence_ceiling,
        images_per_class=images_per_class,
        class_names=run.class_names,
        inclusive=config.selection == "official_bins",
        num_left_out=len(confidence) - labels.num_images(),
    )
    watching.log_selection(run, iteration, confidence, summary)
    labels.write_copies(copies, summary)
    most = int(copies.max(initial=0))
    print(selection_summary.text(summary, most, config.selection_from))
    return iteration


def distill(run, iteration=None):
    """Train the next student, noised, on labeled + pseudo-labeled images."""
    iteration = prerequisites.choose_iteration(run, iteration, "distill")
    learning.train(run, iteration)
    showing.refresh(run)


def finetune(run, iteration=None):
    """FixRes: train the newest model on, briefly, at more pixels."""
    iteration = prerequisites.choose_model(run, iteration, "finetune")
    learning.finetune(run, iteration)
    showing.refresh(run)


def evaluate(run, iteration=None):
    """Top-1 and top-5 of the newest model on every evaluation image."""
    prerequisites.check_images(run, "evaluation")
    run.check_same_images()
    started = time.monotonic()
    init_from = run.config.init_from
    if init_from and run.workdir.newest_model() is None:
        iteration, image_size = 0, run.finetuning_size(0)
        role, source = "weights", {"init_from": init_from}
        accuracy = predicting.accuracy_of_weights(run, init_from)
    else:
        iteration = prerequisites.choose_model(run, iteration, "evaluate")
        image_size = run.workdir.image_size(iteration)
        role, source = console.role(iteration), {}
        accuracy = predicting.accuracy_of(run, iteration)
    if not accuracy["num_examples"]:
        raise UserError(
            f"none of the images of {run.evaluation.name} can be decoded: give "
            "others with --eval_dir=DIR"
        )
    record = {
        "phase": "evaluate",
        "iteration": iteration,
        "variant": run.config.variant_of(iteration),
        **source,
        **accuracy,
        "image_size": image_size,
    }
    run.workdir.append_result(record, time.monotonic() - started)
    print(
        f"{role.capitalize()} ({record['variant']} at {image_size} pixels) on "
        f"all {record['num_examples']} images of {run.evaluation.name}: "
        f"{console.accuracy_text(record, run.num_classes)}"
    )
    showing.refresh(run)
