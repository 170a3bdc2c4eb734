# SPDX-License-Identifier: Apache-2.0
"""From a run to the batches that its models are trained on.

Which images a phase shows, how many of each kind, and with what noise.
"""

import tensorflow as tf

from noisy_student.data import augmentation
from noisy_student.data import pipelines
from noisy_student.pseudo_labels.dataset import pseudo_labeled_examples


def batch_sizes(run, phase, iteration):
    """(B, U): labeled and pseudo-labeled images of a batch, on all devices."""
    config = run.config
    if phase != "distill":
        return config.batch_size, 0
    unlabeled = run.unlabeled_batch_size(iteration)
    return config.batch_size if config.joint_training else 0, unlabeled


def make_batches(run, phase, iteration, skipped=(), skipped_unlabeled=()):
    """The batches that the model of an iteration trains on.

    Args:
        run: The `Run`.
        phase: `teach`, `distill` or `finetune`.
        iteration: 0 for the teacher.
        skipped: Pairs (shard, row) of labeled images to leave out.
        skipped_unlabeled: Likewise, for an on-line teacher.

    Returns:
        Function from the number of steps done to a dataset.
    """
    config = run.config
    image_size = run.image_size(iteration)
    if phase == "finetune":
        image_size = run.finetuning_size(iteration)
    online = phase == "distill" and config.online_teacher
    teacher_augments = {}
    if online:
        size = run.workdir.image_size(iteration - 1)
        teacher_augments = {
            # Nobody asks about labeled images, but the rows must be alike.
            "labeled": lambda image_bytes, seed: tf.zeros([size, size, 3]),
            "unlabeled": make_teacher_augment(run, iteration - 1),
        }

    def part(name, examples, batch_size, first_step):
        stream = pipelines.stream(
            examples,
            seed=run.seed(f"{name} images", iteration),
            shuffle_buffer=config.shuffle_buffer,
            start=first_step * batch_size,
        )
        noise = config.noise(name)
        augment = make_augment(run, image_size, noise, iteration)
        return pipelines.Part(
            examples, stream, augment, batch_size, teacher_augments.get(name)
        )

    labeled_size, unlabeled_size = batch_sizes(run, phase, iteration)
    labeled = pipelines.labeled_examples(
        run.labeled, label_smoothing=config.label_smoothing, skipped=skipped
    )
    if not unlabeled_size:
        name = "finetune" if phase == "finetune" else "labeled"
        return lambda first_step: pipelines.labeled(
            part(name, labeled, labeled_size, first_step)
        )
    if online:
        unlabeled = pipelines.unlabeled_examples(
            run.unlabeled,
            num_classes=run.num_classes,
            skipped=skipped_unlabeled,
        )
    else:
        unlabeled = pseudo_labeled_examples(
            run.unlabeled,
            run.label_store(iteration),
            kind=config.pseudo_label_kind,
            temperature=config.temperature,
            label_smoothing=config.label_smoothing,
        )
    if not labeled_size:
        return lambda first_step: pipelines.labeled(
            part("unlabeled", unlabeled, unlabeled_size, first_step)
        )
    return lambda first_step: pipelines.mixed(
        part("labeled", labeled, labeled_size, first_step),
        part("unlabeled", unlabeled, unlabeled_size, first_step),
        num_replicas=run.num_replicas,
    )


def make_teacher_augment(run, iteration):
    """How a saved model sees the images that it labels.

    Un-noised, unless the settings ask for a noised teacher.
    """
    image_size = run.workdir.image_size(iteration)
    noise = run.config.noise("teacher")
    return make_augment(run, image_size, noise, iteration)


def make_augment(run, image_size, noise, iteration=0):
    """What happens to an image before the network sees it.

    Args:
        run: The `Run`.
        image_size: Pixels.
        noise: Set of `settings.NOISE`.
        iteration: Of the model that sees the image, for its magnitude.

    Returns:
        Of `augmentation.make_augment`.
    """
    config = run.config
    disturbed = "randaugment" in noise
    return augmentation.make_augment(
        image_size=image_size,
        crop=config.crop,
        random_crop="crop" in noise,
        crop_padding=config.crop_padding,
        flip=config.flip,
        randaugment_num_ops=config.randaugment_num_ops if disturbed else 0,
        randaugment_magnitude=config.randaugment_magnitude_of(iteration),
        randaugment_contrast=config.randaugment_contrast,
        randaugment_ops=config.randaugment_ops,
        **noise_constants(run, image_size),
        cutout_size=config.cutout_size if disturbed else 0,
    )


def noise_constants(run, image_size):
    """Dict of `cutout_const` and `translate_const`, in pixels."""
    config = run.config
    small = config.crop == "padded"
    official = {"cutout_const": 40, "translate_const": 100}
    constants = {}
    for name, pixels in official.items():
        chosen = getattr(config, name)
        if chosen is None:
            chosen = _noise_pixels(pixels, image_size, small)
        constants[name] = chosen
    return constants


def _noise_pixels(official, image_size, small):
    """How far RandAugment moves or cuts at magnitude 10, in pixels.

    The official 40 and 100 pixels are meant for images of 224 and more; on
    smaller ones they would leave nothing, so they shrink with them. The
    official 32-pixel path takes an eighth of the image.
    """
    if small:
        return image_size // 8
    return round(official * min(1, image_size / 224))
