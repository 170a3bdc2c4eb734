# SPDX-License-Identifier: Apache-2.0
"""From encoded images to batches for training: labeled, and mixed.

Every random draw is a function of (seed, epoch, position in the epoch): the
order of epoch e and the noise of its k-th image are the same however the run
came there, whatever runs in parallel, and on every machine.
"""

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from noisy_student.data import undecodable

# Shards read at once, and how finely the shards of an epoch are interleaved.
CYCLE_LENGTH = 16


@dataclasses.dataclass(frozen=True)
class Examples:
    """Images with what their targets are made of, not yet read or decoded.

    A function of `Dataset.map` costs TensorFlow more than most of what is done
    to a small image. So everything that an image needs waits for one map, and
    comes along here.

    Attributes:
        open_shard: int64 scalar tensor -> dataset of (reference, raw target).
        num_shards: Number of shards.
        num_examples: Number of examples in all shards together.
        load: Reference -> encoded image, string scalar.
        target: Raw target -> float32 `(C,)`, a distribution.
    """

    open_shard: Callable
    num_shards: int
    num_examples: int
    load: Callable
    target: Callable


def labeled_examples(source, *, label_smoothing=0.1, skipped=()):
    """Open a labeled source for training.

    Args:
        source: A `Source` with labels.
        label_smoothing: s; the target is `(1 - s) * one_hot + s / C`.
        skipped: Pairs (shard, row) of images to leave out, the undecodable.

    Returns:
        `Examples`.
    """
    is_skipped = undecodable.among(skipped) if skipped else None

    def open_shard(shard):
        examples = source.open_shard(shard)
        if is_skipped is None:
            return examples
        kept = examples.enumerate().filter(
            lambda row, _: ~is_skipped(shard, row)
        )
        return kept.map(lambda _, example: example)

    return Examples(
        open_shard=open_shard,
        num_shards=len(source.shard_sizes),
        num_examples=source.num_examples - len(skipped),
        load=source.load,
        target=lambda label: smooth_one_hot(
            label, len(source.class_names), label_smoothing
        ),
    )


def unlabeled_examples(source, *, num_classes, skipped=()):
    """Open an unlabeled source for a student with an on-line teacher.

    Args:
        source: A `Source`; labels that it may have are not looked at.
        num_classes: C.
        skipped: As in `labeled_examples`.

    Returns:
        `Examples` whose targets are zeros, for the training step to fill in.
    """
    return dataclasses.replace(
        labeled_examples(source, skipped=skipped),
        target=lambda label: tf.zeros([num_classes]),
    )


def smooth_one_hot(label, num_classes, label_smoothing):
    """The target of a label that is meant to be one class.

    Args:
        label: Integer scalar.
        num_classes: C.
        label_smoothing: s, in `[0, 1)`.

    Returns:
        float32 `(C,)`: `(1 - s) * one_hot + s / C`.
    """
    one_hot = tf.one_hot(label, num_classes)
    return one_hot * (1 - label_smoothing) + label_smoothing / num_classes


def stream(examples, *, seed, shuffle_buffer, start=0):
    """An endless stream of shuffled examples, epoch after epoch.

    Args:
        examples: `Examples`.
        seed: Integer; streams that shall differ need different ones.
        shuffle_buffer: How many examples are shuffled among each other.
        start: Position in the stream to begin at: what a run that was stopped
            has already seen.

    Returns:
        Dataset of ((position, (reference, raw target)), epoch's seed); the
        seed and the position, int64 scalars, are the seed of the image.
    """
    num_shards, num_examples = examples.num_shards, examples.num_examples

    def open_epoch(epoch):
        # Of the graph of this function alone: `shuffle` would mix in the
        # global seed, and fails where that is 0.
        tf.compat.v1.set_random_seed(1)
        epoch_seed = tf.random.stateless_uniform(
            [], [seed, epoch], tf.int64.min, tf.int64.max, tf.int64
        )
        order = tf.argsort(
            tf.random.stateless_uniform([num_shards], [epoch_seed, 0])
        )
        shards = tf.data.Dataset.from_tensor_slices(tf.cast(order, tf.int64))
        opened = shards.interleave(
            examples.open_shard,
            cycle_length=min(CYCLE_LENGTH, num_shards),
            num_parallel_calls=tf.data.AUTOTUNE if num_shards > 1 else None,
            deterministic=True if num_shards > 1 else None,
        )
        shuffled = opened.shuffle(
            min(shuffle_buffer, num_examples),
            seed=epoch_seed,
            reshuffle_each_iteration=False,
        )
        return tf.data.Dataset.zip(
            (
                shuffled.enumerate(),
                tf.data.Dataset.from_tensors(epoch_seed).repeat(),
            )
        )

    first_epoch, position = divmod(start, num_examples)
    epochs = tf.data.Dataset.range(first_epoch, tf.int64.max)
    return epochs.flat_map(open_epoch).skip(position)


