# SPDX-License-Identifier: Apache-2.0
"""Compares the memory estimate of `--mode=plan` with measured training steps.

    python -m benchmarks.memory_estimate

Trains each network for three steps on the CPU, in a process of its own.
Measures the peak resident memory of the process, minus what it held before the
network was built: first with glibc's default heap, which keeps most of the
freed memory, then with one that returns it. Requires Linux.
"""

import multiprocessing
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from benchmarks import measuring
from noisy_student import plan
from noisy_student.config import Config
from noisy_student.models import accounting
from noisy_student.models import efficientnet
from noisy_student.training import trainer

# Pixels, images in a batch, options of `build_model`.
CASES = (
    (32, 64, {"width": 0.1, "depth": 0.1, "small_images": True}),
    (96, 16, {}),
    (96, 64, {}),
    (224, 32, {}),
    (128, 16, {"width": 4.0, "depth": 0.5}),
    (32, 2, {"width": 4.0, "depth": 0.5}),
    (32, 2, {"width": 0.25, "depth": 3.1}),
)
# Blocks from this size on, in bytes, are given back as soon as they are freed.
TIDY_HEAP = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def main():
    """Prints a line for each case."""
    print("b0, GB: pixels, images, options; estimate; measured; tidy heap")
    for image_size, images, options in CASES:
        costs = accounting.costs("b0", image_size=image_size, **options)
        memory = plan.memory_per_device(Config(), costs, images, image_size)
        estimate = sum(memory.values())
        print(f"{image_size:>4} {images:>3} {options}", end="", flush=True)
        print(f"  {estimate / 1e9:.2f}", end="", flush=True)
        for environment in ({}, TIDY_HEAP):
            found = in_a_fresh_process(
                environment, measure, image_size, images, options
            )
            ratio = f"{found / 1e9:.2f} = {found / estimate:.2f} x"
            print(f"  {ratio}", end="", flush=True)
        print()


def in_a_fresh_process(environment, function, *arguments):
    """What a function returns in a new process with these variables set."""
    os.environ.update(environment)
    try:
        # `spawn` starts a new Python, whose heap reads the variables.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(function, arguments)
    finally:
        for name in environment:
            del os.environ[name]


def measure(image_size, images, options):
    """Bytes that three training steps add to this process at their peak."""
    tf.config.list_logical_devices()  # TensorFlow is up from here on
    before = measuring.resident("VmRSS")
    network = efficientnet.build_model("b0", image_size=image_size, **options)
    model = trainer.make_trainable(
        network, learning_rate=0.01, num_labeled=images
    )
    batches = random_batches(image_size, images)
    model.fit(batches, steps_per_epoch=3, shuffle=False, verbose=0)
    return measuring.resident("VmHWM") - before


def random_batches(image_size, images):
    """The same batch of random pixels again and again, as a dataset."""
    rng = np.random.default_rng(0)
    shape = (images, image_size, image_size, 3)
    pixels = rng.integers(0, 256, shape, dtype="uint8")
    targets = np.eye(1000, dtype="float32")[rng.integers(0, 1000, images)]
    return tf.data.Dataset.from_tensors((pixels, targets)).repeat()


if __name__ == "__main__":
    main()
