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

import json
import time

import keras
import numpy as np
import tensorflow as tf

from noisy_student import assembly
from noisy_student import prerequisites
from noisy_student.assembly import open_run
from noisy_student.command_line import write_run_flags
from noisy_student.data import preprocessing
from noisy_student.data import sources
from noisy_student.errors import UserError
from noisy_student.evaluation.accuracy import Accuracy
from noisy_student.files import write_json
from noisy_student.pseudo_labels import predict
from noisy_student.pseudo_labels import selection
from noisy_student.reporting import console
from noisy_student.training import trainer
from noisy_student.training.checkpointing import Checkpoints


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
        "evaluate": evaluate,
    }
    run = open_run(config)
    print(
        console.data_summary(
            run.labeled,
            run.unlabeled,
            run.evaluation,
            batch_size=config.batch_size,
            unlabeled_batch_size=run.unlabeled_batch_size,
        )
    )
    try:
        modes[config.mode](run)
    except tf.errors.InvalidArgumentError as error:
        # The labels of record files are checked while they are read.
        raise (sources.label_error(error) or error) from None


def iterate(run):
    """Teach, then label and distill for each student; end with a table."""
    if run.last_iteration:
        prerequisites.check_unlabeled(run)
    teach(run)
    for iteration in range(1, run.last_iteration + 1):
        label(run, iteration)
        distill(run, iteration)
    print(console.results_table(run.workdir.results()))


def teach(run):
    """Train the teacher on the labeled images."""
    _train(run, 0)


def label(run, iteration=None):
    """Let the teacher label every unlabeled image, then filter and balance."""
    prerequisites.check_unlabeled(run)
    iteration = prerequisites.choose_iteration(run, iteration, "label")
    teacher = iteration - 1
    prerequisites.check_model(run, teacher, "label with")
    _begin(run)
    labels = run.label_store(iteration)
    labels.begin(prerequisites.manifest(run, iteration))
    missing = labels.missing_shards()
    print(f"Label {iteration}: {run.unlabeled.num_examples} images")
    if missing:
        print(
            f"  {len(missing)} of {len(run.unlabeled.shard_sizes)} shards left"
        )
    started = time.monotonic()
    for shard, probs, _ in _predict(run, teacher, run.unlabeled, missing):
        labels.write_probs(shard, probs)
    if labels.read_selection() is None:
        select(run, iteration)
        run.workdir.append_result(
            {
                "phase": "label",
                "iteration": iteration,
                "variant": run.config.variant_of(teacher),
                "num_examples": run.unlabeled.num_examples,
                "num_kept": labels.read_selection()["num_kept"],
                "seconds": round(time.monotonic() - started, 1),
            }
        )
    else:
        print("  all labeled and selected already")


def select(run, iteration=None):
    """Filter by confidence and balance the classes, from the stored labels."""
    prerequisites.check_unlabeled(run)
    iteration = prerequisites.choose_iteration(run, iteration, "select")
    labels = run.label_store(iteration)
    prerequisites.check_complete(run, iteration)
    config = run.config
    confidence, predicted_class = labels.confidences()
    rows = {
        "num_classes": run.num_classes,
        "threshold": config.confidence_threshold,
    }
    images_per_class = None
    if config.balance:
        images_per_class = (
            config.images_per_class
            or selection.average_per_class(confidence, predicted_class, **rows)
        )
    copies = selection.select(
        confidence,
        predicted_class,
        **rows,
        images_per_class=images_per_class,
        seed=run.seed(iteration, 3),
    )
    summary = console.selection_summary(
        confidence,
        predicted_class,
        copies,
        threshold=config.confidence_threshold,
        images_per_class=images_per_class,
        class_names=run.labeled.class_names,
    )
    labels.write_copies(copies, summary)
    print(console.selection_text(summary))


def distill(run, iteration=None):
    """Train the next student, noised, on labeled + pseudo-labeled images."""
    prerequisites.check_unlabeled(run)
    iteration = prerequisites.choose_iteration(run, iteration, "distill")
    _train(run, iteration)


def evaluate(run, iteration=None):
    """Top-1 and top-5 of the newest model on every evaluation image."""
    if run.evaluation is None:
        raise UserError(
            "there are no evaluation images: give --eval_dir=DIR, "
            "--eval_split=SPLIT or --eval_tfrecords=GLOB"
        )
    if iteration is None:
        iteration = run.config.iteration
    if iteration is None:
        iteration = run.workdir.newest_model() or 0
    prerequisites.check_model(run, iteration, "evaluate")
    started = time.monotonic()
    accuracy = _accuracy(run, iteration)
    if not accuracy["num_examples"]:
        raise UserError(
            f"none of the images of {run.evaluation.name} can be decoded: give "
            "others with --eval_dir=DIR"
        )
    record = {
        "phase": "evaluate",
        "iteration": iteration,
        "variant": run.config.variant_of(iteration),
        **accuracy,
        "seconds": round(time.monotonic() - started, 1),
    }
    run.workdir.append_result(record)
    print(
        f"{console.role(iteration).capitalize()} ({record['variant']}) on all "
        f"{record['num_examples']} images of {run.evaluation.name}: "
        f"top-1 {record['top1']:.2%}, top-5 {record['top5']:.2%}"
    )