@dataclasses.dataclass(frozen=True)
class Part:
    """One kind of image in a batch.

    Attributes:
        examples: `Examples`.
        stream: Of `stream`, over them.
        augment: Of `augmentation.make_augment`.
        batch_size: How many a global batch holds.
        teacher_augment: For an on-line teacher, how it sees the images.
    """

    examples: Examples
    stream: tf.data.Dataset
    augment: Callable
    batch_size: int
    teacher_augment: Callable | None = None


def labeled(part):
    """Batches of labeled images alone, for a teacher.

    Args:
        part: A `Part` of B images.

    Returns:
        Dataset of (images uint8 `(B, S, S, 3)`, targets float32 `(B, C)`).
    """
    return finish(_batches(part, part.batch_size))


def mixed(labeled_part, unlabeled_part, *, num_replicas=1):
    """Batches of labeled and pseudo-labeled images, mixed alike everywhere.

    Keras cuts a global batch into equal slices, one for each replica; the rows
    are laid so that every slice holds its labeled images first and the same
    number of pseudo-labeled ones after them.

    Args:
        labeled_part: A `Part` of B labeled images.
        unlabeled_part: A `Part` of U pseudo-labeled images.
        num_replicas: R; divides B and U.

    Returns:
        Dataset of (images uint8 `(B + U, S, S, 3)`, targets float32
        `(B + U, C)`); each of the R slices holds B/R labeled rows, then U/R
        pseudo-labeled ones. The images are float32 if those of a part are.
        With an on-line teacher they are a dict of `pixels` and, alike in
        their first dimension, `teacher_pixels`.

    Raises:
        ValueError: If R does not divide B or U.
    """
    for part in (labeled_part, unlabeled_part):
        if part.batch_size % num_replicas:
            raise ValueError(
                f"a batch of {part.batch_size} does not divide among "
                f"{num_replicas} replicas"
            )

    def concatenate(*batches):
        return tf.nest.map_structure(_concatenate, *batches)

    def merge(*batch):  # (R, (B + U) / R, ...) -> (B + U, ...)
        return tf.nest.map_structure(
            lambda rows: tf.reshape(rows, [-1, *rows.shape[2:]]), batch
        )

    batches = tf.data.Dataset.zip(
        tuple(
            _batches(part, part.batch_size // num_replicas)
            for part in (labeled_part, unlabeled_part)
        )
    ).map(concatenate)
    if num_replicas > 1:
        batches = batches.batch(num_replicas, drop_remainder=True).map(merge)
    return finish(batches)


def _concatenate(*rows):
    """Join rows of both kinds; bytes beside floats become floats."""
    if len({row.dtype for row in rows}) > 1:
        rows = [tf.cast(row, tf.float32) for row in rows]
    return tf.concat(rows, axis=0)


def _batches(part, batch_size):
    # Plain Python builds this graph; AutoGraph would only slow the tracing.
    @tf.autograph.experimental.do_not_convert
    def prepare(numbered, epoch_seed):
        position, (reference, raw_target) = numbered
        seed = tf.stack([epoch_seed, position])
        image_bytes = part.examples.load(reference)
        images = part.augment(image_bytes, seed)
        if part.teacher_augment:
            images = {
                "pixels": images,
                "teacher_pixels": part.teacher_augment(image_bytes, seed + 1),
            }
        return images, part.examples.target(raw_target)

    images = part.stream.map(prepare, tf.data.AUTOTUNE, deterministic=True)
    return images.batch(batch_size, drop_remainder=True)


def finish(batches):
    """Prefetch batches, in the same order always and for all replicas."""
    options = tf.data.Options()
    options.deterministic = True
    # One host feeds all replicas: there are no files to share out.
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.OFF
    )
    return batches.with_options(options).prefetch(tf.data.AUTOTUNE)
