# SPDX-License-Identifier: Apache-2.0
"""From encoded images to batches for labeling and evaluation.

The images come in their order, none of them lost, shard after shard. A batch
holds images of one shard, so that what a network answers to a shard does not
depend on which ones were asked for before.
"""

import tensorflow as tf

from noisy_student.data import pipelines

# Images that are decoded one after the other, by one of several workers.
IMAGES_PER_CHUNK = 4


def num_batches(num_examples, batch_size):
    """How many batches a shard is cut into."""
    return -(-num_examples // batch_size)


def batches(source, shards, *, image_size, augment, batch_size, seeds=None):
    """Batches of the images of some shards, all of one size.

    Args:
        source: A `Source`.
        shards: Numbers of the shards.
        image_size: S in pixels.
        augment: Of `augmentation.make_augment`, normally without any noise.
        batch_size: N; what is left of a shard's last batch is filled up.
        seeds: An integer for each shard, for a teacher whose images are
            disturbed; zeros by default.

    Returns:
        Dataset of dicts, `num_batches` of them for each shard: `index` int64
        `(N,)`, the row in the shard, -1 for filling; `label` int64 `(N,)`;
        `pixels` float32 `(N, S, S, 3)`. The index of an image that cannot be
        decoded appears nowhere.
    """

    def prepare(seed, index, example):
        reference, label = example
        image_seed = tf.stack([seed, index])
        pixels = augment(source.load(reference), image_seed)
        pixels = tf.cast(pixels, tf.float32)
        return {"index": index, "label": label, "pixels": pixels}

    # Errors are ignored in the decoding of a few images at a time, not in the
    # reading of the shard: there the same error would come again for ever.
    def decodable(seeds, *numbered):
        chunk = tf.data.Dataset.from_tensor_slices((seeds, *numbered))
        return chunk.map(prepare).ignore_errors()

    filling = tf.data.Dataset.from_tensors(
        {
            "index": tf.constant(-1, tf.int64),
            "label": tf.constant(-1, tf.int64),
            "pixels": tf.zeros([image_size, image_size, 3]),
        }
    ).repeat()

    def shard_batches(shard, size, seed):
        seed = tf.data.Dataset.from_tensors(seed).repeat()
        examples = source.open_shard(shard).enumerate()
        return (
            tf.data.Dataset.zip(seed, examples)
            .map(lambda seed, numbered: (seed, *numbered))
            .batch(IMAGES_PER_CHUNK)
            .interleave(
                decodable,
                cycle_length=pipelines.CYCLE_LENGTH,
                block_length=IMAGES_PER_CHUNK,
                num_parallel_calls=tf.data.AUTOTUNE,
                deterministic=True,
            )
            .concatenate(filling)
            .batch(batch_size, drop_remainder=True)
            .take(num_batches(size, batch_size))
        )

    sizes = [source.shard_sizes[shard] for shard in shards]
    numbers = (shards, sizes, [0] * len(shards) if seeds is None else seeds)
    numbers = tuple(tf.constant(column, tf.int64) for column in numbers)
    # Parallel only to open the next shard while this one is decoded.
    return pipelines.finish(
        tf.data.Dataset.from_tensor_slices(numbers).interleave(
            shard_batches,
            cycle_length=1,
            num_parallel_calls=1,
            deterministic=True,
        )
    )
