# SPDX-License-Identifier: Apache-2.0
"""Train one model of a run, save it, and record how good it is.

Teacher and student are trained alike, and finetuned alike; what differs is
in `assembly.py` and `batches.py`.
"""

import time

import keras

from noisy_student import assembly
from noisy_student import batches
from noisy_student import predicting
from noisy_student import prerequisites
from noisy_student import skipping
from noisy_student import watching
from noisy_student.reporting import console
from noisy_student.training import trainer
from noisy_student.training.checkpointing import Checkpoints


def train(run, iteration):
    """Train the teacher, 0, or a student, unless that is done."""
    workdir = run.workdir
    phase = "distill" if iteration else "teach"
    path = workdir.trained_model(iteration)
    if workdir.is_done(phase, iteration):
        role = console.role(iteration).capitalize()
        print(f"{role} is trained already: {path}")
        return
    labels = None
    if iteration:
        prerequisites.check_images(run, "unlabeled")
    if iteration and run.config.online_teacher:
        prerequisites.check_model(run, iteration - 1, "learn from")
        prerequisites.check_better_than_guessing(run, iteration - 1)
    elif iteration:
        labels = prerequisites.finished_labels(run, iteration)
    num_unlabeled = 0
    if iteration:
        num_unlabeled = (
            labels.num_selected() if labels else run.unlabeled.num_examples
        )
    _fit(run, phase, iteration, path, num_unlabeled)


def finetune(run, iteration):
    """Finetune the model of an iteration, unless that is done."""
    workdir = run.workdir
    prerequisites.begin_finetuning(run, iteration)
    path = workdir.finetuned_model(iteration)
    if workdir.is_done("finetune", iteration):
        role = console.role(iteration).capitalize()
        print(f"{role} is finetuned already: {path}")
        return
    _fit(run, "finetune", iteration, path)


def _fit(run, phase, iteration, path, num_unlabeled=0):
    """Train from where a stopped run was, save the averages, evaluate."""
    config, workdir = run.config, run.workdir
    prerequisites.check_images(run, "labeled")
    started = time.monotonic()
    begun = None
    if not path.exists():
        keras.backend.clear_session()
        begun = assembly.begin_network(run, phase, iteration)
    # Not before the weights fit: what failed is not remembered.
    run.begin()
    skipped = skipping.unusable(run, "labeled")
    skipped_unlabeled = ()
    if phase == "distill" and config.online_teacher:
        skipped_unlabeled = skipping.unusable(run, "unlabeled")
    num_labeled = run.labeled.num_examples - len(skipped)
    steps = assembly.num_steps(config, phase, num_labeled, iteration)
    finetunes = phase == "finetune"
    image_size = (
        run.finetuning_size(iteration)
        if finetunes
        else run.image_size(iteration)
    )
    labeled_size, unlabeled_size = batches.batch_sizes(run, phase, iteration)
    variant = config.variant_of(iteration)
    role = console.role(iteration)
    print(
        console.training_summary(
            role=f"finetune {role}" if finetunes else role,
            variant=variant,
            image_size=image_size,
            steps=steps,
            batch_size=labeled_size,
            num_labeled=num_labeled,
            unlabeled_batch_size=unlabeled_size,
            num_unlabeled=num_unlabeled - len(skipped_unlabeled),
            num_replicas=run.num_replicas,
            selected=not config.online_teacher,
            warmup_steps=assembly.num_warmup_steps(
                config, phase, num_labeled, iteration
            ),
        )
    )
    directory = workdir.iteration(iteration)
    if finetunes:
        directory = workdir.finetuning(iteration)
    if begun:
        model, loaded = assembly.make_trainable(
            run, phase, iteration, num_labeled=num_labeled, begun=begun
        )
        console.print_loaded(loaded)
        if steps:
            trainer.fit(
                model,
                batches.make_batches(
                    run, phase, iteration, skipped, skipped_unlabeled
                ),
                steps=steps,
                checkpoints=Checkpoints(directory / "checkpoints"),
                checkpoint_minutes=config.checkpoint_minutes,
                metrics_path=directory / "metrics.jsonl",
                watcher=watching.TrainingWatcher(
                    run, directory, (labeled_size, unlabeled_size), steps
                ),
            )
        model.load_averages_into(model.network)
        # Whoever trains the saved network trains all of it. Not by setting
        # `network.trainable`: Keras's models do not hand that on to layers.
        for layer in model.network.layers:
            layer.trainable = True
        workdir.save_model(model.network, path)
    record = {
        "phase": phase,
        "iteration": iteration,
        "variant": variant,
        **predicting.accuracy_of(run, iteration),
        "image_size": image_size,
        "steps": steps,
    }
    watching.log_accuracy(run, directory, record)
    workdir.append_result(record, time.monotonic() - started)
    if record["top1"] is None:
        print(f"  {role} is trained: {path}")
        return
    accuracy = console.accuracy_text(record, run.num_classes)
    finetuned = ", finetuned" if finetunes else ""
    print(f"  {role}{finetuned}: {accuracy} on {record['num_examples']} images")
    if finetunes:
        warn_if_worse(workdir, record, path)


def warn_if_worse(workdir, record, path):
    """Tell that finetuning did harm, which too few steps can do."""
    iteration = record["iteration"]
    phase = "distill" if iteration else "teach"
    before = workdir.find_result(phase, iteration)
    if before and before["top1"] is not None:
        if record["top1"] < before["top1"]:
            print(
                f"  warning: it was {before['top1']:.2%} before; to go on with "
                f"that model, delete {path}"
            )
