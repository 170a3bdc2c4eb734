# SPDX-License-Identifier: Apache-2.0
"""The curves of a training, and who looks on.

Figures live on the device. They are read fifty times a run, for a line of
`metrics.jsonl`, and in between when a watcher shows them: to read one is to
wait for the device, which then waits for the next step.
"""

import contextlib
import json

import keras

from noisy_student import stopping
from noisy_student.files import append_text
from noisy_student.files import write_text

LINES = 50  # of a whole run


class Watcher:
    """Who looks on while a model is trained; this one looks away."""

    def begin(self, first_step, rows, batches):
        """Training begins, or goes on.

        Args:
            first_step: Steps that are done.
            rows: Lines of `metrics.jsonl` up to there, as dicts.
            batches: Dataset of the batches that follow.
        """

    def row(self, row):
        """There is another line of `metrics.jsonl`, a dict."""

    def step(self, step, figures):
        """A step is done.

        Args:
            step: How many are.
            figures: Function that reads the means since the last line: a dict
                of floats. It costs something, on a GPU more than a step of it.
        """

    def close(self):
        """Training ends or stops; called more than once."""


def begin_curves(path, first_step):
    """Cut `metrics.jsonl` back to the steps that are done.

    A run that was killed may have reported steps that it now repeats, and may
    have died in the middle of a line.

    Args:
        path: Of the file, which need not be there.
        first_step: How many steps are done.

    Returns:
        List of its lines as dicts.
    """
    rows = []
    if path.exists():
        for line in path.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                row = json.loads(line)
                if row["step"] <= first_step:
                    rows.append(row)
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return rows


class DeviceLogs(keras.callbacks.CallbackList):
    """Leaves the figures of a step where they are.

    Keras makes floats of all of them after each step, and so waits for it.
    """

    def on_train_batch_end(self, batch, logs=None):
        for callback in self.callbacks:
            callback.on_train_batch_end(batch, logs)


class Curves(keras.callbacks.Callback):
    """A JSON line for a plot, fifty times a run: means since the line before.

    Args:
        first_step: Steps that were done before this `fit`.
        steps: Steps in all.
        path: The JSON-lines file, as `begin_curves` left it.
        watcher: A `Watcher`.
        check: Function that is called before figures are read and raises if
            they are not to be shown.
    """

    def __init__(self, first_step, steps, path, watcher, check=lambda: None):
        super().__init__()
        self.step = first_step
        self.steps = steps
        self.path = path
        self.watcher = watcher
        self.check = check
        self.interval = max(1, steps // LINES)

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        if self.step % self.interval == 0 or self.step == self.steps:
            logs = self._read(logs)
            self.model.reset_metrics()
            self._add_line(logs)
        if stopping.requested() is None:
            self.watcher.step(self.step, lambda: self._read(logs))
        else:  # others have something to say now
            self.watcher.close()

    def _add_line(self, logs):
        lr = keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)
        row = {"step": self.step, **logs, "lr": float(lr)}
        append_text(self.path, json.dumps(row) + "\n")
        self.watcher.row(row)

    def _read(self, logs):
        """The figures of a step as floats, of its device or read already."""
        self.check()
        return {name: float(value) for name, value in sorted(logs.items())}
