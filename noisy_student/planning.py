# SPDX-License-Identifier: Apache-2.0
"""What a run will need, before it begins: `--mode=plan`.

Nothing is built or trained, and the images need not be here: sizes of the
paper's data sets are known, and `--num_unlabeled` stands for a pile to come.
"""

import dataclasses
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
from noisy_student.reporting.needs import Images
from noisy_student.reporting.needs import Plan
from noisy_student.reporting.needs import Training
from noisy_student.reporting.plan import plan_text
from noisy_student.reporting.shortages import shortages
from noisy_student.run import Run
from noisy_student.run import check_settings
from noisy_student.run import open_source
from noisy_student.training import distribution
from noisy_student.workdir import Workdir


def plan(config):
    """Print what a run needs; fail if this machine cannot hold it.

    Args:
        config: A `Config`.

    Raises:
        UserError: If nobody knows how many labeled images there are, or if
            memory or disk are short.
    """
    check_settings(config)
    needed = make_plan(config)
    print(plan_text(needed))
    short = shortages(needed)
    if short:
        more = f" (and {len(short) - 1} more above)" if len(short) > 1 else ""
        raise UserError(f"this cannot be run here: {short[0]}{more}")


def make_plan(config):
    """What a run needs.

    Args:
        config: A `Config`.

    Returns:
        A `Plan`.

    Raises:
        UserError: If nobody knows how many labeled images there are, or the
            evaluation images have other classes.
    """
    labeled, num_classes = _images(config, "labeled")
    unlabeled, _ = _images(config, "unlabeled")
    if config.num_unlabeled and unlabeled.count != config.num_unlabeled:
        note = "their number is known, so --num_unlabeled is not used"
        unlabeled = dataclasses.replace(
            unlabeled, name=f"{unlabeled.name}; {note}"
        )
    names = labeled.class_names if labeled else None
    evaluation, _ = _images(config, "eval", names)
    if labeled is None:
        raise UserError(
            "there are no labeled images to plan for: give --labeled_dir=DIR, "
            "--dataset=NAME or --labeled_tfrecords=GLOB"
        )
    strategy = distribution.make_strategy(
        config.distribution, config.cpu_devices
    )
    here = _device(strategy)
    device = here if config.plan_device == "auto" else config.plan_device
    num_devices, memory = 1, None
    if device == here:
        num_devices = strategy.num_replicas_in_sync
        memory = distribution.device_memory(strategy)
    if config.plan_memory_gb is not None:
        memory = int(config.plan_memory_gb * 1e9)
    num_devices = config.plan_devices or num_devices
    run = Run(config, Workdir(config.workdir), strategy, None, None, None)
    trainings = tuple(_trainings(run, labeled, unlabeled, num_classes))
    for training in trainings:
        distribution.check_divisible(
            num_devices,
            config.accumulation_steps,
            given=training.name,
            labeled=training.batch_size,
            unlabeled=training.unlabeled_batch_size,
        )
    students = range(1, run.last_iteration + 1)
    if config.online_teacher:
        students = ()
    return Plan(
        num_classes=num_classes,
        labeled=labeled,
        unlabeled=unlabeled,
        evaluation=evaluation,
        trainings=trainings,
        num_labelings=len(students),
        labeling_multiply_adds=sum(
            _costs(
                run, k - 1, _labeling_size(run, k - 1), num_classes
            ).multiply_adds
            for k in students
        ),
        label_bytes=bytes_per_image(num_classes, config.label_top_k),
        device=device.upper(),
        num_devices=num_devices,
        device_memory=memory,
        free_disk=free_disk(run.workdir.path),
    )


def _trainings(run, labeled, unlabeled, num_classes):
    """Yield what is trained, in order."""
    config = run.config
    selected = unlabeled.count if unlabeled else None
    if not config.online_teacher:
        # What passes the filter shows when the teacher has labeled.
        balanced = config.balance and config.images_per_class
        selected = config.images_per_class * num_classes if balanced else None

    def training(phase, iteration, image_size, name):
        batch_size, unlabeled_size = batches.batch_sizes(run, phase, iteration)
        teacher = None
        if phase == "distill" and config.online_teacher:
            teacher = _costs(
                run, iteration - 1, run.image_size(iteration - 1), num_classes
            )
        return Training(
            name=name,
            variant=config.variant_of(iteration),
            image_size=image_size,
            costs=_costs(run, iteration, image_size, num_classes),
            steps=assembly.num_steps(config, phase, labeled.count, iteration),
            batch_size=batch_size,
            unlabeled_batch_size=unlabeled_size,
            num_labeled=labeled.count,
            num_unlabeled=selected if unlabeled_size else None,
            online_teacher=teacher,
            dtype=config.dtype,
            rematerialize=config.rematerialize,
            accumulation_steps=config.accumulation_steps,
        )

    if config.train_teacher:
        yield training("teach", 0, run.image_size(0), "teacher")
    for k in range(1, run.last_iteration + 1):
        name = f"student {k}"
        yield training("distill", k, run.image_size(k), name)
        if config.finetune:
            size = run.finetuning_size(k)
            yield training("finetune", k, size, f"{name}, finetuned")


def _labeling_size(run, teacher):
    """Pixels at which a teacher labels: those that it was trained at last."""
    finetuned = teacher and run.config.finetune
    return (run.finetuning_size if finetuned else run.image_size)(teacher)


def _costs(run, iteration, image_size, num_classes):
    config = run.config
    return accounting.costs(
        config.variant_of(iteration),
        num_classes,
        image_size=image_size,
        small_images=config.small_images,
        width=config.width,
        depth=config.depth,
    )


def _images(config, role, class_names=None):
    """(`Images` or None, number of classes or None) of a role."""
    error = None
    try:
        source = open_source(config, role, class_names)
    except UserError as caught:
        source, error = None, caught
    if source is not None:
        names = source.class_names if role != "unlabeled" else ()
        images = Images(source.name, source.num_examples, class_names=names)
        return images, len(names) or None
    split = getattr(config, f"{role}_split")
    if error and config.dataset and split:
        known = tfds_source.known_split(
            config.dataset, split, data_dir=config.data_dir
        )
        if known:
            name = f"{config.dataset} {split}"
            return Images(name, known[0], here=False), known[1]
    recorded = error and _recorded(config, role)
    if recorded and not (role == "unlabeled" and config.num_unlabeled):
        return recorded
    if role == "unlabeled" and (error or config.num_unlabeled):
        name = config.unlabeled_tfrecords or config.unlabeled_dir
        return Images(
            name or "of --num_unlabeled", config.num_unlabeled, here=False
        ), None
    if error:
        raise error
    return None, None


def _recorded(config, role):
    """What a run knows of its images that are not here now, or None."""
    data = Workdir(config.workdir).data()
    known = data.get({"eval": "evaluation"}.get(role, role))
    directory = getattr(config, f"{role}_dir")
    name = directory or getattr(config, f"{role}_tfrecords")
    if not known or not name or known["name"] != sources.printable(name):
        return None
    if directory and os.path.exists(os.path.expanduser(directory)):
        return None  # it is there, and something else is wrong
    names = () if role == "unlabeled" else tuple(data["classes"])
    images = Images(
        known["name"], known["num_images"], here=False, class_names=names
    )
    return images, len(names) or None


def _device(strategy):
    if isinstance(strategy, tf.distribute.TPUStrategy):
        return "tpu"
    return "gpu" if tf.config.get_visible_devices("GPU") else "cpu"
