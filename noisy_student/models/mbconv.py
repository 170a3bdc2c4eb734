# SPDX-License-Identifier: Apache-2.0
"""The block that EfficientNets repeat, and the layers it is made of.

Mobile inverted bottlenecks with squeeze-and-excitation. Which of them a
network has, and how wide, is in `efficientnet.py`.
"""

import keras

from noisy_student.models.stochastic_depth import Dropout
from noisy_student.models.stochastic_depth import StochasticDepth

SQUEEZE_RATIO = 0.25


class LayerFactory:
    """The few layers that an EfficientNet repeats, configured once.

    Args:
        batch_norm_momentum: Of the moving statistics.
        dtype: Keras's dtype policy of every layer.
    """

    def __init__(self, batch_norm_momentum, dtype):
        self.batch_norm_momentum = batch_norm_momentum
        self.dtype = dtype

    # N(0, sqrt(2 / fan_out)), not truncated (official code,
    # conv_kernel_initializer). A fresh one for each layer: an initializer
    # that is used twice gives the same numbers twice.
    def _initializer(self):
        return keras.initializers.VarianceScaling(
            2.0, mode="fan_out", distribution="untruncated_normal"
        )

    def conv(self, filters, kernel_size, name, strides=1):
        return keras.layers.Conv2D(
            filters,
            kernel_size,
            strides=strides,
            padding="same",
            use_bias=False,
            kernel_initializer=self._initializer(),
            dtype=self.dtype,
            name=name,
        )

    def se_conv(self, filters, activation, name):
        return keras.layers.Conv2D(
            filters,
            1,
            activation=activation,
            kernel_initializer=self._initializer(),
            dtype=self.dtype,
            name=name,
        )

    def depthwise_conv(self, kernel_size, name, strides):
        return keras.layers.DepthwiseConv2D(
            kernel_size,
            strides=strides,
            padding="same",
            use_bias=False,
            depthwise_initializer=self._initializer(),
            dtype=self.dtype,
            name=name,
        )

    def bn(self, name):
        return keras.layers.BatchNormalization(
            momentum=self.batch_norm_momentum,
            epsilon=1e-3,
            dtype=self.dtype,
            name=name,
        )

    def swish(self, name):
        return keras.layers.Activation("swish", dtype=self.dtype, name=name)

    def average(self, name, keepdims=False):
        return keras.layers.GlobalAveragePooling2D(
            keepdims=keepdims, dtype=self.dtype, name=name
        )

    def multiply(self, name):
        return keras.layers.Multiply(dtype=self.dtype, name=name)

    def add(self, name):
        return keras.layers.Add(dtype=self.dtype, name=name)

    def dropout(self, rate, name):
        return Dropout(rate, dtype=self.dtype, name=name)

    def stochastic_depth(self, rate, name):
        return StochasticDepth(rate, dtype=self.dtype, name=name)


def mbconv(x, make, stage, *, stride, drop_rate, name):
    """Mobile inverted bottleneck with squeeze-and-excitation.

    Args:
        x: `KerasTensor` `(N, H, W, C)`.
        make: A `LayerFactory`.
        stage: An `efficientnet.Stage`.
        stride: Of the depthwise convolution.
        drop_rate: Of its stochastic depth, if it has a skip connection.
        name: What the names of its layers begin with.

    Returns:
        `KerasTensor` `(N, H / stride, W / stride, stage.filters)`.
    """
    inputs = x
    input_filters = x.shape[-1]
    expanded_filters = input_filters * stage.expand_ratio
    if stage.expand_ratio != 1:
        x = make.conv(expanded_filters, 1, name + "expand_conv")(x)
        x = make.bn(name + "expand_bn")(x)
        x = make.swish(name + "expand_activation")(x)

    x = make.depthwise_conv(stage.kernel_size, name + "dwconv", stride)(x)
    x = make.bn(name + "bn")(x)
    x = make.swish(name + "activation")(x)

    # A quarter of the block's *input* channels, whatever the expansion.
    squeezed_filters = max(1, int(input_filters * SQUEEZE_RATIO))
    se = make.average(name + "se_squeeze", keepdims=True)(x)
    se = make.se_conv(squeezed_filters, "swish", name + "se_reduce")(se)
    se = make.se_conv(expanded_filters, "sigmoid", name + "se_expand")(se)
    x = make.multiply(name + "se_excite")([x, se])

    x = make.conv(stage.filters, 1, name + "project_conv")(x)
    x = make.bn(name + "project_bn")(x)
    if stride == 1 and input_filters == stage.filters:
        if drop_rate > 0:
            x = make.stochastic_depth(drop_rate, name + "drop")(x)
        x = make.add(name + "add")([x, inputs])
    return x
