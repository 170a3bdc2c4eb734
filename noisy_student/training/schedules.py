# SPDX-License-Identifier: Apache-2.0
"""The official learning rate: a staircase decay under a linear warm-up."""

import math

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="noisy_student")
class ExponentialDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Staircase exponential decay, counted from step 0, with a warm-up.

    The rate at `step` is, with real-valued steps per epoch,

    ```python
    step = step + first_step
    decayed = base_lr * decay_factor ** (step // (decay_epochs * per_epoch))
    warmup_steps = int(warmup_epochs * per_epoch)
    lr = base_lr * step / warmup_steps if step < warmup_steps else decayed
    ```

    so the first step trains at rate 0, and the stairs do not wait for the
    warm-up to end, both as in the official code.

    Args:
        base_lr: Peak rate, already scaled with the batch size.
        steps_per_epoch: Labeled images / labeled batch; need not be whole.
        decay_factor: Of each stair.
        decay_epochs: Length of a stair.
        warmup_epochs: Length of the warm-up; 0 for none.
        first_step: Where in the schedule a run begins: finetuning takes the
            last steps of a long run alone (official `start_from_step`).

    Reference: noisystudent/utils.py, `build_learning_rate`; paper, section 3.1.
    """

    def __init__(
        self,
        base_lr,
        steps_per_epoch,
        decay_factor=0.97,
        decay_epochs=2.4,
        warmup_epochs=5,
        first_step=0,
    ):
        self.base_lr = base_lr
        self.steps_per_epoch = steps_per_epoch
        self.decay_factor = decay_factor
        self.decay_epochs = decay_epochs
        self.warmup_epochs = warmup_epochs
        self.first_step = first_step

    def __call__(self, step):
        step = ops.cast(step + self.first_step, "float32")
        stairs = ops.floor(step / (self.decay_epochs * self.steps_per_epoch))
        decayed = self.base_lr * ops.power(float(self.decay_factor), stairs)
        # Cut to whole steps, as the official code does.
        warmup_steps = int(self.warmup_epochs * self.steps_per_epoch)
        if not warmup_steps:
            return decayed
        warmup = self.base_lr * step / warmup_steps
        return ops.where(step < warmup_steps, warmup, decayed)

    def get_config(self):
        return {
            "base_lr": self.base_lr,
            "steps_per_epoch": self.steps_per_epoch,
            "decay_factor": self.decay_factor,
            "decay_epochs": self.decay_epochs,
            "warmup_epochs": self.warmup_epochs,
            "first_step": self.first_step,
        }


def exponential_decay(
    base_lr,
    steps_per_epoch,
    *,
    decay_factor=0.97,
    decay_epochs=2.4,
    warmup_epochs=5,
    final_lr=None,
    total_epochs=None,
    first_step=0,
):
    """The schedule of a run, given by its stairs or by its last rate.

    Args:
        base_lr: Peak rate.
        steps_per_epoch: Labeled images / labeled batch; need not be whole.
        decay_factor: Of each stair, in `(0, 1]`.
        decay_epochs: Length of a stair in epochs.
        warmup_epochs: Length of the warm-up in epochs.
        final_lr: If given, overrides `decay_epochs`: the stairs are as many
            as lead from `base_lr` to this value, each as long as
            `total_epochs` less the warm-up allow (official `final_base_lr`,
            the SVHN recipe).
        total_epochs: Length of the schedule in epochs, for `final_lr`.
        first_step: As in `ExponentialDecay`.

    Returns:
        An `ExponentialDecay`.

    Raises:
        ValueError: If no such stairs lead to `final_lr`.

    Reference: noisystudent/main.py, `decay_epochs`. As the stairs are counted
    from step 0 all the same, the last ones of a run lie below `final_lr`.
    """
    if final_lr is not None:
        if final_lr >= base_lr:
            raise ValueError(
                f"final_lr={final_lr:g} must be below base_lr={base_lr:g}"
            )
        if decay_factor >= 1:
            raise ValueError(
                f"decay_factor={decay_factor} never leads to final_lr"
            )
        # A shorter run, to try something out, is all warm-up.
        if total_epochs > warmup_epochs:
            num_stairs = math.log(final_lr / base_lr) / math.log(decay_factor)
            decay_epochs = (total_epochs - warmup_epochs) / num_stairs
    return ExponentialDecay(
        base_lr,
        steps_per_epoch,
        decay_factor,
        decay_epochs,
        warmup_epochs,
        first_step,
    )
