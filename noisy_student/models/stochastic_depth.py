# SPDX-License-Identifier: Apache-2.0
"""The student's noise inside the model: dropout and stochastic depth.

Keras's own `Dropout` keeps its random state in a mirrored variable, so under
`tf.distribute` every replica draws the same mask; the paper's noise is meant
to be independent for every image. The layers here fold the replica's number
into the seed, and are Keras's `Dropout` in everything else.
"""

import keras
from keras import ops


def stochastic_depth_rates(num_blocks, final_rate):
    """Drop rate of each residual block, growing linearly with depth.

    Args:
        num_blocks: L, the number of blocks *after* depth scaling (16 for b0,
            88 for l2).
        final_rate: the drop rate that a block at depth L would have, in
            `[0, 1)`; the paper's 0.2 is a survival probability of 0.8.

    Returns:
        Tuple of L floats; block `i` gets `final_rate * i / L`, so the first
        block is never dropped.

    Reference: arXiv:1603.09382, section 3; arXiv:1911.04252, section 3.1;
    noisystudent/efficientnet_model.py, `Model.call`.
    """
    return tuple(final_rate * i / num_blocks for i in range(num_blocks))


class ReplicaSeedGenerator(keras.random.SeedGenerator):
    """`keras.random.SeedGenerator` whose draws differ between replicas."""

    def next(self, ordered=True):
        # (2,): a number fixed at creation and a count of the draws. Adding the
        # replica to the first keeps the pairs of a layer distinct.
        seed = super().next(ordered)
        replica = ops.cast(_replica_number(), seed.dtype)
        return ops.stack([seed[0] + replica, seed[1]])


# Leaves every image of a batch alone.
NO_ROWS = slice(0, 0)


def direct_noise(network, kind, rows, *, at_inference=False):
    """Say which images of a batch a network's noise disturbs.

    Call it before the network is traced. The batch's size must be known then,
    unless all rows or none are meant.

    Args:
        network: A `keras.Model` of `efficientnet.build_model`.
        kind: `Dropout` or `StochasticDepth`, the class itself.
        rows: Slice of the (per-replica) batch; `NO_ROWS` for none.
        at_inference: Whether to disturb them at inference too, for the
            paper's study of a noised teacher.
    """
    for layer in network.layers:
        if type(layer) is kind:
            layer.rows, layer.at_inference = rows, at_inference


def reseed_noise(network, seed):
    """Begin the network's random draws anew, as a function of a seed.

    Args:
        network: A `keras.Model` of `efficientnet.build_model`.
        seed: Integer of up to 31 bits.
    """
    layers = [layer for layer in network.layers if isinstance(layer, Dropout)]
    for number, layer in enumerate(layers):
        # (a number of the layer's own, count of its draws); far from that of
        # the next layer, for `ReplicaSeedGenerator` adds the replica's number.
        state = [(seed + (number << 16)) % 2**31, 0]
        layer.seed_generator.state.assign(
            ops.cast(state, layer.seed_generator.state.dtype)
        )


def _replica_number():
    """Which replica of `tf.distribute` runs this; 0 without a strategy."""
    if keras.backend.backend() != "tensorflow":
        # JAX runs one global program: its mask already covers all devices.
        return 0
    import tensorflow as tf

    replica_context = tf.distribute.get_replica_context()
    # None while Keras builds the model in cross-replica context.
    if replica_context is None:
        return 0
    return replica_context.replica_id_in_sync_group


@keras.saving.register_keras_serializable(package="noisy_student")
class Dropout(keras.layers.Layer):
    """Zero a fraction of the values, scale up the others.

    Args:
        rate: Float in `[0, 1)`, the fraction of values to drop.
        seed: Optional integer seed.
        **kwargs: Of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor `(N, ...)`.
        training: Whether to drop; otherwise the identity.
    """

    def __init__(self, rate, seed=None, **kwargs):
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"rate must be in [0, 1), got {rate}")
        self.rate = rate
        self.seed = seed
        self.seed_generator = ReplicaSeedGenerator(
            seed, name=f"{self.name}_seed"
        )

    # One draw for each value.
    noise_shape = None
    # Which images of a batch it disturbs, and whether at inference too: how a
    # network is used, so no part of its configuration. `direct_noise` sets it.
    rows = slice(None)
    at_inference = False

    def call(self, inputs, training=False):
        active = training or self.at_inference
        if not active or self.rate == 0 or self.rows == NO_ROWS:
            return inputs
        noised = keras.random.dropout(
            inputs[self.rows],
            self.rate,
            noise_shape=self.noise_shape,
            seed=self.seed_generator,
        )
        if self.rows == slice(None):
            return noised
        start, stop, _ = self.rows.indices(inputs.shape[0])
        return ops.concatenate([inputs[:start], noised, inputs[stop:]])

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}


@keras.saving.register_keras_serializable(package="noisy_student")
class StochasticDepth(Dropout):
    """Drop the residual branch of whole images, scale up the survivors.

    In training each image's branch is zeroed with probability `rate` and
    divided by `1 - rate` otherwise, so that its mean is kept; at inference
    this is the identity. Other code calls it drop path or drop connect.

    Args:
        rate: Float in `[0, 1)`, the drop rate of this block.
        seed: Optional integer seed.
        **kwargs: Of `keras.layers.Layer`.

    Call arguments:
        inputs: Tensor `(N, H, W, C)`, the branch before it is added.
        training: Whether to drop.

    Reference: arXiv:1603.09382; noisystudent/utils.py, `drop_connect`.
    """

    # One draw for each image.
    noise_shape = (None, 1, 1, 1)
