# SPDX-License-Identifier: Apache-2.0
"""From encoded images to batches: the labeled, the mixed, and the inference one.

Every random draw is a function of (seed, epoch, position in the epoch): the
order of epoch e and the noise of its k-th image are the same however the run
came there, whatever runs in parallel, and on every machine. Augmentation works
on single uint8 images on the host, so that the accelerator gets bytes.
"""

import tensorflow as tf

from noisy_student.data import preprocessing
from noisy_student.data import randaugment

# Shards read at once, and how finely the shards of an epoch are interleaved.
CYCLE_LENGTH = 16


def make_augment(
    *,
    image_size,
    crop="resized",
    crop_padding=4,
    flip=True,
    randaugment_num_ops=2,
    randaugment_magnitude=27,
    cutout_const=40,
    translate_const=100,
    cutout_size=0,
):
    """Build the noise of the input for one kind of image.

    Args:
        image_size: S in pixels.
        crop: `resized` for the random-resized crop of ImageNet, `padded` for
            pad-and-crop of small images.
        crop_padding: Pixels of padding on each side, for `padded`.
        flip: Whether to mirror half of the images.
        randaugment_num_ops: N operations an image; 0 for none.
        randaugment_magnitude: M, in `[0, 30]`.
        cutout_const: Half side of Cutout's hole at magnitude 10, in pixels.
        translate_const: Shift of TranslateX/Y at magnitude 10, in pixels.
        cutout_size: Side of a hole that is always cut, in pixels; 0 for none.

    Returns:
        Function from (encoded image, string scalar; seed, int64 `(2,)`) to a
        uint8 image `(S, S, 3)`.

    Reference: noisystudent/preprocessing.py: RandAugment follows the crop on
    large images, and comes before it on small ones.
    """

    def noise(image, seed):
        image = randaugment.randaugment(
            image,
            randaugment_num_ops,
            randaugment_magnitude,
            seed=seed,
            cutout_const=cutout_const,
            translate_const=translate_const,
        )
        if cutout_size:
            image = randaugment.cutout(image, cutout_size // 2, seed=seed + 1)
        return image

    def augment(image_bytes, seed):
        seeds = tf.random.split(seed, 3)
        if crop == "resized":
            image = preprocessing.random_resized_crop(
                image_bytes, image_size, seed=seeds[0]
            )
            if flip:
                image = preprocessing.random_flip(image, seed=seeds[1])
            return noise(image, seeds[2])
        image = preprocessing.decode(image_bytes)
        image = noise(preprocessing.resize(image, image_size), seeds[2])
        if crop_padding:
            image = preprocessing.pad_and_crop(
                image, crop_padding, seed=seeds[0]
            )
        if flip:
            image = preprocessing.random_flip(image, seed=seeds[1])
        return image

    return augment


def labeled_examples(source, *, label_smoothing=0.1, skipped=()):
    """Open a labeled source for training.

    Args:
        source: A `Source` with labels.
        label_smoothing: s; the target is `(1 - s) * one_hot + s / C`.
        skipped: Pairs (shard, row) of images to leave out, the undecodable.

    Returns:
        Pair of a function that opens a shard (int64 scalar) as a dataset of
        (reference, target float32 `(C,)`), for `stream`, and the number of
        examples in all shards.
    """
    num_classes = len(source.class_names)
    skipped_shards = tf.constant([shard for shard, _ in skipped], tf.int64)
    skipped_rows = tf.constant([row for _, row in skipped], tf.int64)

    def open_shard(shard):
        def keep(row, _):
            return ~tf.reduce_any(
                (skipped_shards == shard) & (skipped_rows == row)
            )

        def with_target(_, example):
            reference, label = example
            one_hot = tf.one_hot(label, num_classes)
            smoothed = one_hot * (1 - label_smoothing)
            return reference, smoothed + label_smoothing / num_classes

        examples = source.open_shard(shard).enumerate()
        if skipped:
            examples = examples.filter(keep)
        return examples.map(with_target)

    return open_shard, source.num_examples - len(skipped)


def stream(
    open_shard, num_shards, num_examples, *, seed, shuffle_buffer, start=0
):
    """An endless stream of shuffled examples, epoch after epoch.

    Args:
        open_shard: Function from a shard's number, int64 scalar tensor, to a
            dataset of tuples.
        num_shards: How many shards there are.
        num_examples: How many examples all shards yield together.
        seed: Integer; streams that shall differ need different ones.
        shuffle_buffer: How many examples are shuffled among each other.
        start: Position in the stream to begin at: what a run that was stopped
            has already seen.

    Returns:
        Dataset of the tuples of `open_shard`, each with a seed appended:
        int64 `(2,)`, different for every position of the stream.
    """

    def open_epoch(epoch):
        # One number for the epoch; the position makes it the image's seed.
        # The shuffle's seed is a function of both and of TensorFlow's global
        # seed, which the phases set.
        epoch_seed = tf.random.stateless_uniform(
            [], [seed, epoch], tf.int64.min, tf.int64.max, tf.int64
        )
        order = tf.argsort(
            tf.random.stateless_uniform([num_shards], [epoch_seed, 0])
        )
        examples = tf.data.Dataset.from_tensor_slices(
            tf.cast(order, tf.int64)
        ).interleave(
            open_shard,
            cycle_length=min(CYCLE_LENGTH, num_shards),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        examples = examples.shuffle(
            min(shuffle_buffer, num_examples),
            # Non-negative, as Dataset.shuffle folds seeds into 31 bits.
            seed=tf.abs(epoch_seed // 2),
            reshuffle_each_iteration=False,
        )
        return examples.enumerate().map(
            lambda position, example: (
                *example,
                tf.stack([epoch_seed, position]),
            )
        )

    first_epoch, position = divmod(start, num_examples)
    epochs = tf.data.Dataset.range(first_epoch, tf.int64.max)
    return epochs.flat_map(open_epoch).skip(position)


def labeled(examples, load, augment, batch_size):
    """Batches of labeled images alone, for a teacher.

    Args:
        examples: A `stream` of (reference, target, seed).
        load: Function from a reference to the encoded image.
        augment: Of `make_augment`.
        batch_size: B, global.

    Returns:
        Dataset of (images uint8 `(B, S, S, 3)`, targets float32 `(B, C)`).
    """
    batches = _augmented_batches(examples, load, augment, batch_size)
    return batches.with_options(_options()).prefetch(tf.data.AUTOTUNE)


def mixed(labeled_part, unlabeled_part, *, num_replicas=1):
    """Batches of labeled and pseudo-labeled images, mixed alike everywhere.

    Keras cuts a global batch into equal slices, one for each replica; the rows
    are laid so that every slice holds its labeled images first and the same
    number of pseudo-labeled ones after them.

    Args:
        labeled_part: Tuple (examples, load, augment, batch size) as the
            arguments of `labeled`; B is its batch size.
        unlabeled_part: The same for the pseudo-labeled images; U.
        num_replicas: R; divides B and U.

    Returns:
        Dataset of (images uint8 `(B + U, S, S, 3)`, targets float32
        `(B + U, C)`); each of the R slices holds B/R labeled rows, then U/R
        pseudo-labeled ones.
    """
    parts = []
    for examples, load, augment, batch_size in (labeled_part, unlabeled_part):
        if batch_size % num_replicas:
            raise ValueError(
                f"a batch of {batch_size} does not divide among "
                f"{num_replicas} replicas"
            )
        parts.append(
            _augmented_batches(
                examples, load, augment, batch_size // num_replicas
            )
        )

    def concatenate(*batches):
        return tuple(tf.concat(parts, axis=0) for parts in zip(*batches))

    def merge(images, targets):  # (R, (B + U) / R, ...) -> (B + U, ...)
        return tuple(
            tf.reshape(part, tf.concat([[-1], part.shape[2:]], 0))
            for part in (images, targets)
        )

    batches = tf.data.Dataset.zip(tuple(parts)).map(concatenate)
    if num_replicas > 1:
        batches = batches.batch(num_replicas, drop_remainder=True).map(merge)
    return batches.with_options(_options()).prefetch(tf.data.AUTOTUNE)


def inference(examples, load, num_examples, *, image_size, crop, batch_size):
    """Batches of clean images in their order, none lost, all of one size.

    Args:
        examples: Dataset of (reference, label): a shard.
        load: Function from a reference to the encoded image.
        num_examples: How many examples there are.
        image_size: S in pixels.
        crop: `resized` for the official centre crop, `padded` for the whole
            image.
        batch_size: N; what is left of the last batch is filled up.

    Returns:
        Dataset of `ceil(num_examples / N)` dicts: `index` int64 `(N,)`, the
        row in the shard, -1 for filling; `label` int64 `(N,)`; `pixels`
        float32 `(N, S, S, 3)`. The index of an image that cannot be decoded
        appears nowhere.
    """

    def prepare(index, example):
        reference, label = example
        image_bytes = load(reference)
        if crop == "resized":
            image = preprocessing.center_crop(image_bytes, image_size)
        else:
            image = preprocessing.decode(image_bytes)
            image = preprocessing.resize(image, image_size)
        pixels = tf.cast(image, tf.float32)
        return {"index": index, "label": label, "pixels": pixels}

    # Errors are ignored in the decoding of a few images at a time, not in the
    # reading of the shard: there the same error would come again for ever.
    def decodable(indices, examples):
        numbered = tf.data.Dataset.from_tensor_slices((indices, examples))
        return numbered.map(prepare).ignore_errors()

    filling = tf.data.Dataset.from_tensors(
        {
            "index": tf.constant(-1, tf.int64),
            "label": tf.constant(-1, tf.int64),
            "pixels": tf.zeros([image_size, image_size, 3]),
        }
    ).repeat()
    num_batches = -(-num_examples // batch_size)
    return (
        examples.enumerate()
        .batch(16)
        .interleave(
            decodable,
            cycle_length=CYCLE_LENGTH,
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        .concatenate(filling)
        .batch(batch_size, drop_remainder=True)
        .take(num_batches)
        .apply(tf.data.experimental.assert_cardinality(num_batches))
        .with_options(_options())
        .prefetch(tf.data.AUTOTUNE)
    )


def _augmented_batches(examples, load, augment, batch_size):
    # Plain Python builds this graph; AutoGraph would only slow the tracing.
    @tf.autograph.experimental.do_not_convert
    def prepare(reference, target, seed):
        return augment(load(reference), seed), target

    return examples.map(prepare, tf.data.AUTOTUNE, deterministic=True).batch(
        batch_size, drop_remainder=True
    )


def _options():
    options = tf.data.Options()
    options.deterministic = True
    # One host feeds all replicas: there are no files to share out.
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.OFF
    )
    return options
