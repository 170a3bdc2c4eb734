# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that a stopped run continues from with the same bits.

One `.npz` file holds everything that training changes: weights, averages,
BatchNormalization's statistics, the optimizer's slots and step, and the state
of the noise. The data needs no state: it is a function of the step.
"""

import pathlib
import re
import time
import zipfile

import keras
import numpy as np
from absl import logging

from noisy_student.files import write_atomically


class Checkpoints:
    """The checkpoints of one training, of which the newest two are kept.

    Args:
        directory: Where the files `checkpoint-<step>.npz` stand.
    """

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)

    def save(self, model, step):
        """Write a checkpoint, then drop all but the newest two.

        Args:
            model: A compiled `keras.Model` with a built optimizer.
            step: Number of steps done.
        """
        path = self.directory / f"checkpoint-{step:09d}.npz"
        arrays = {
            name: variable.numpy() for name, variable in _state(model).items()
        }
        write_atomically(path, lambda file: np.savez(file, **arrays))
        for old in self._paths()[:-2]:
            old.unlink()

    def restore(self, model):
        """Load the newest checkpoint that is whole.

        Args:
            model: As in `save`.

        Returns:
            The number of steps done; 0 if there is no checkpoint.
        """
        for path in reversed(self._paths()):
            try:
                # The zip format checks a sum over each array as it is read.
                with np.load(path, allow_pickle=False) as file:
                    arrays = {name: file[name] for name in file.files}
            except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
                logging.warning("Skipping damaged %s: %s", path, error)
                continue
            state = _state(model)
            shapes = {name: array.shape for name, array in arrays.items()}
            if shapes != {name: tuple(v.shape) for name, v in state.items()}:
                raise ValueError(f"{path} belongs to another model")
            for name, variable in state.items():
                variable.assign(arrays[name])
            return int(re.search(r"(\d+)\.npz$", path.name).group(1))
        return 0

    def _paths(self):
        return sorted(self.directory.glob("checkpoint-*.npz"))


class CheckpointCallback(keras.callbacks.Callback):
    """Save while `fit` runs, and at its end.

    Args:
        checkpoints: A `Checkpoints`.
        first_step: Steps that were done before this `fit`.
        minutes: Time between two checkpoints.
    """

    def __init__(self, checkpoints, first_step, minutes):
        super().__init__()
        self.checkpoints = checkpoints
        self.step = first_step
        self.seconds = 60 * minutes

    def on_train_begin(self, logs=None):
        self.saved_at = time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        if time.monotonic() - self.saved_at >= self.seconds:
            self.checkpoints.save(self.model, self.step)
            self.saved_at = time.monotonic()

    def on_train_end(self, logs=None):
        self.checkpoints.save(self.model, self.step)


def _state(model):
    """Everything that training changes, by a name that no two share."""
    variables = [*model.variables, *model.optimizer.variables]
    return {
        f"{index:05d} {variable.path}".replace("/", ":"): variable
        for index, variable in enumerate(variables)
    }
