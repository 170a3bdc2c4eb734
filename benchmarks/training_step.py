# SPDX-License-Identifier: Apache-2.0
"""Our training step beside a bare `keras.Model.fit`, and the wait for it.

    python -m benchmarks.training_step
    python -m benchmarks.training_step --image_size=96 --batch_size=64
    python -m benchmarks.training_step --first_step

`ours` trains on labeled and pseudo-labeled rows with the official RMSProp, L2
term, moving average of all weights, metrics of both parts, a live line that is
rewritten, curves for TensorBoard, a look at every loss and checkpoints by the
clock. `keras` is the same network
with Keras's RMSprop and cross-entropy, and nothing else. Both read the same
batch from memory.

`--first_step` measures the seconds from an empty process to the end of the
first step, `import` apart, in new processes: `ours` beside the network of
`keras.applications` trained bare.
"""

import argparse
import io
import os
import pathlib
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from benchmarks import measuring
from noisy_student.models import efficientnet
from noisy_student.reporting import console
from noisy_student.reporting import event_files
from noisy_student.reporting.progress import Progress
from noisy_student.training import curves
from noisy_student.training import distribution
from noisy_student.training import trainer
from noisy_student.training.checkpointing import CheckpointCallback
from noisy_student.training.checkpointing import Checkpoints
from noisy_student.training.checkpointing import StopAtNonFinite

NUM_CLASSES = 1000
UNLABELED_RATIO = 3
LONG = 1_000_000  # steps


def main():
    """A line for each contender."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--variant", default="b0", help="Name of the network.")
    parser.add_argument("--image_size", type=int, help="Pixels.")
    parser.add_argument("--batch_size", type=int, default=32, help="All rows.")
    parser.add_argument("--steps", type=int, default=4, help="Steps in a turn.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--first_step", action="store_true")
    parser.add_argument("--time_one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.image_size is None:
        variant = efficientnet.VARIANTS[arguments.variant]
        arguments.image_size = variant.image_size
    if arguments.time_one:
        print(seconds_to_first_step(arguments.time_one, arguments))
    elif arguments.first_step:
        names = ("applications", "ours")
        contenders = {
            name: lambda name=name: in_a_new_process(name) for name in names
        }
        measuring.side_by_side(contenders, arguments.rounds, seconds=True)
    else:
        with tempfile.TemporaryDirectory() as folder:
            models = {
                "keras": (bare(network_of(arguments)), []),
                "ours": ours(network_of(arguments), arguments, folder),
            }
            contenders = {
                name: turn(*model, arguments) for name, model in models.items()
            }
            for work in contenders.values():
                work()  # traces
            measuring.side_by_side(contenders, arguments.rounds, seconds=True)


def network_of(arguments):
    """A network of ours with fresh weights."""
    return efficientnet.build_model(
        arguments.variant, NUM_CLASSES, image_size=arguments.image_size
    )


def bare(network):
    """The network as a Keras user trains it."""
    network.compile(
        optimizer=keras.optimizers.RMSprop(0.001, momentum=0.9),
        loss=keras.losses.CategoricalCrossentropy(from_logits=True),
        jit_compile=distribution.uses_xla(tf.distribute.get_strategy()),
    )
    return network


def ours(network, arguments, folder):
    """Pair of the model as a student is trained, and its callbacks."""
    model = trainer.make_trainable(
        network,
        learning_rate=0.001,
        num_labeled=arguments.batch_size // (1 + UNLABELED_RATIO),
        unlabeled_ratio=UNLABELED_RATIO,
        jit_compile=distribution.uses_xla(tf.distribute.get_strategy()),
    )
    folder = pathlib.Path(folder)
    checkpoints = Checkpoints(folder)
    guard = StopAtNonFinite(checkpoints, 0)
    path, watcher = folder / "metrics.jsonl", OnTerminal(folder)
    return model, [
        guard,
        curves.Curves(0, LONG, path, watcher, guard.check),
        ByTheClock(checkpoints, 0, 10, guard.check),
    ]


class OnTerminal(curves.Watcher):
    """What `watching.TrainingWatcher` does at a step, drawn for nobody."""

    def __init__(self, folder):
        self.progress = Progress(LONG, stream=Terminal())
        self.progress.begin("")
        self.curves = event_files.Curves(folder / "tensorboard", [])

    def row(self, row):
        self.curves.add(row)

    def step(self, step, figures):
        self.progress.update(step, lambda: console.figures_text(figures()))


class Terminal(io.StringIO):
    """A file that says it is a terminal."""

    def isatty(self):
        return True


class ByTheClock(CheckpointCallback):
    """Checkpoints by the clock, but none at the end of each turn."""

    def on_train_end(self, logs=None):
        pass


def turn(model, callbacks, arguments):
    """Function that times some steps, without the opening of the data."""
    shape = (arguments.batch_size, *[arguments.image_size] * 2, 3)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, shape, np.uint8)
    classes = rng.integers(0, NUM_CLASSES, arguments.batch_size)
    targets = np.eye(NUM_CLASSES, dtype=np.float32)[classes]
    batch = (tf.constant(pixels), tf.constant(targets))
    batches = tf.data.Dataset.from_tensors(batch).repeat()

    def work():
        clock = Clock()
        every = [*callbacks, clock]
        if callbacks:  # ours, as `trainer.fit` has them
            every = curves.DeviceLogs(every, model=model, add_history=True)
        model.fit(
            batches,
            steps_per_epoch=arguments.steps + 1,
            shuffle=False,
            verbose=0,
            callbacks=every,
        )
        return arguments.steps, clock.ends[-1] - clock.ends[0]

    return work


class Clock(keras.callbacks.Callback):
    """When each step ended."""

    def on_train_begin(self, logs=None):
        self.ends = []

    def on_train_batch_end(self, batch, logs=None):
        self.ends.append(time.perf_counter())


def in_a_new_process(name):
    """(1, seconds to the first step) of a contender."""
    command = [sys.executable, "-m", "benchmarks.training_step"]
    output = subprocess.run(
        [*command, *sys.argv[1:], f"--time_one={name}"],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    ).stdout
    return 1, float(output.splitlines()[-1])


def seconds_to_first_step(name, arguments):
    """Build, compile and train for one step."""
    tf.config.list_logical_devices()  # TensorFlow is up from here on
    arguments.steps = 0
    started = time.perf_counter()
    if name == "applications":
        make = getattr(
            keras.applications, f"EfficientNet{arguments.variant.upper()}"
        )
        size = arguments.image_size
        network = make(
            weights=None,
            input_shape=(size, size, 3),
            classifier_activation=None,
        )
        model, callbacks = bare(network), []
        turn(model, callbacks, arguments)()
    else:
        with tempfile.TemporaryDirectory() as folder:
            model, callbacks = ours(network_of(arguments), arguments, folder)
            turn(model, callbacks, arguments)()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
