# SPDX-License-Identifier: Apache-2.0
"""The curves of a training, and who looks on.

Figures live on the device. All are read fifty times a run, for a line of
`metrics.jsonl`; in between a watcher may read those of the step before the
last, for which no device has to be waited for.
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


class Curves(keras.callbacks.Callback):
    """A JSON line for a plot, fifty times a run: means since the line before.

    Args:
        first_step: Steps that were done before this `fit`.
        steps: Steps in all.
        path: The JSON-lines file, as `begin_curves` left it.
        watcher: A `Watcher`.
    """

    def __init__(self, first_step, steps, path, watcher):
        super().__init__()
        self.step = first_step
        self.steps = steps
        self.path = path
        self.watcher = watcher
        self.interval = max(1, steps // LINES)
        self.logs = {}  # of the step before, or of the last line

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        if self.step % self.interval and self.step != self.steps:
            before, self.logs = self.logs, logs
        else:
            before = self.logs = _floats(logs)
            self.model.reset_metrics()
            self._add_line()
        if stopping.requested() is None:
            self.watcher.step(self.step, lambda: _floats(before))
        else:  # others have something to say now
            self.watcher.close()

    def _add_line(self):
        lr = keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)
        row = {"step": self.step, **self.logs, "lr": float(lr)}
        append_text(self.path, json.dumps(row) + "\n")
        self.watcher.row(row)


def _floats(logs):
    return {name: float(value) for name, value in logs.items()}
