# SPDX-License-Identifier: Apache-2.0
"""Memory and time of training steps with the flags for large models.

    python -m benchmarks.large_models
    python -m benchmarks.large_models --variant=b4 --batch_size=8

The flags are `--dtype=bfloat16`, `--rematerialize` and
`--accumulation_steps`. Each setting trains for a few steps on the CPU, in a
process of its own with a heap that gives back what is freed. Memory is the
peak of what the process holds, less what it held before the network was
built. Time is what all cores work for a step, the fastest of those after the
first. Prints a table, with the estimate of `--mode=plan`, and the same as a
line of JSON. Requires Linux.
"""

import argparse
import json
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf

from benchmarks import measuring
from benchmarks.memory_estimate import TIDY_HEAP
from benchmarks.memory_estimate import in_a_fresh_process
from benchmarks.memory_estimate import random_batches
from noisy_student import plan
from noisy_student.config import Config
from noisy_student.models import accounting
from noisy_student.models import efficientnet
from noisy_student.models import rematerialization
from noisy_student.training import trainer


def main():
    """Measure each setting, print as it goes."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--variant", default="b0", help="Name of the network.")
    parser.add_argument("--image_size", type=int, help="Its own by default.")
    parser.add_argument("--batch_size", type=int, default=32, help="Images.")
    parser.add_argument(
        "--accumulation_steps", type=int, default=4, help="Parts of a batch."
    )
    parser.add_argument(
        "--steps", type=int, default=2, help="Timed steps, after another."
    )
    parser.add_argument(
        "--only",
        default="",
        help="Names of settings, with commas between; all by default.",
    )
    arguments = parser.parse_args()
    variant = efficientnet.VARIANTS[arguments.variant]
    image_size = (
        arguments.image_size or variant.train_image_size or variant.image_size
    )
    parts = {"accumulation_steps": arguments.accumulation_steps}
    cases = {
        "plain": {},
        "bfloat16": {"dtype": "bfloat16"},
        "rematerialize": {"rematerialize": True},
        "accumulate": parts,
        "rematerialize+accumulate": {"rematerialize": True, **parts},
        "all": {"dtype": "bfloat16", "rematerialize": True, **parts},
    }
    if arguments.only:
        cases = {name: cases[name] for name in arguments.only.split(",")}
    costs = accounting.costs(arguments.variant, image_size=image_size)
    images = arguments.batch_size
    print(
        f"EfficientNet-{arguments.variant.upper()}, {image_size} pixels, "
        f"{images} images, parts: {arguments.accumulation_steps}"
    )
    print(f"{'':<26}{'GB':>7}{'plan':>7}{'CPU s':>9}{'loss':>8}")
    rows = []
    for name, settings in cases.items():
        memory = plan.memory_per_device(
            Config(**settings), costs, images, image_size
        )
        peak, seconds, loss = in_a_fresh_process(
            TIDY_HEAP,
            measure,
            arguments.variant,
            image_size,
            images,
            settings,
            arguments.steps,
        )
        expected = sum(memory.values())
        print(
            f"{name:<26}{peak / 1e9:>7.2f}{expected / 1e9:>7.2f}"
            f"{seconds:>9.2f}{loss:>8.3f}",
            flush=True,
        )
        rows.append(
            {
                "setting": name,
                "gigabytes": round(peak / 1e9, 3),
                "planned_gigabytes": round(expected / 1e9, 3),
                "cpu_seconds": round(seconds, 3),
                "loss": loss,
            }
        )
    print(
        json.dumps(
            {
                "variant": arguments.variant,
                "image_size": image_size,
                "images": images,
                "rows": rows,
            }
        )
    )


def measure(variant, image_size, images, settings, steps):
    """Peak bytes, CPU seconds of a step and the last loss of a training."""
    tf.config.list_logical_devices()  # TensorFlow is up from here on
    before = measuring.resident("VmRSS")
    keras.utils.set_random_seed(0)
    settings = {
        "dtype": "float32",
        "rematerialize": False,
        "accumulation_steps": 1,
        **settings,
    }
    network = efficientnet.build_model(
        variant, image_size=image_size, dtype=settings["dtype"]
    )
    model = trainer.make_trainable(
        network,
        learning_rate=0.01,
        num_labeled=images // settings["accumulation_steps"],
        accumulation_steps=settings["accumulation_steps"],
        forward=rematerialization.rematerialized(network)
        if settings["rematerialize"]
        else None,
    )
    batches = random_batches(image_size, images)
    times = []

    class Clock(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            times.append(time.process_time())

    history = model.fit(
        batches,
        steps_per_epoch=1 + steps,
        shuffle=False,
        verbose=0,
        callbacks=[Clock()],
    )
    seconds = min(b - a for a, b in zip(times, times[1:], strict=False))
    return (
        measuring.resident("VmHWM") - before,
        seconds,
        round(history.history["loss"][-1], 4),
    )


if __name__ == "__main__":
    main()
