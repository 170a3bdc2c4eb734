# SPDX-License-Identifier: Apache-2.0
"""Compile and fit: the same for teacher and student.

What makes a student is in its batches and its noise, not in the training.
"""

import json
import time

import keras

from noisy_student import stopping
from noisy_student.files import append_text
from noisy_student.files import write_text
from noisy_student.training import losses
from noisy_student.training.averaging import AveragedModel
from noisy_student.training.checkpointing import CheckpointCallback
from noisy_student.training.checkpointing import StopAtNonFinite
from noisy_student.training.optimizers import RMSprop


def make_trainable(
    network,
    *,
    learning_rate,
    weight_decay=1e-5,
    ema_decay=0.9999,
    num_labeled,
    unlabeled_ratio=0.0,
    online_teacher=None,
    accumulation_steps=1,
    forward=None,
    jit_compile=False,
):
    """Compile a network for training as the official code does.

    Call it under the strategy's scope, where the network was built.

    Args:
        network: A `keras.Model` from pixels to logits.
        learning_rate: Float or schedule.
        weight_decay: Strength of the L2 term, on all but BatchNormalization.
        ema_decay: Limit of the average's decay.
        num_labeled: Labeled rows of a batch, or of each part of it, on each
            replica; 0 without any.
        unlabeled_ratio: Weight of the pseudo-labeled part; 0 without one.
        online_teacher: `OnlineTeacher` that makes the targets of the
            pseudo-labeled part, if they are not stored.
        accumulation_steps: In how many parts, one after the other, a step
            computes its batch.
        forward: As in `AveragedModel`.
        jit_compile: Whether to compile the step with XLA.

    Returns:
        A compiled `AveragedModel`, its optimizer built.
    """
    model = AveragedModel(
        network,
        ema_decay,
        online_teacher,
        accumulation_steps=accumulation_steps,
        num_labeled=num_labeled,
        forward=forward,
    )
    model.compile(
        optimizer=RMSprop(
            learning_rate,
            l2=weight_decay,
            l2_excluded=[
                weight.path
                for weight in network.trainable_weights
                if "bn/" in weight.path
            ],
        ),
        loss=losses.mixed_cross_entropy(num_labeled, unlabeled_ratio),
        metrics=losses.mixed_metrics(num_labeled, bool(unlabeled_ratio)),
        jit_compile=jit_compile,
    )
    # Otherwise the first step makes these variables while it is traced, and
    # is then traced again: twice the wait, for EfficientNet half a minute.
    model.optimizer.build(model.trainable_variables)
    return model


def fit(
    model, make_batches, *, steps, checkpoints, checkpoint_minutes, metrics_path
):
    """Train up to a number of steps, going on where a stopped run was.

    Args:
        model: Of `make_trainable`.
        make_batches: Function from the number of steps already done to the
            endless dataset of the batches that follow.
        steps: Steps in all.
        checkpoints: A `Checkpoints`; if it holds one, training goes on there.
        checkpoint_minutes: Time between checkpoints.
        metrics_path: JSON-lines file of the training curves.

    Returns:
        Number of steps that were already done.
    """
    first_step = checkpoints.restore(model)
    if first_step:
        print(f"  continuing at step {first_step}")
    if first_step == steps:
        return first_step
    callbacks = [
        StopAtNonFinite(checkpoints, first_step),
        Progress(first_step, steps, metrics_path),
        CheckpointCallback(checkpoints, first_step, checkpoint_minutes),
    ]
    # A signal in the middle of a step would leave half of an update.
    with stopping.postponed():
        model.fit(
            make_batches(first_step),
            steps_per_epoch=steps - first_step,
            shuffle=False,
            verbose=0,
            callbacks=callbacks,
        )
    return first_step


class Progress(keras.callbacks.Callback):
    """A line for a person and a JSON line for a plot, ten times a run.

    The figures of a line are means since the line before.

    Args:
        first_step: Steps that were done before this `fit`.
        steps: Steps in all.
        path: The JSON-lines file.
        lines: How often to report in a whole run.
    """

    def __init__(self, first_step, steps, path, lines=10):
        super().__init__()
        self.first_step = first_step
        self.step = first_step
        self.steps = steps
        self.path = path
        self.interval = max(1, steps // lines)

    def on_train_begin(self, logs=None):
        self.started = time.monotonic()
        write_text(self.path, "".join(self._lines_so_far()))
        print("  preparing the first step ...", flush=True)

    def _lines_so_far(self):
        """Lines of the steps before this `fit`.

        A run that was killed may have reported steps that it now repeats, and
        may have died in the middle of a line.
        """
        if not self.path.exists():
            return
        for line in self.path.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= self.first_step:
                    yield line + "\n"
            except ValueError:
                continue

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        if self.step % self.interval and self.step != self.steps:
            return
        values = {name: float(value) for name, value in logs.items()}
        self.model.reset_metrics()
        seconds = time.monotonic() - self.started
        done = self.step - self.first_step
        left = seconds / done * (self.steps - self.step)
        shown = "  ".join(f"{name} {v:.3f}" for name, v in values.items())
        print(
            f"  step {self.step:>6} of {self.steps}  {shown}  "
            f"{_minutes(left)} left",
            flush=True,
        )
        values["lr"] = float(
            keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)
        )
        line = json.dumps({"step": self.step, **values}) + "\n"
        append_text(self.path, line)


def _minutes(seconds):
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
