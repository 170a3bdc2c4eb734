# SPDX-License-Identifier: Apache-2.0
"""Our RMSprop walks the official trajectory, alone and on two replicas."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import BUNDLED

from noisy_student.training import losses
from noisy_student.training.optimizers import RMSprop
from noisy_student.training.schedules import exponential_decay

NUM_WEIGHTS = 6


def slots(optimizer, name):
    """The values of one kind of slot, one array for each variable."""
    return [v.numpy() for v in optimizer.variables if name in v.path]


def weight_pair():
    """Two variables with the names of a layer's kernel and a BN's gamma."""
    values = np.linspace(-1, 1, NUM_WEIGHTS).astype("float32")
    return [
        keras.Variable(values, name="kernel"),
        keras.Variable(2 * values, name="gamma"),
    ]


def gradient_pair(step):
    rng = np.random.default_rng(step)
    return list(rng.normal(size=(2, NUM_WEIGHTS)).astype("float32"))


def test_official_trajectory():
    folder = BUNDLED / "optimizer"
    settings = json.loads((folder / "rmsprop_ema.json").read_text())
    with np.load(folder / "rmsprop_ema.npz") as file:
        expected = {name: file[name] for name in file.files}
    official = settings["optimizer"]
    optimizer = RMSprop(
        exponential_decay(**settings["learning_rate"]),
        rho=official["decay"],
        momentum=official["momentum"],
        epsilon=official["epsilon"],
    )
    weights = keras.Variable(expected["weights"][0])
    optimizer.build([weights])

    def check(step):
        found = {
            "weights": weights.numpy(),
            "rms_slot": slots(optimizer, "mean_square")[0],
            "momentum_slot": slots(optimizer, "momentum_buffer")[0],
        }
        for name, values in found.items():
            error = np.abs(values - expected[name][step]).max()
            assert error < 1e-5, f"{name} off by {error} after {step} steps"

    check(0)
    for step, gradient in enumerate(expected["gradients"]):
        # The rate of a step is that of the number of steps before it.
        rate = float(optimizer.learning_rate)
        assert rate == pytest.approx(expected["learning_rate"][step], rel=1e-5)
        optimizer.apply([gradient])
        check(step + 1)


def test_the_bundled_files_are_the_golden_ones(golden):
    folder = golden / "optimizer"
    assert len(list(folder.iterdir())) == 4
    for path in folder.iterdir():
        bundled = (BUNDLED / "optimizer" / path.name).read_bytes()
        assert bundled == path.read_bytes(), path.name


def test_first_step_by_hand():
    weight = keras.Variable([1.0])
    optimizer = RMSprop(0.5, rho=0.9, momentum=0.9, epsilon=0.09)
    optimizer.build([weight])
    optimizer.apply([np.array([1.0], "float32")])
    # The mean of squares stays 1: .5 / sqrt(1 + .09).
    assert float(weight[0]) == pytest.approx(1 - 0.5 / 1.09**0.5, rel=1e-6)


def test_l2_is_its_gradient():
    built_in, by_hand = weight_pair(), weight_pair()
    excluded = built_in[1].path
    with_l2 = RMSprop(0.1, l2=0.3, l2_excluded=[excluded])
    without = RMSprop(0.1)
    for step in range(3):
        kernel_gradient, gamma_gradient = gradient_pair(step)
        with_l2.apply_gradients(
            zip([kernel_gradient, gamma_gradient], built_in, strict=True)
        )
        kernel_gradient = kernel_gradient + 0.3 * by_hand[0].numpy()
        without.apply_gradients(
            zip([kernel_gradient, gamma_gradient], by_hand, strict=True)
        )
    for ours, expected in zip(built_in, by_hand, strict=True):
        np.testing.assert_allclose(ours.numpy(), expected.numpy(), rtol=1e-6)
    plain = weight_pair()
    optimizer = RMSprop(0.1)
    for step in range(3):
        optimizer.apply_gradients(zip(gradient_pair(step), plain, strict=True))
    change = np.abs(built_in[0].numpy() - plain[0].numpy()).max()
    assert change > 1e-3, f"l2 moved the kernel by {change} only"
    np.testing.assert_array_equal(built_in[1].numpy(), plain[1].numpy())


def fit_dense(strategy, num_steps):
    """Train a Dense layer on mixed batches; returns all that changed."""
    num_replicas = strategy.num_replicas_in_sync
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(num_steps, 12, 5)).astype("float32")
    targets = rng.dirichlet(np.ones(3), (num_steps, 12)).astype("float32")
    if num_replicas == 2:
        # Rows 0-3 are labeled: each replica gets two of them, first.
        order = [0, 1, 4, 5, 6, 7, 2, 3, 8, 9, 10, 11]
        inputs, targets = inputs[:, order], targets[:, order]
    with strategy.scope():
        layer = keras.layers.Dense(3, name="predictions")
        network = keras.Sequential([keras.Input((5,)), layer])
        layer.set_weights([np.ones((5, 3)) / 5, np.zeros(3)])
        network.compile(
            RMSprop(0.1, l2=0.05, l2_excluded=[layer.bias.path]),
            losses.mixed_cross_entropy(4 // num_replicas, 2.0),
        )
    batches = tf.data.Dataset.from_tensor_slices((inputs, targets))
    network.fit(batches, epochs=1, shuffle=False, verbose=0)
    return {
        "weights": network.get_weights(),
        "mean_square": slots(network.optimizer, "mean_square"),
        "momentum_buffer": slots(network.optimizer, "momentum_buffer"),
    }


def test_two_replicas_step_like_one_device(two_replicas):
    alone = fit_dense(tf.distribute.get_strategy(), 3)
    together = fit_dense(two_replicas, 3)
    moved = np.abs(alone["weights"][0] - 0.2).max()
    assert moved > 0.01, f"three steps moved the kernel by {moved} only"
    for name, arrays in alone.items():
        for one, two in zip(arrays, together[name], strict=True):
            np.testing.assert_allclose(two, one, atol=1e-6, err_msg=name)


def test_config_round_trip():
    optimizer = RMSprop(
        exponential_decay(0.3, 2.0, warmup_epochs=0),
        rho=0.8,
        momentum=0.7,
        epsilon=1e-2,
        l2=0.1,
        l2_excluded=("gamma",),
        name="ours",
    )
    config = json.loads(json.dumps(keras.optimizers.serialize(optimizer)))
    again = keras.optimizers.deserialize(config)
    assert type(again) is RMSprop
    assert again.get_config() == optimizer.get_config()
    first, second = weight_pair(), weight_pair()
    for step in range(2):
        gradients = gradient_pair(step)
        optimizer.apply_gradients(zip(gradients, first, strict=True))
        again.apply_gradients(zip(gradients, second, strict=True))
    for one, two in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.numpy(), two.numpy())
