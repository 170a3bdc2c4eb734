# SPDX-License-Identifier: Apache-2.0
"""Images a second from encoded JPEGs to batches of bytes, beside the limit.

    python -m benchmarks.input_pipeline
    python -m benchmarks.input_pipeline --images=FILE.tar --image_size=300
    python -m benchmarks.input_pipeline --cores=1 --only=limit,ours

    limit       decode the crop alone, bicubic, flip: what any pipeline pays
    crop_flip   the student's pipeline without RandAugment
    ours        with RandAugment, N = 2, M = 27, all 16 operations
    mixed       labeled + pseudo-labeled, 1 : 3, labels read from `.npy` files,
                a third of the images filtered out, others duplicated
    full        decode all, then crop, bicubic, flip: the official order
    timm        `rand-m9-n2-mstd0.5`, bicubic, as many worker processes as cores
    timm_crop   the same without RandAugment
    keras_cv    its RandAugment (10 operations) behind the limit
    keras       `keras.layers.RandAugment` behind the limit, image by image

Without `--images` the JPEGs are made up, 500 x 375 pixels and 110 kB each. All
pipelines hold the encoded images in memory and batch 64. Peers run where they
are installed (requirements-bench.txt). What is not installed is left out.
"""

import argparse
import importlib.util
import os
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from benchmarks import measuring

BATCH_SIZE = 64
NUM_CLASSES = 1000
# Batches that fill the buffers, and batches that count.
WARM_UP, COUNTED = 12, 20


