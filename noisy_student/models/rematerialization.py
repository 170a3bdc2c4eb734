# SPDX-License-Identifier: Apache-2.0
"""A network's way forward in training that keeps little for the gradients.

Of each MBConv block only its input stays in memory; what happens inside is
computed once more when the gradients arrive. That costs about a third more
time. What it does not do: change the network, which is saved, loaded and asked
as ever.

`keras.RematScope` does not do it: it recomputes layer by layer, and what a
layer of an EfficientNet keeps for its gradient is its own input.
"""

import itertools

import keras

from noisy_student.models.efficientnet import blocks_of


def rematerialized(network):
    """A network's computation in training, block by block.

    Call it under the strategy's scope, where the network was built.

    Args:
        network: Of `efficientnet.build_model`.

    Returns:
        Function from pixels `(N, H, W, 3)` to what `network(pixels,
        training=True)` returns: the same numbers, moving statistics and draws
        of the noise, and the same gradients.

    Reference: arXiv:1604.06174; the official code keeps all activations.
    """
    # Pixels are small, and the end is needed at once: neither is recomputed.
    cuts = [
        network.get_layer("normalization").output,
        network.get_layer("stem_activation").output,
        *(layers[-1].output for layers in blocks_of(network)),
    ]
    beginning = keras.Model(network.input, cuts[0])
    parts = [keras.Model(*ends) for ends in itertools.pairwise(cuts)]
    end = keras.Model(cuts[-1], network.output)

    def forward(pixels):
        x = beginning(pixels, training=True)
        for part in parts:
            x = _recomputed(part, x)
        return end(x, training=True)

    return forward


def _recomputed(part, inputs):
    """Run a part of a network now, and again when its gradients are due."""
    weights = {id(weight) for weight in part.weights}
    # What the noise is drawn with; `* 1` takes its value before the draw.
    before = [
        (variable, variable.value * 1)
        for variable in part.variables
        if id(variable) not in weights
    ]
    runs = []

    def run(inputs):
        runs.append(None)
        if len(runs) == 1:
            return part(inputs, training=True)
        # The same noise again; what this assigns to moving statistics and to
        # the state of the noise is forgotten with the scope.
        with keras.StatelessScope(state_mapping=before):
            return part(inputs, training=True)

    return keras.remat(run)(inputs)
