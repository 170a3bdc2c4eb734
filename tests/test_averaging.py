# SPDX-License-Identifier: Apache-2.0
"""The average of the weights is the official one, BatchNormalization's too."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import BUNDLED

from noisy_student.training.averaging import AveragedModel
from noisy_student.training.averaging import ema_decay_at
from noisy_student.training.optimizers import RMSprop
from noisy_student.training.schedules import exponential_decay


class Vector(keras.layers.Layer):
    """A vector of weights that ignores its input, (N, 1) -> (N, size)."""

    def __init__(self, values, **kwargs):
        super().__init__(**kwargs)
        self.vector = self.add_weight(shape=(len(values),), name="vector")
        self.vector.assign(values)

    def call(self, inputs):
        return 0 * inputs + self.vector


def vector_network(values):
    return keras.Sequential([keras.Input((1,)), Vector(values)])


def normalized_network():
    """Dense, BatchNormalization, Dense, with the same weights every time."""
    network = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(4, use_bias=False, name="dense"),
            keras.layers.BatchNormalization(momentum=0.5, name="bn"),
            keras.layers.Dense(2, name="predictions"),
        ]
    )
    rng = np.random.default_rng(1)
    for weight in network.weights:
        weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    return network


def arrays(variables):
    return [variable.numpy() for variable in variables]


def train(strategy, batches, num_steps=3):
    """Returns the averaged model and the weights after each step."""
    history = []
    with strategy.scope():
        model = AveragedModel(normalized_network(), ema_decay=0.9)
        model.compile(RMSprop(0.05), "mse")
    model.fit(
        batches.repeat(),
        steps_per_epoch=num_steps,
        shuffle=False,
        verbose=0,
        callbacks=[
            keras.callbacks.LambdaCallback(
                on_train_batch_end=lambda batch, logs: history.append(
                    arrays(model.network.weights)
                )
            )
        ],
    )
    return model, history


def averaged_by_hand(history, decay):
    """The average after the last of the given weights, in float64."""
    average = [np.array(x, "float64") for x in history[0]]
    for n, weights in enumerate(history[1:], start=1):
        d = min(decay, (1 + n) / (10 + n))
        average = [
            d * a + (1 - d) * w for a, w in zip(average, weights, strict=True)
        ]
    return average


def batch(num_rows, seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(num_rows, 3)).astype("float32"),
        rng.normal(size=(num_rows, 2)).astype("float32"),
    )


def read_golden():
    folder = BUNDLED / "optimizer"
    settings = json.loads((folder / "rmsprop_ema.json").read_text())
    with np.load(folder / "rmsprop_ema.npz") as file:
        return settings, {name: file[name] for name in file.files}


def test_official_training_with_average():
    settings, expected = read_golden()
    curvature = tf.constant(expected["A"])
    center = tf.constant(expected["c"])

    def loss(noise, weights):
        offset = weights - center  # (1, D)
        quadratic = tf.reduce_sum(offset @ curvature * offset, -1) / 2
        return quadratic + tf.reduce_sum(noise * weights, -1)

    model = AveragedModel(
        vector_network(expected["weights"][0]), settings["ema_decay"]
    )
    model.compile(RMSprop(exponential_decay(**settings["learning_rate"])), loss)
    weights = arrays(model.network.weights)
    averages = arrays(model.averages)
    for noise in expected["noise"]:
        model.train_on_batch(np.zeros((1, 1)), noise[None])
        weights += arrays(model.network.weights)
        averages += arrays(model.averages)
    error = np.abs(weights - expected["weights"]).max()
    assert error < 1e-5, f"weights off by {error}"
    # The official average runs after the step and counts it: its first decay
    # is 2/11.
    error = np.abs(averages - expected["ema_weights"]).max()
    assert error < 1e-5, f"averages off by {error}"


def test_official_average_at_any_update():
    settings, expected = read_golden()
    model = AveragedModel(
        vector_network(expected["ema_only_values"][0]), settings["ema_decay"]
    )
    # A rate of 0: a training step that moves nothing but the average.
    model.compile(keras.optimizers.SGD(0.0), "mse")
    (vector,) = model.network.weights
    zeros = np.zeros((1, 1)), np.zeros((1, vector.shape[0]))
    for k, step in enumerate(expected["ema_only_steps"]):
        vector.assign(expected["ema_only_weights"][k])
        model.num_updates.assign(step - 1)
        model.train_on_batch(*zeros)
        (average,) = arrays(model.averages)
        error = np.abs(average - expected["ema_only_values"][k + 1]).max()
        assert error < 1e-5, f"average off by {error} at update {step}"


def test_decay_warms_up():
    expected = {
        1: 2 / 11,
        2: 3 / 12,
        90: 0.91,
        8990: 8991 / 9000,
        # Full decay from update 89990 on.
        89989: 89990 / 89999,
        10**6: 0.9999,
    }
    found = [float(ema_decay_at(n, 0.9999)) for n in expected]
    np.testing.assert_allclose(found, list(expected.values()), rtol=1e-6)
    assert float(ema_decay_at(1, 0.1)) == pytest.approx(0.1)


def test_starts_at_the_weights():
    network = normalized_network()
    model = AveragedModel(network)
    assert model.num_updates.numpy() == 0
    assert len(model.averages) == len(network.weights) == 7
    for average, weight in zip(model.averages, network.weights, strict=True):
        np.testing.assert_array_equal(average.numpy(), weight.numpy())


def test_averages_every_weight_and_counts_the_steps():
    initial = arrays(normalized_network().weights)
    batches = tf.data.Dataset.from_tensors(batch(4))
    model, history = train(tf.distribute.get_strategy(), batches)
    assert model.num_updates.numpy() == len(history) == 3
    expected = averaged_by_hand([initial, *history], decay=0.9)
    for found, average, weight in zip(
        arrays(model.averages), expected, model.network.weights, strict=True
    ):
        # BatchNormalization's statistics are weights like the others.
        moved = np.abs(average - weight.numpy()).max()
        assert moved > 1e-4, f"{weight.path} {moved} from its average"
        np.testing.assert_allclose(
            found, average, atol=1e-6, err_msg=weight.path
        )
    # The average predicts when it is asked to, and not before.
    model.load_averages_into(model.network)
    for found, average in zip(
        arrays(model.network.weights), expected, strict=True
    ):
        np.testing.assert_allclose(found, average, atol=1e-6)


def test_no_decay_follows_the_weights():
    network = vector_network([1.0, -2.0])
    model = AveragedModel(network, ema_decay=0)
    model.compile(keras.optimizers.SGD(0.5), "mse")
    for target in (3.0, -1.0):
        model.train_on_batch(np.zeros((1, 1)), np.full((1, 2), target))
        np.testing.assert_allclose(
            model.averages[0].numpy(), network.weights[0].numpy(), rtol=1e-6
        )


def test_two_replicas_average_like_one_device(two_replicas):
    # Both replicas get the same rows, so that their BatchNormalization sees
    # what that of one device sees.
    half = batch(4)
    whole = tuple(np.concatenate([x, x]) for x in half)
    together, _ = train(two_replicas, tf.data.Dataset.from_tensors(whole))
    alone, _ = train(
        tf.distribute.get_strategy(), tf.data.Dataset.from_tensors(half)
    )
    assert together.num_updates.numpy() == 3
    for one, two, weight in zip(
        arrays(alone.averages),
        arrays(together.averages),
        alone.network.weights,
        strict=True,
    ):
        np.testing.assert_allclose(two, one, atol=1e-5, err_msg=weight.path)


def test_replicas_stay_the_same(two_replicas):
    # Each replica sees other rows, and its BatchNormalization's statistics
    # are its own; what is trained and what is averaged are one on both.
    model, _ = train(two_replicas, tf.data.Dataset.from_tensors(batch(8)))
    for variable in [*model.trainable_weights, *model.averages]:
        first, second = two_replicas.experimental_local_results(variable.value)
        np.testing.assert_array_equal(
            first.numpy(), second.numpy(), err_msg=variable.path
        )
