# SPDX-License-Identifier: Apache-2.0
"""The noise layers drop what they should, anew for every image everywhere."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from noisy_student.models.stochastic_depth import Dropout
from noisy_student.models.stochastic_depth import StochasticDepth
from noisy_student.models.stochastic_depth import stochastic_depth_rates


def masks(layer, num_images=4096):
    """Which of many images survive one call of a layer, (N,) of 0 and 1."""
    ones = tf.ones((num_images, 1, 1, 1))
    return np.sign(layer(ones, training=True)).reshape(-1)


@pytest.mark.parametrize(
    ("num_blocks", "last"), [(16, 0.1875), (55, 0.19636364), (88, 0.19772727)]
)
def test_rates_grow_linearly_from_zero(num_blocks, last):
    rates = stochastic_depth_rates(num_blocks, 0.2)
    assert len(rates) == num_blocks
    assert rates[0] == 0, f"the first block is dropped at {rates[0]}"
    np.testing.assert_allclose(np.diff(rates), 0.2 / num_blocks, rtol=1e-9)
    assert rates[-1] == pytest.approx(last, rel=1e-7)
    assert rates[-1] < 0.2, f"the last block is dropped at {rates[-1]}"


@pytest.mark.parametrize("cls", (Dropout, StochasticDepth))
def test_is_the_identity_at_inference_and_at_rate_zero(cls):
    x = np.random.default_rng(0).normal(size=(8, 2, 2, 3)).astype("float32")
    noisy = np.array(cls(0.5, seed=1)(x, training=True))
    assert (noisy != x).any(), "the layer makes no noise in training"
    np.testing.assert_array_equal(cls(0.5, seed=1)(x), x)
    np.testing.assert_array_equal(cls(0.5, seed=1)(x, training=False), x)
    np.testing.assert_array_equal(cls(0.0, seed=1)(x, training=True), x)


@pytest.mark.parametrize("batch", ("known", "unknown"))
def test_whole_images_are_dropped_and_survivors_scaled(batch):
    layer = StochasticDepth(0.2, seed=1)

    def call(x):
        return layer(x, training=True)

    if batch == "unknown":
        call = tf.function(
            call, input_signature=[tf.TensorSpec((None, 3, 4, 2))]
        )
    x = np.random.default_rng(0).uniform(1, 2, (1000, 3, 4, 2))
    x = x.astype("float32")
    ratio = np.array(call(x)) / x
    survived = ratio[:, 0, 0, 0] > 0
    expected = np.where(survived, 1.25, 0)[:, None, None, None]
    np.testing.assert_allclose(ratio, np.broadcast_to(expected, x.shape), 1e-6)
    assert 150 < (~survived).sum() < 250, f"{(~survived).sum()} of 1000 dropped"


def test_dropout_drops_single_values():
    x = tf.ones((100, 2, 2, 5))
    dropped = np.array(Dropout(0.5, seed=1)(x, training=True)) == 0
    per_image = dropped.reshape(100, -1).sum(-1)
    mixed = ((per_image > 0) & (per_image < 20)).sum()
    assert mixed == 100, f"{100 - mixed} images are dropped or kept as a whole"
    assert 900 < dropped.sum() < 1100, f"{dropped.sum()} of 2000 dropped"


@pytest.mark.parametrize("rate", (0.1, 0.5))
@pytest.mark.parametrize("cls", (Dropout, StochasticDepth))
def test_keeps_the_mean(cls, rate):
    mean = np.mean(cls(rate, seed=1)(tf.ones((20000, 1, 1, 1)), training=True))
    assert abs(mean - 1) < 0.02, f"mean {mean} at rate {rate}"


@pytest.mark.parametrize("cls", (Dropout, StochasticDepth))
def test_replicas_and_calls_draw_different_masks(two_replicas, cls):
    with two_replicas.scope():
        layer = cls(0.5, seed=1)

    @tf.function
    def step():
        per_replica = two_replicas.run(
            lambda: layer(tf.ones((4096, 1, 1, 1)), training=True)
        )
        return two_replicas.experimental_local_results(per_replica)

    first, second = (np.reshape(step(), (2, 4096)) for _ in range(2))
    every = np.sign([*first, *second])
    correlation = np.corrcoef(every)[~np.eye(4, dtype=bool)]
    # 0 if independent, with standard deviation 1/64; 1 if the same.
    worst = np.abs(correlation).max()
    assert worst < 0.08, f"masks correlate, {worst:.3f}"
    # Replica 0 is a run on one device.
    alone = cls(0.5, seed=1)
    np.testing.assert_array_equal(masks(alone), every[0])
    np.testing.assert_array_equal(masks(alone), every[2])


def test_layers_of_a_model_draw_different_masks():
    keras.utils.set_random_seed(0)
    first, second = masks(StochasticDepth(0.5)), masks(StochasticDepth(0.5))
    correlation = np.corrcoef(first, second)[0, 1]
    assert abs(correlation) < 0.08, f"masks correlate, {correlation:.3f}"


@pytest.mark.parametrize("cls", (Dropout, StochasticDepth))
def test_seeds_decide_the_masks(cls):
    one, same, other = cls(0.5, seed=7), cls(0.5, seed=7), cls(0.5, seed=8)
    draws = [masks(one), masks(one)]
    np.testing.assert_array_equal(draws, [masks(same), masks(same)])
    agreement = np.mean(draws[0] == masks(other))
    assert 0.4 < agreement < 0.6, f"seeds 7 and 8 agree on {agreement:.2f}"
    # Without a seed, the global one decides: what the phases rely on.
    unseeded = []
    for _ in range(2):
        keras.utils.set_random_seed(3)
        unseeded.append(masks(cls(0.5)))
    np.testing.assert_array_equal(*unseeded)


@pytest.mark.parametrize("cls", (Dropout, StochasticDepth))
def test_config_round_trip(cls):
    layer = cls(0.3, seed=5, name="block2b_drop")
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is cls
    assert again.get_config() == layer.get_config()
    np.testing.assert_array_equal(masks(again), masks(layer))


@pytest.mark.parametrize("rate", (-0.1, 1, 1.5))
@pytest.mark.parametrize("cls", (Dropout, StochasticDepth))
def test_refuses_impossible_rates(cls, rate):
    with pytest.raises(ValueError, match=str(rate)):
        cls(rate)