def main():
    """A line for each pipeline."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", help="Tar file or folder of JPEGs.")
    parser.add_argument("--image_size", type=int, default=224, help="Pixels.")
    parser.add_argument("--cores", type=int, help="Cores; all by default.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help="List of the names above.")
    arguments = parser.parse_args()
    if arguments.cores:
        # Before TensorFlow counts them.
        os.sched_setaffinity(0, range(arguments.cores))
    jpegs = measuring.load_jpegs(arguments.images)
    print(
        f"{len(jpegs)} JPEGs, {np.mean([*map(len, jpegs)]) / 1e3:.0f} kB each"
    )
    contenders = {**ours(jpegs, arguments.image_size)}
    for peers in (timm_peers, keras_peers):
        contenders.update(peers(jpegs, arguments.image_size))
    names = (arguments.only or ",".join(contenders)).split(",")
    measuring.side_by_side(
        {name: consumer(contenders[name]) for name in names}, arguments.rounds
    )


def consumer(make_batches):
    """Function that times batches of a pipeline opened anew."""

    def work():
        batches = iter(make_batches())
        for _ in range(WARM_UP):
            next(batches)

        def counted():
            for _ in range(COUNTED):
                next(batches)

        return measuring.timed(counted, COUNTED * BATCH_SIZE)

    return work


def ours(jpegs, image_size):
    """The pipelines of this project, and the limits of TensorFlow."""
    import tensorflow as tf

    from noisy_student.data import augmentation
    from noisy_student.data import decoding
    from noisy_student.data import pipelines
    from noisy_student.data import sources
    from noisy_student.pseudo_labels.dataset import pseudo_labeled_examples
    from noisy_student.pseudo_labels.store import LabelStore

    source = sources.source_in_memory(
        name="made",
        class_names=tuple(map(str, range(NUM_CLASSES))),
        fingerprint="made",
        references=jpegs,
        labels=[row % NUM_CLASSES for row in range(len(jpegs))],
        load=tf.identity,
        row_name=str,
    )

    def part(examples, seed, batch_size, num_ops=2):
        augment = augmentation.make_augment(
            image_size=image_size, randaugment_num_ops=num_ops
        )
        stream = pipelines.stream(examples, seed=seed, shuffle_buffer=16384)
        return pipelines.Part(examples, stream, augment, batch_size)

    def plain(num_ops):
        examples = pipelines.labeled_examples(source)
        return pipelines.labeled(part(examples, 1, BATCH_SIZE, num_ops))

    def mixed():
        rng = np.random.default_rng(0)
        with tempfile.TemporaryDirectory() as folder:
            labels = LabelStore(folder, source.shard_sizes, NUM_CLASSES)
            for shard, size in enumerate(source.shard_sizes):
                probs = rng.dirichlet(np.full(NUM_CLASSES, 0.01), size)
                labels.write_probs(shard, probs)
            copies = rng.integers(0, 3, source.num_examples).astype(np.uint32)
            labels.write_copies(copies, {})
            parts = (
                part(pipelines.labeled_examples(source), 1, BATCH_SIZE // 4),
                part(
                    pseudo_labeled_examples(source, labels),
                    2,
                    BATCH_SIZE - BATCH_SIZE // 4,
                ),
            )
            yield from pipelines.mixed(*parts)

    def limit(decode):
        def prepare(number, jpeg):
            seed = tf.stack([tf.constant(0, tf.int64), number])
            image = decode(jpeg, seed)
            image = tf.raw_ops.ResizeBicubic(
                images=image[tf.newaxis], size=[image_size, image_size]
            )[0]
            image = tf.saturate_cast(image, tf.uint8)
            return tf.image.stateless_random_flip_left_right(image, seed)

        return images(prepare)

    def images(prepare):
        numbered = tf.data.Dataset.from_tensor_slices(jpegs).repeat()
        mapped = numbered.enumerate().map(
            prepare, tf.data.AUTOTUNE, deterministic=False
        )
        return mapped.batch(BATCH_SIZE).prefetch(tf.data.AUTOTUNE)

    def window(jpeg, seed):
        size = tf.io.extract_jpeg_shape(jpeg)
        begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            size,
            bounding_boxes=[[[0.0, 0.0, 1.0, 1.0]]],
            seed=seed,
            min_object_covered=0.1,
            aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(0.08, 1.0),
            max_attempts=10,
        )
        return begin, size

    def crop_of(jpeg, seed):
        begin, size = window(jpeg, seed)
        window_of_two = tf.concat([begin[:2], size[:2]], axis=0)
        return tf.io.decode_and_crop_jpeg(jpeg, window_of_two, channels=3)

    def all_of(jpeg, seed):
        begin, size = window(jpeg, seed)
        return tf.slice(decoding.decode(jpeg), begin, size)

    return {
        "limit": lambda: limit(crop_of),
        "crop_flip": lambda: plain(0),
        "ours": lambda: plain(2),
        "mixed": mixed,
        "full": lambda: limit(all_of),
    }


def timm_peers(jpegs, image_size):
    """Timm's training transforms in PyTorch's loader, if installed."""
    if not all(map(importlib.util.find_spec, ("torch", "timm"))):
        return {}
    from benchmarks import timm_loader

    policies = {"timm": "rand-m9-n2-mstd0.5", "timm_crop": None}
    return {
        name: lambda policy=policy: timm_loader.batches(
            jpegs,
            image_size,
            policy,
            batch_size=BATCH_SIZE,
            # A few more, so that no worker is idle before the end.
            num_batches=WARM_UP + COUNTED + 4,
            workers=len(os.sched_getaffinity(0)),
        )
        for name, policy in policies.items()
    }


def keras_peers(jpegs, image_size):
    """RandAugment of Keras and keras-cv behind the limit, if installed."""
    import keras
    import tensorflow as tf

    limit = ours(jpegs, image_size)["limit"]

    def behind_the_limit(layer):
        def augment(image):
            image = layer(tf.cast(image, tf.float32)[tf.newaxis])[0]
            return tf.saturate_cast(image, tf.uint8)

        single = limit().unbatch().map(augment, tf.data.AUTOTUNE)
        return single.batch(BATCH_SIZE).prefetch(tf.data.AUTOTUNE)

    layers = {"keras": lambda: keras.layers.RandAugment((0, 255), 2)}
    if importlib.util.find_spec("keras_cv"):

        def from_keras_cv():
            from keras_cv.layers import RandAugment

            return RandAugment((0, 255), augmentations_per_image=2)

        layers["keras_cv"] = from_keras_cv
    return {
        name: lambda make=make: behind_the_limit(make())
        for name, make in layers.items()
    }


if __name__ == "__main__":
    main()
