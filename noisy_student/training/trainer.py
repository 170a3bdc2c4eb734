# SPDX-License-Identifier: Apache-2.0
"""Compile and fit: the same for teacher and student.

What makes a student is in its batches and its noise, not in the training.
"""

from noisy_student import stopping
from noisy_student.training import losses
from noisy_student.training.averaging import AveragedModel
from noisy_student.training.checkpointing import CheckpointCallback
from noisy_student.training.checkpointing import StopAtNonFinite
from noisy_student.training.curves import Curves
from noisy_student.training.curves import DeviceLogs
from noisy_student.training.curves import Watcher
from noisy_student.training.curves import begin_curves
from noisy_student.training.optimizers import RMSprop


def make_trainable(
    network,
    *,
    learning_rate,
    weight_decay=1e-5,
    ema_decay=0.9999,
    num_labeled,
    unlabeled_ratio=0.0,
    unlabeled_weight="ratio",
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
        unlabeled_ratio: Pseudo-labeled images per labeled one; 0 without any.
        unlabeled_weight: As `weight` in `losses.mixed_cross_entropy`.
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
        loss=losses.mixed_cross_entropy(
            num_labeled, unlabeled_ratio, unlabeled_weight
        ),
        metrics=losses.mixed_metrics(num_labeled, bool(unlabeled_ratio)),
        jit_compile=jit_compile,
    )
    # Otherwise the first step makes these variables while it is traced, and
    # is then traced again: twice the wait, for EfficientNet half a minute.
    model.optimizer.build(model.trainable_variables)
    return model


def fit(
    model,
    make_batches,
    *,
    steps,
    checkpoints,
    checkpoint_minutes,
    metrics_path,
    watcher=None,
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
        watcher: A `curves.Watcher`, or None.

    Returns:
        Number of steps that were already done.
    """
    first_step = checkpoints.restore(model)
    if first_step:
        print(f"  continuing at step {first_step}")
    if first_step == steps:
        return first_step
    watcher = watcher or Watcher()
    batches = make_batches(first_step)
    rows = begin_curves(metrics_path, first_step)
    guard = StopAtNonFinite(checkpoints, first_step)
    saver = CheckpointCallback(
        checkpoints, first_step, checkpoint_minutes, guard.check
    )
    curves = Curves(first_step, steps, metrics_path, watcher, guard.check)
    try:
        watcher.begin(first_step, rows, batches)
        # A signal in the middle of a step would leave half of an update.
        with stopping.postponed():
            model.fit(
                batches,
                steps_per_epoch=steps - first_step,
                shuffle=False,
                verbose=0,
                callbacks=DeviceLogs(
                    [guard, curves, saver], model=model, add_history=True
                ),
            )
    finally:
        watcher.close()
    return first_step
