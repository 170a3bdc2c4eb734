# SPDX-License-Identifier: Apache-2.0
"""A network for use alone: layers of Keras, float32, nothing of this package.

Dropout and stochastic depth do nothing at inference, so they are left out;
what remains loads wherever Keras is installed.
"""

import keras

from noisy_student.models.stochastic_depth import Dropout


def stock_network(network, dtype=None):
    """A copy of a network without its noise.

    Args:
        network: A `keras.Model` of `efficientnet.build_model`.
        dtype: Keras's policy for all layers, `float32` for instance; each
            layer's own by default.

    Returns:
        `keras.Model` from pixels in `[0, 255]`, float32 `(N, H, W, 3)`, to
        float32 logits `(N, C)`, with weights of its own.
    """

    def clone(layer):
        if isinstance(layer, Dropout):
            return keras.layers.Identity(name=layer.name)
        config = layer.get_config()
        if dtype:
            config["dtype"] = dtype
        return type(layer).from_config(config)

    def call(layer, *args, **kwargs):
        if isinstance(layer, keras.layers.Identity):
            return args[0]
        return layer(*args, **kwargs)

    copy = keras.models.clone_model(
        network, clone_function=clone, call_function=call
    )
    for layer in copy.layers:
        layer.set_weights(network.get_layer(layer.name).get_weights())
    return copy


def computes_in_float32(network):
    """Whether no layer computes in less precision."""
    return all(layer.compute_dtype == "float32" for layer in network.layers)
