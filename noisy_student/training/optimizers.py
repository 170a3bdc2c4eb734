# SPDX-License-Identifier: Apache-2.0
"""TensorFlow 1's RMSProp, which the official code trains with.

It is not `keras.optimizers.RMSprop`: epsilon stands inside the root, the
mean of squares starts at one, and the rate is part of the momentum buffer.
With epsilon 1e-3 and short runs, each of the three changes the result.
"""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="noisy_student")
class RMSprop(keras.optimizers.Optimizer):
    """RMSProp as `tf.compat.v1.train.RMSPropOptimizer` computes it.

    ```python
    g = gradient + l2 * w                     # unless w is excluded
    mean_square = rho * mean_square + (1 - rho) * g**2     # starts at 1
    momentum_buffer = (
        momentum * momentum_buffer + lr * g / sqrt(mean_square + epsilon)
    )
    w = w - momentum_buffer
    ```

    The L2 term is the gradient of the official loss's `l2 * sum(w**2 / 2)`:
    added here it costs no second pass over the weights, and no replica adds
    it twice.

    Args:
        learning_rate: Float or schedule.
        rho: Decay of the mean of squares.
        momentum: Of the update.
        epsilon: Added to the mean of squares, inside the root.
        l2: Strength of the L2 term ("weight decay" in the paper, 1e-5).
        l2_excluded: Paths of the variables without L2 term; the official code
            leaves out everything that belongs to a BatchNormalization.
        name: Of the optimizer.
        **kwargs: Of `keras.optimizers.Optimizer`.

    Reference: noisystudent/utils.py, `build_optimizer` (decay 0.9, momentum
    0.9, epsilon 1e-3); main.py, `l2_loss`.
    """

    def __init__(
        self,
        learning_rate=0.016,
        rho=0.9,
        momentum=0.9,
        epsilon=1e-3,
        l2=0.0,
        l2_excluded=(),
        name="rmsprop",
        **kwargs,
    ):
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.rho = rho
        self.momentum = momentum
        self.epsilon = epsilon
        self.l2 = l2
        self.l2_excluded = tuple(l2_excluded)

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self._mean_squares = self.add_optimizer_variables(
            variables, "mean_square", initializer="ones"
        )
        self._momentum_buffers = self.add_optimizer_variables(
            variables, "momentum_buffer"
        )
        excluded = set(self.l2_excluded)
        self._l2_factors = [
            0.0 if variable.path in excluded else self.l2
            for variable in variables
        ]

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        mean_square = self._mean_squares[index]
        momentum_buffer = self._momentum_buffers[index]
        lr = ops.cast(learning_rate, variable.dtype)
        gradient = ops.cast(gradient, variable.dtype)
        if self._l2_factors[index]:
            gradient = gradient + self._l2_factors[index] * variable

        # m + (1 - rho) * (g^2 - m), the order of TensorFlow's kernel.
        new_mean_square = mean_square + (1 - self.rho) * (
            ops.square(gradient) - mean_square
        )
        new_momentum_buffer = self.momentum * momentum_buffer + (
            lr * gradient * ops.rsqrt(new_mean_square + self.epsilon)
        )
        self.assign(mean_square, new_mean_square)
        self.assign(momentum_buffer, new_momentum_buffer)
        self.assign_sub(variable, new_momentum_buffer)

    def get_config(self):
        return {
            **super().get_config(),
            "rho": self.rho,
            "momentum": self.momentum,
            "epsilon": self.epsilon,
            "l2": self.l2,
            "l2_excluded": list(self.l2_excluded),
        }
