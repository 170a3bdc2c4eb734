# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that a stopped run continues from with the same bits.

One `.npz` file holds everything that training changes: weights, averages,
BatchNormalization's statistics, the optimizer's slots and step, and the state
of the noise. The data needs no state: it is a function of the step.
"""

import hashlib
import pathlib
import re
import time

import keras
import numpy as np

from noisy_student import stopping
from noisy_student.errors import UserError
from noisy_student.files import is_damage
from noisy_student.files import write_atomically

DIGEST = "sha256"  # of all the arrays of a file, in it under this name
CHECK_SECONDS = 10  # between two looks at the loss


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

        Raises:
            UserError: If a value is not finite; nothing is written then.
        """
        arrays = {
            name: variable.numpy() for name, variable in _state(model).items()
        }
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise UserError(self.diverged(f"{name} is not finite", step))
        arrays[DIGEST] = np.array(_digest(arrays))
        write_atomically(
            self._path(step), lambda file: np.savez(file, **arrays)
        )
        self._keep_two(step)

    def restore(self, model):
        """Load the newest checkpoint that is whole.

        Args:
            model: As in `save`.

        Returns:
            The number of steps done; 0 if there is no checkpoint.

        Raises:
            UserError: If none of the checkpoints is whole, or they belong to
                another model.
        """
        steps = self._steps()
        for step in reversed(steps):
            path = self._path(step)
            try:
                arrays = _read(path)
            except DamagedError as error:
                print(f"  warning: {path} is damaged and left out: {error}")
                continue
            state = _state(model)
            shapes = {name: array.shape for name, array in arrays.items()}
            if shapes != {name: tuple(v.shape) for name, v in state.items()}:
                raise UserError(
                    f"{path} belongs to another model: use another --workdir, "
                    "or the settings that it was trained with"
                )
            for name, variable in state.items():
                variable.assign(arrays[name])
            # A run that was killed after its last save has one too many.
            self._keep_two(step)
            return step
        if steps:
            raise UserError(
                f"no checkpoint in {self.directory} is whole: delete that "
                "folder to train from the beginning"
            )
        return 0

    def diverged(self, what, step):
        """The sentence for a training that cannot go on.

        Args:
            what: What is wrong.
            step: At which step.
        """
        steps = self._steps()
        kept = (
            f"the checkpoint of step {steps[-1]} is kept in {self.directory}"
            if steps
            else "no checkpoint had been written"
        )
        return (
            f"{what} at step {step}: {kept}; in another --workdir, try a lower "
            "--base_lr, more --warmup_epochs or --dtype=float32"
        )

    def _keep_two(self, newest):
        """Drop what is older than a whole checkpoint and the one before it."""
        steps = [step for step in self._steps() if step <= newest]
        for old in steps[:-2]:
            self._path(old).unlink()

    def _path(self, step):
        return self.directory / f"checkpoint-{step:09d}.npz"

    def _steps(self):
        """Steps of all checkpoints, the oldest first."""
        names = [path.name for path in self.directory.glob("checkpoint-*.npz")]
        found = (re.fullmatch(r"checkpoint-(\d+)\.npz", n) for n in names)
        return sorted(int(match.group(1)) for match in found if match)


class CheckpointCallback(keras.callbacks.Callback):
    """Save while `fit` runs, at its end, and before a signal ends it.

    Args:
        checkpoints: A `Checkpoints`.
        first_step: Steps that were done before this `fit`.
        minutes: Time between two checkpoints.
        check: Function that is called before each of them and raises if
            nothing may be saved.
    """

    def __init__(self, checkpoints, first_step, minutes, check=lambda: None):
        super().__init__()
        self.checkpoints = checkpoints
        self.step = first_step
        self.saved_step = first_step
        self.seconds = 60 * minutes
        self.check = check

    def on_train_begin(self, logs=None):
        self.saved_at = time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        waited = time.monotonic() - self.saved_at
        if stopping.requested() is not None or waited >= self.seconds:
            self._save()
        # Also if the signal came while the checkpoint was written.
        self._answer()

    def on_train_end(self, logs=None):
        # Once a step: a run that is killed in a second time would find the
        # step done, and leave what it had begun to write.
        if self.saved_step != self.step:
            self._save()
        self._answer()

    def _save(self):
        self.check()
        self.checkpoints.save(self.model, self.step)
        self.saved_step = self.step
        self.saved_at = time.monotonic()

    def _answer(self):
        if stopping.requested() is not None and self.saved_step == self.step:
            print(f"  step {self.step} is saved", flush=True)
            stopping.check()


class StopAtNonFinite(keras.callbacks.Callback):
    """Stop when the loss is not finite, and name the step.

    To read a loss is to wait for the device. So it is read every ten seconds,
    and by `check` before anything is made of it: a line of the curves, a
    checkpoint.

    Args:
        checkpoints: A `Checkpoints`.
        first_step: Steps that were done before this `fit`.
    """

    def __init__(self, checkpoints, first_step):
        super().__init__()
        self.checkpoints = checkpoints
        self.step = first_step
        self.losses = []  # of the steps since the last check, on the device
        self.checked_at = time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        self.losses.append(logs["loss"])
        if time.monotonic() - self.checked_at >= CHECK_SECONDS:
            self.check()

    def check(self):
        """Raise `UserError` if the loss of a step was not finite."""
        losses, self.losses = self.losses, []
        self.checked_at = time.monotonic()
        # Means since the last line: once one is not finite, all are.
        if not losses or np.isfinite(float(losses[-1])):
            return
        values = [float(loss) for loss in losses]
        first = int(np.isfinite(values).argmin())
        step = self.step - len(values) + 1 + first
        raise UserError(
            self.checkpoints.diverged(f"the loss is {values[first]}", step)
        )


class DamagedError(Exception):
    """A file is not what was written."""


def _read(path):
    """The arrays of a checkpoint.

    Raises:
        DamagedError: If any bit of them is not as it was written.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        expected = str(arrays.pop(DIGEST))
    except Exception as error:
        if not is_damage(error):
            raise
        raise DamagedError(f"{type(error).__name__}: {error}") from None
    if _digest(arrays) != expected:
        raise DamagedError("its checksum does not fit")
    return arrays


def _digest(arrays):
    """sha256 of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _state(model):
    """Everything that training changes, by a name that no two share."""
    variables = [*model.variables, *model.optimizer.variables]
    return {
        f"{index:05d} {variable.path}".replace("/", ":"): variable
        for index, variable in enumerate(variables)
    }
