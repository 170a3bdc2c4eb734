# SPDX-License-Identifier: Apache-2.0
"""A network that computes its blocks again trains like one that does not."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_switches import run_main

from noisy_student import command_line
from noisy_student.models import efficientnet
from noisy_student.models import rematerialization
from noisy_student.models import stochastic_depth
from noisy_student.training import trainer

CLASSES = 3
LABELED, UNLABELED = 4, 8


# Blocks without and with expansion. Two of them, the second with a skip
# connection, for most of the time goes into tracing.
PLAIN, EXPANDED = efficientnet.STAGES[:1], efficientnet.STAGES[1:2]


@pytest.fixture(autouse=True)
def two_blocks(monkeypatch):
    monkeypatch.setattr(efficientnet, "STAGES", PLAIN)


def build(dtype="float32"):
    keras.utils.set_random_seed(0)
    return efficientnet.build_model(
        "b0",
        CLASSES,
        image_size=16,
        width=0.25,
        depth=2 / efficientnet.STAGES[0].repeats,
        dropout_rate=0.3,
        stochastic_depth_rate=0.8,
        batch_norm_momentum=0.9,
        dtype=dtype,
    )


def trained(rematerialize):
    """The state after two steps in bfloat16, by name, and the logs."""
    network = build("bfloat16")
    forward = None
    if rematerialize:
        forward = rematerialization.rematerialized(network)
    labeled = LABELED // 2 // 2  # on each replica, in each of two parts
    model = trainer.make_trainable(
        network,
        learning_rate=0.05,
        num_labeled=labeled,
        unlabeled_ratio=2.0,
        accumulation_steps=2,
        forward=forward,
    )
    rng = np.random.default_rng(0)
    rows = LABELED + UNLABELED
    pixels = rng.integers(0, 256, (rows, 16, 16, 3), np.uint8)
    targets = rng.dirichlet(np.ones(CLASSES), rows).astype(np.float32)
    history = model.fit(
        tf.data.Dataset.from_tensors((pixels, targets)).repeat(),
        steps_per_epoch=2,
        shuffle=False,
        verbose=0,
    )
    state = {
        f"{index} {variable.path}": variable.numpy()
        for index, variable in enumerate(
            [*model.variables, *model.optimizer.variables]
        )
    }
    return state, history.history


def test_computes_the_same_bits(monkeypatch):
    monkeypatch.setattr(efficientnet, "STAGES", EXPANDED)
    network = build()
    # Noise on some images alone: they must be the same ones again.
    stochastic_depth.direct_noise(
        network, stochastic_depth.StochasticDepth, slice(0, 5)
    )
    pixels = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)
    before = [variable.numpy() for variable in network.variables]

    def step(forward):
        """Logits, gradients, and the state that the step left."""
        for variable, value in zip(network.variables, before, strict=True):
            variable.assign(value)

        @tf.function
        def gradients(pixels):
            with tf.GradientTape() as tape:
                logits = forward(pixels)
                loss = tf.reduce_sum(logits**2)
            weights = [weight.value for weight in network.trainable_weights]
            return [logits, *tape.gradient(loss, weights)]

        return gradients(pixels), [v.numpy() for v in network.variables]

    expected, state = step(lambda pixels: network(pixels, training=True))
    found, found_state = step(rematerialization.rematerialized(network))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    # Moved once: statistics and the state of the noise.
    for variable, old, one, other in zip(
        network.variables, before, found_state, state, strict=True
    ):
        np.testing.assert_array_equal(one, other, err_msg=variable.path)
        assert variable.trainable or (one != old).any(), variable.path


@pytest.mark.slow
def test_together_with_bfloat16_parts_and_two_replicas(two_replicas):
    with two_replicas.scope():
        expected, logs = trained(False)
        found, found_logs = trained(True)
    assert found_logs == logs
    # Weights, averages, moving statistics, seeds, and the optimizer's.
    assert found.keys() == expected.keys()
    assert any("seed_generator" in name for name in expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_the_network_that_is_saved_is_the_ordinary_one(tmp_path):
    network, ordinary = build(), build()
    rematerialization.rematerialized(network)
    assert network.to_json() == ordinary.to_json()
    assert [w.path for w in network.weights] == [
        w.path for w in ordinary.weights
    ]
    network.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    pixels = np.full((2, 16, 16, 3), 100, np.uint8)
    np.testing.assert_array_equal(
        loaded(pixels, training=False), ordinary(pixels, training=False)
    )
    # It can be asked for again, as by a second training of the network.
    rematerialization.rematerialized(network)(pixels)


@pytest.mark.slow
def test_xla_does_not_undo_it():
    # XLA could find the second computation to be the first one again. Each
    # swish and each gate has one sigmoid, which gradients take as it is.
    network = build()
    pixels = np.zeros((2, 16, 16, 3), np.uint8)
    weights = [weight.value for weight in network.trainable_weights]

    def sigmoids(forward):
        @tf.function(jit_compile=True)
        def gradients(pixels):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(forward(pixels) ** 2)
            return tape.gradient(loss, weights)

        program = gradients.experimental_get_compiler_ir(pixels)
        return len(
            re.findall(r" (?:logistic|exponential)\(", program("optimized_hlo"))
        )

    plain = sigmoids(lambda pixels: network(pixels, training=True))
    again = sigmoids(rematerialization.rematerialized(network))
    # The stem's, and 2 x 3 of the blocks'.
    assert again - plain == 7, (plain, again)


@pytest.mark.slow
def test_a_run_with_all_flags_for_large_models(tmp_path):
    flags = (
        "--students=",
        "--train_steps=2",
        "--dtype=bfloat16",
        "--rematerialize",
        "--accumulation_steps=2",
        f"--workdir={tmp_path}",
    )
    assert run_main("--mode=teach", *flags) == 0
    path = tmp_path / "iteration_0" / "model.keras"
    saved = keras.saving.load_model(path, compile=False)
    assert saved.get_layer("top_conv").compute_dtype == "bfloat16"
    # The run may go on without: no result depends on it.
    command = ["main.py", f"--workdir={tmp_path}", "--norematerialize"]
    config = command_line.parse(command)
    assert (config.dtype, config.accumulation_steps) == ("bfloat16", 2)
    assert not config.rematerialize
