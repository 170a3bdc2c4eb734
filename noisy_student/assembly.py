# SPDX-License-Identifier: Apache-2.0
"""From settings to parts: the data, the networks and the batches of a run.

Here `Config` meets the modules that know nothing of it. `phases.py` tells the
story; this file hands it the pieces.
"""

import dataclasses
import math

import keras
import numpy as np
import tensorflow as tf

from noisy_student.config import Config
from noisy_student.data import augmentation
from noisy_student.data import folder_sources
from noisy_student.data import pipelines
from noisy_student.data import sources
from noisy_student.data import tfds_source
from noisy_student.data import tfrecord_source
from noisy_student.data.sources import Source
from noisy_student.errors import UserError
from noisy_student.models import efficientnet
from noisy_student.pseudo_labels.dataset import pseudo_labeled_examples
from noisy_student.pseudo_labels.store import LabelStore
from noisy_student.training import distribution
from noisy_student.training import schedules
from noisy_student.training import trainer
from noisy_student.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that is about to do something: settings, devices, data.

    Attributes:
        config: The `Config`.
        workdir: The `Workdir`.
        strategy: The `tf.distribute.Strategy`.
        labeled: `Source` of labeled images.
        unlabeled: `Source` of unlabeled images, or None.
        evaluation: `Source` of the evaluation images, or None.
    """

    config: Config
    workdir: Workdir
    strategy: tf.distribute.Strategy
    labeled: Source
    unlabeled: Source | None
    evaluation: Source | None

    @property
    def num_classes(self):
        return len(self.labeled.class_names)

    @property
    def num_replicas(self):
        return self.strategy.num_replicas_in_sync

    @property
    def unlabeled_batch_size(self):
        # Rounded up, as the official code does; the loss keeps the exact
        # ratio whatever the rounding.
        return math.ceil(self.config.batch_size * self.config.unlabeled_ratio)

    @property
    def last_iteration(self):
        return len(self.config.student_variants())

    def image_size(self, variant):
        return _image_size(self.config, variant)

    def label_store(self, iteration):
        return LabelStore(
            self.workdir.labels(iteration),
            self.unlabeled.shard_sizes,
            self.num_classes,
        )

    def seed(self, *purpose):
        """A seed of 31 bits for one purpose, a tuple of small integers."""
        sequence = np.random.SeedSequence([self.config.seed, *purpose])
        return int(sequence.generate_state(1)[0] >> 1)


def open_run(config):
    """Find the devices and the data, and check that they fit together.

    Args:
        config: A `Config`.

    Returns:
        A `Run`. Nothing has been written yet.

    Raises:
        UserError: For whatever is missing or does not fit.
    """
    _check_settings(config)
    strategy = distribution.make_strategy(
        config.distribution, config.cpu_devices
    )
    labeled = _open_source(config, "labeled")
    evaluation = _open_source(config, "eval", labeled.class_names)
    run = Run(
        config=config,
        workdir=Workdir(config.workdir),
        strategy=strategy,
        labeled=labeled,
        unlabeled=_open_source(config, "unlabeled"),
        evaluation=evaluation,
    )
    if evaluation:
        sources.check_same_classes(labeled, evaluation)
    distribution.check_divisible(
        run.num_replicas,
        labeled=config.batch_size,
        unlabeled=run.unlabeled_batch_size if config.students else 0,
        evaluation=config.eval_batch_size,
    )
    return run


def _check_settings(config):
    """Refuse settings that contradict each other, or that we cannot serve."""
    if keras.backend.backend() != "tensorflow":
        raise UserError(
            f"the training step is not ready for KERAS_BACKEND="
            f"{keras.backend.backend()} yet: unset it, or use tensorflow"
        )
    for name in ("labeled_dir", "labeled_tfrecords"):
        if config.dataset and getattr(config, name):
            raise UserError(
                f"both --dataset={config.dataset} and --{name} name the "
                "labeled images: leave out one, or take the recipe's away "
                "with --dataset="
            )
    for variant in (config.variant, *config.student_variants()):
        size = _image_size(config, variant)
        if config.crop == "padded" and config.crop_padding >= size:
            raise UserError(
                f"--crop_padding={config.crop_padding} must be smaller than "
                f"the images of {size} pixels"
            )


def _image_size(config, variant):
    defaults = efficientnet.VARIANTS[variant]
    return config.image_size or defaults.train_image_size or defaults.image_size


def _open_source(config, role, class_names=None):
    """The source of a role: folder, TFRecords, digits or tfds, or None."""
    directory = getattr(config, f"{role}_dir")
    pattern = getattr(config, f"{role}_tfrecords")
    has_labels = role != "unlabeled"
    if directory and has_labels:
        return folder_sources.class_folders(directory)
    if directory:
        return folder_sources.image_folder(directory)
    if pattern:
        return tfrecord_source.tfrecords(
            pattern,
            labeled=has_labels,
            num_classes=config.num_classes,
            # The evaluation files need not be scanned for their classes.
            class_names=class_names,
            first_label=config.tfrecord_first_label,
        )
    if config.dataset == "digits":
        split = config.eval_split if role == "eval" else role
        return sources.digits(split, seed=config.seed)
    split = getattr(config, f"{role}_split")
    if config.dataset and split:
        return tfds_source.tfds_split(
            config.dataset,
            split,
            labeled=has_labels,
            data_dir=config.data_dir,
            download=config.download,
        )
    if role == "labeled":
        raise UserError(
            "there are no labeled images: give --labeled_dir=DIR, "
            "--dataset=NAME or --labeled_tfrecords=GLOB"
        )
    return None


def build_network(run, variant):
    """The network of an iteration, with fresh weights."""
    config = run.config
    return efficientnet.build_model(
        variant,
        run.num_classes,
        image_size=run.image_size(variant),
        dropout_rate=config.dropout_rate,
        stochastic_depth_rate=config.stochastic_depth_rate,
        small_images=config.small_images,
        width=config.width,
        depth=config.depth,
        batch_norm_momentum=config.batch_norm_momentum,
        **config.channel_statistics(),
    )


def make_trainable(run, variant, *, num_labeled, mixed, seed):
    """A fresh network of a variant, compiled on the devices of the run.

    Args:
        run: The `Run`.
        variant: Name of the network.
        num_labeled: Labeled images in the set, for the length of an epoch.
        mixed: Whether its batches hold pseudo-labeled images.
        seed: Integer that decides its first weights and its noise.

    Returns:
        A compiled `AveragedModel`.
    """
    config = run.config
    keras.utils.set_random_seed(seed)
    scale = config.batch_size / 256
    steps_per_epoch = num_labeled / config.batch_size
    learning_rate = schedules.exponential_decay(
        config.base_lr * scale,
        steps_per_epoch,
        decay_factor=config.lr_decay_factor,
        decay_epochs=config.lr_decay_epochs,
        warmup_epochs=config.warmup_epochs,
        final_lr=config.final_base_lr and config.final_base_lr * scale,
        total_epochs=num_steps(config, num_labeled) / steps_per_epoch,
    )
    with run.strategy.scope():
        return trainer.make_trainable(
            build_network(run, variant),
            learning_rate=learning_rate,
            weight_decay=config.weight_decay,
            ema_decay=config.ema_decay,
            num_labeled=config.batch_size // run.num_replicas,
            unlabeled_ratio=config.unlabeled_ratio if mixed else 0.0,
            jit_compile=distribution.uses_xla(run.strategy),
        )


def num_steps(config, num_labeled):
    """Training steps of one model."""
    if config.train_steps is not None:
        return config.train_steps
    return max(1, round(config.epochs * num_labeled / config.batch_size))


def make_batches(run, iteration, skipped):
    """The batches that the model of an iteration trains on.

    Args:
        run: The `Run`.
        iteration: 0 for the teacher, whose batches are all labeled.
        skipped: Pairs (shard, row) of labeled images to leave out.

    Returns:
        Function from the number of steps done to a dataset.
    """
    config = run.config
    augment = _make_augment(run, config.variant_of(iteration))

    def part(purpose, examples, batch_size, first_step):
        stream = pipelines.stream(
            examples,
            seed=run.seed(iteration, purpose),
            shuffle_buffer=config.shuffle_buffer,
            start=first_step * batch_size,
        )
        return pipelines.Part(examples, stream, augment, batch_size)

    labeled = pipelines.labeled_examples(
        run.labeled, label_smoothing=config.label_smoothing, skipped=skipped
    )
    if iteration == 0:
        return lambda first_step: pipelines.labeled(
            part(1, labeled, config.batch_size, first_step)
        )
    unlabeled = pseudo_labeled_examples(
        run.unlabeled,
        run.label_store(iteration),
        kind=config.pseudo_label_kind,
        temperature=config.temperature,
        label_smoothing=config.label_smoothing,
    )
    return lambda first_step: pipelines.mixed(
        part(1, labeled, config.batch_size, first_step),
        part(2, unlabeled, run.unlabeled_batch_size, first_step),
        num_replicas=run.num_replicas,
    )


def _make_augment(run, variant):
    config = run.config
    image_size = run.image_size(variant)
    small = config.crop == "padded"
    cutout_const, translate_const = config.cutout_const, config.translate_const
    if cutout_const is None:
        cutout_const = _noise_pixels(40, image_size, small)
    if translate_const is None:
        translate_const = _noise_pixels(100, image_size, small)
    return augmentation.make_augment(
        image_size=image_size,
        crop=config.crop,
        crop_padding=config.crop_padding,
        flip=config.flip,
        randaugment_num_ops=config.randaugment_num_ops,
        randaugment_magnitude=config.randaugment_magnitude,
        cutout_const=cutout_const,
        translate_const=translate_const,
        cutout_size=config.cutout_size,
    )


def _noise_pixels(official, image_size, small):
    """How far RandAugment moves or cuts at magnitude 10, in pixels.

    The official 40 and 100 pixels are meant for images of 224 and more; on
    smaller ones they would leave nothing, so they shrink with them. The
    official 32-pixel path takes an eighth of the image.
    """
    if small:
        return image_size // 8
    return round(official * min(1, image_size / 224))