def _train(run, iteration):
    """Teacher and student are trained alike; their batches differ."""
    config, workdir = run.config, run.workdir
    phase = "distill" if iteration else "teach"
    role = console.role(iteration)
    if workdir.find_result(phase, iteration) and workdir.has_model(iteration):
        print(f"The {role} is trained already: {workdir.model(iteration)}")
        return
    labels = (
        prerequisites.finished_labels(run, iteration) if iteration else None
    )
    _begin(run)
    started = time.monotonic()
    skipped = _skipped(run)
    num_labeled = run.labeled.num_examples - len(skipped)
    steps = assembly.num_steps(config, num_labeled)
    variant = config.variant_of(iteration)
    print(
        console.training_summary(
            role=role,
            variant=variant,
            image_size=run.image_size(variant),
            steps=steps,
            batch_size=config.batch_size,
            num_labeled=num_labeled,
            unlabeled_batch_size=run.unlabeled_batch_size if iteration else 0,
            num_unlabeled=labels.num_selected() if iteration else 0,
            num_replicas=run.num_replicas,
        )
    )
    directory = workdir.iteration(iteration)
    if not workdir.has_model(iteration):
        keras.backend.clear_session()
        model = assembly.make_trainable(
            run,
            variant,
            num_labeled=num_labeled,
            mixed=iteration > 0,
            seed=run.seed(iteration, 0),
        )
        trainer.fit(
            model,
            assembly.make_batches(run, iteration, skipped),
            steps=steps,
            checkpoints=Checkpoints(directory / "checkpoints"),
            checkpoint_minutes=config.checkpoint_minutes,
            metrics_path=directory / "metrics.jsonl",
        )
        model.load_averages_into(model.network)
        workdir.save_model(model.network, iteration)
    record = {
        "phase": phase,
        "iteration": iteration,
        "variant": variant,
        **_accuracy(run, iteration),
        "steps": steps,
        "seconds": round(time.monotonic() - started, 1),
    }
    workdir.append_result(record)
    if record["top1"] is not None:
        print(
            f"  {role}: top-1 {record['top1']:.2%}, top-5 {record['top5']:.2%} "
            f"on {record['num_examples']} images"
        )


def _accuracy(run, iteration):
    """Evaluate the saved model of an iteration."""
    accuracy = Accuracy()
    if run.evaluation is not None:
        shards = range(len(run.evaluation.shard_sizes))
        predictions = _predict(run, iteration, run.evaluation, shards)
        for _, probs, true_labels in predictions:
            accuracy.update(probs, true_labels)
    return accuracy.result()


def _predict(run, iteration, source, shards):
    """Yield (shard, probs, labels) of a saved model, un-noised."""
    if not shards:
        return
    config = run.config
    keras.backend.clear_session()
    with run.strategy.scope():
        network = keras.saving.load_model(
            run.workdir.model(iteration), compile=False
        )
        predictor = predict.make_predictor(network)
    num_skipped = 0
    for count, shard in enumerate(shards, start=1):
        probs, true_labels = predict.predict_shard(
            predictor,
            source,
            shard,
            num_classes=run.num_classes,
            image_size=run.image_size(config.variant_of(iteration)),
            crop=config.crop,
            batch_size=config.eval_batch_size,
        )
        for row in np.flatnonzero(np.isnan(probs).any(axis=1)):
            console.warn_skipped(source.example_name(shard, int(row)))
            num_skipped += 1
        yield shard, probs, true_labels
        if len(shards) >= 10 and count % (len(shards) // 10) == 0:
            print(f"  {count} of {len(shards)} shards", flush=True)
    console.print_skipped(num_skipped, source.name)


def _skipped(run):
    """Pairs (shard, row) of the labeled images that cannot be decoded.

    Each is decoded once, less work than one epoch; the answer is kept beside
    the run.
    """
    path = run.workdir.path / "skipped_labeled.json"
    fingerprint = run.labeled.fingerprint
    if path.exists():
        known = json.loads(path.read_text())
        if known["fingerprint"] == fingerprint:
            return [(item["shard"], item["row"]) for item in known["skipped"]]
    found = sources.undecodable(run.labeled, preprocessing.decode)
    skipped = [
        {
            "shard": shard,
            "row": row,
            "name": run.labeled.example_name(shard, row),
            "reason": reason,
        }
        for (shard, row), reason in sorted(found.items())
    ]
    for item in skipped:
        console.warn_skipped(item["name"], item["reason"])
    console.print_skipped(len(skipped), run.labeled.name)
    if len(skipped) == run.labeled.num_examples:
        raise UserError(
            f"none of the {len(skipped)} labeled images of {run.labeled.name} "
            f"can be decoded; the first is {skipped[0]['name']}"
        )
    write_json(path, {"fingerprint": fingerprint, "skipped": skipped})
    return [(item["shard"], item["row"]) for item in skipped]


def _begin(run):
    """Record the settings, when a phase has all that it needs."""
    workdir = run.workdir
    workdir.path.mkdir(parents=True, exist_ok=True)
    workdir.write_flags(write_run_flags(run.config, workdir.path / "run.flags"))
