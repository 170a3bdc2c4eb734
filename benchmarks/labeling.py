# SPDX-License-Identifier: Apache-2.0
"""Images a second of labeling, beside decoding alone and the network alone.

    python -m benchmarks.labeling
    python -m benchmarks.labeling --images=FILE.tar --variant=b0

A CPU does both with the same cores: labeling can be no faster than the sum of
both times. An accelerator can hide the shorter one behind the longer. The
ratio is of the images a second that follow from this, so 1 is the most.

That memory does not grow with the images, `benchmarks.label_store` shows.
"""

import argparse
import json
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from benchmarks import measuring
from noisy_student.data import augmentation
from noisy_student.data import inference
from noisy_student.data import sources
from noisy_student.models import efficientnet
from noisy_student.pseudo_labels import predict
from noisy_student.training import distribution


def main():
    """A line for each measurement."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", help="Tar file or folder of JPEGs.")
    parser.add_argument("--variant", default="b0", help="Name of the network.")
    parser.add_argument("--image_size", type=int, help="Pixels.")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--count", type=int, default=1024, help="Images.")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    jpegs = measuring.load_jpegs(arguments.images)
    source = source_of([jpegs[i % len(jpegs)] for i in range(arguments.count)])
    image_size = (
        arguments.image_size
        or efficientnet.VARIANTS[arguments.variant].image_size
    )
    network = efficientnet.build_model(arguments.variant, image_size=image_size)
    label = Labeling(source, network, arguments.batch_size)
    on_cpu = not tf.config.list_logical_devices("GPU")
    label.everything()  # traces
    rows = []
    for _ in range(arguments.rounds):
        decoding = seconds_of(label.decode)
        predicting = seconds_of(label.predict)
        labeling = seconds_of(label.everything)
        least = decoding + predicting if on_cpu else max(decoding, predicting)
        rows.append((decoding, predicting, labeling, least / labeling))
    names = ("decode", "predict", "label")
    rates = {
        f"{name}, images/s": round(source.num_examples / value, 1)
        for name, value in zip(names, np.median(rows, axis=0), strict=False)
    }
    ratios = [round(row[-1], 3) for row in rows]
    result = {**rates, "ratio": statistics.median(ratios), "ratios": ratios}
    for name, value in result.items():
        print(f"{name:<20}{value}")
    print(json.dumps(result))


class Labeling:
    """The three things that are timed, over the same images."""

    def __init__(self, source, network, batch_size):
        self.source = source
        self.network = network
        self.batch_size = batch_size
        self.image_size = network.input_shape[1]
        self.shards = range(len(source.shard_sizes))
        self.predictor = predict.make_predictor(network)
        self.jit_compile = distribution.uses_xla(tf.distribute.get_strategy())
        self.forward = tf.function(
            lambda pixels: network(pixels, training=False),
            jit_compile=self.jit_compile,
        )
        shape = (batch_size, self.image_size, self.image_size, 3)
        self.pixels = tf.random.uniform(shape, 0, 255)

    def batches(self):
        return inference.batches(
            self.source,
            self.shards,
            image_size=self.image_size,
            augment=self.augment(),
            batch_size=self.batch_size,
        )

    def augment(self):
        return augmentation.make_augment(
            image_size=self.image_size, random_crop=False, randaugment_num_ops=0
        )

    def decode(self):
        """Decode, crop and resize, and nothing else."""
        for _ in self.batches():
            pass

    def predict(self):
        """As many batches through the network, which are there already."""
        for size in self.source.shard_sizes:
            for _ in range(inference.num_batches(size, self.batch_size)):
                logits = self.forward(self.pixels)
        logits.numpy()

    def everything(self):
        """What `--mode=label` does, but for the writing."""
        for _ in predict.predict_shards(
            self.predictor,
            self.source,
            self.shards,
            num_classes=self.network.output_shape[-1],
            image_size=self.image_size,
            augment=self.augment(),
            batch_size=self.batch_size,
            jit_compile=self.jit_compile,
        ):
            pass


def source_of(references):
    """A source without labels, in memory."""
    return sources.source_in_memory(
        name="made",
        class_names=(),
        fingerprint="made",
        references=references,
        labels=[sources.NO_LABEL] * len(references),
        load=tf.identity,
        row_name=str,
    )


def seconds_of(work):
    """Seconds that a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
