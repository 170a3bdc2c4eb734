# SPDX-License-Identifier: Apache-2.0
"""The exponential moving average of the weights, which does the predicting.

Keras's own `use_ema` averages the trainable weights alone and starts at full
decay. The official code also averages BatchNormalization's moving statistics,
and warms up: without that, an average with decay 0.9999 still remembers the
random initialization after ten thousand steps.
"""

import keras
from keras import ops

from noisy_student.training import accumulation


def ema_decay_at(num_updates, decay):
    """Decay of the average at an update.

    Args:
        num_updates: n, the number of this update: 1 after the first training
            step, as the official code counts.
        decay: d, the limit.

    Returns:
        float32 `min(d, (1 + n) / (10 + n))`.

    Reference: `tf.train.ExponentialMovingAverage(num_updates=global_step)` in
    noisystudent/main.py.
    """
    n = ops.cast(num_updates, "float32")
    return ops.minimum(decay, (1 + n) / (10 + n))


class AveragedModel(keras.Model):
    """A network in training, beside the moving average of all its weights.

    `fit` trains the network; after each optimizer step the average moves.
    The average is part of this model's variables, so that a checkpoint of the
    model holds it.

    Args:
        network: The `keras.Model` to train, built.
        ema_decay: Limit of the decay, in `[0, 1)`; 0 makes the average follow
            the weights.
        online_teacher: `OnlineTeacher` that fills in the targets of each
            batch, if they are not stored.
        accumulation_steps: N, the parts in which a step computes its batch.
        num_labeled: Labeled rows of a part on each replica, if there are
            several parts.
        forward: Function from pixels to logits that stands for the network in
            training: the same numbers from the same weights in less memory.
        **kwargs: Of `keras.Model`.
    """

    def __init__(
        self,
        network,
        ema_decay=0.9999,
        online_teacher=None,
        accumulation_steps=1,
        num_labeled=0,
        forward=None,
        **kwargs,
    ):
        # A name of its own, so that checkpoints do not depend on how many
        # models the process has built before.
        super().__init__(**{"name": "averaged_model", **kwargs})
        self.network = network
        self.ema_decay = ema_decay
        # A plain object, so that its weights are none of this model's. Of a
        # noised one a checkpoint needs the state of the noise.
        self.online_teacher = online_teacher
        self.teacher_noise = online_teacher.noise if online_teacher else []
        self.accumulation_steps = accumulation_steps
        self.num_labeled = num_labeled
        self.forward = forward
        # All replicas hold the same trained weights, so taking the first one's
        # average spares an all-reduce per variable and step. Of
        # BatchNormalization's statistics, which Keras keeps per replica, it
        # takes the first replica's.
        self.averages = [
            self.add_weight(
                shape=weight.shape,
                dtype=weight.dtype,
                initializer="zeros",
                trainable=False,
                aggregation="only_first_replica",
                name="average",
            )
            for weight in network.weights
        ]
        self.num_updates = self.add_weight(
            shape=(),
            dtype="int32",
            initializer="zeros",
            trainable=False,
            aggregation="only_first_replica",
            name="num_updates",
        )
        # The average starts at the weights (official: initialized_value()).
        for average, weight in zip(self.averages, network.weights, strict=True):
            average.assign(weight)
        self.built = True

    def call(self, inputs, training=None):
        # Beside the pixels there may be those of an on-line teacher.
        pixels = inputs["pixels"] if isinstance(inputs, dict) else inputs
        if training and self.forward:
            return self.forward(pixels)
        return self.network(pixels, training=training)

    def train_step(self, data):
        complete = self.online_teacher and self.online_teacher.complete
        if self.accumulation_steps > 1:
            logs = accumulation.train_step(
                self,
                data,
                steps=self.accumulation_steps,
                num_labeled=self.num_labeled,
                complete=complete,
            )
        else:
            logs = super().train_step(complete(data) if complete else data)
        self._update_averages()
        return logs

    def _update_averages(self):
        self.num_updates.assign_add(1)
        rate = 1.0 - ema_decay_at(self.num_updates, self.ema_decay)
        for average, weight in zip(
            self.averages, self.network.weights, strict=True
        ):
            difference = ops.cast(weight, average.dtype) - average
            average.assign(average + ops.cast(rate, average.dtype) * difference)

    def load_averages_into(self, network):
        """Copy the averages into a network of the same architecture.

        Args:
            network: A `keras.Model` whose `weights` match, or the trained
                network itself when training is over.
        """
        for average, weight in zip(self.averages, network.weights, strict=True):
            weight.assign(average)
