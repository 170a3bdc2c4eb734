# SPDX-License-Identifier: Apache-2.0
"""A batch in parts makes the step that the whole batch makes, once."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_switches import digits_run

from noisy_student import assembly
from noisy_student.errors import UserError
from noisy_student.models import stochastic_depth
from noisy_student.training import accumulation
from noisy_student.training import distribution
from noisy_student.training import schedules
from noisy_student.training import trainer
from noisy_student.training.checkpointing import Checkpoints
from noisy_student.training.online_teacher import OnlineTeacher

pytestmark = pytest.mark.usefixtures("one_block")

CLASSES = 3
# Labeled and pseudo-labeled rows of a batch: uneven, so that no slice can be
# taken for another.
LABELED, UNLABELED = 4, 12


def batch(seed=0):
    rng = np.random.default_rng(seed)
    rows = LABELED + UNLABELED
    pixels = rng.integers(0, 256, (rows, 8, 8, 3), np.uint8)
    targets = rng.dirichlet(np.ones(CLASSES), rows).astype(np.float32)
    return pixels, targets


def plain_network():
    """No noise and no BatchNormalization: every row stands alone."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((8, 8, 3), name="pixels"),
            keras.layers.Rescaling(1 / 128, -1.0),
            keras.layers.Conv2D(4, 3, activation="swish", name="conv"),
            keras.layers.Flatten(),
            keras.layers.Dense(CLASSES, name="predictions"),
        ],
        name="network",
    )


def real_network(noise=0.0):
    """What an EfficientNet has, in two convolutions."""
    keras.utils.set_random_seed(0)
    pixels = keras.Input((8, 8, 3), name="pixels")
    x = keras.layers.Rescaling(1 / 128, -1.0)(pixels)
    x = keras.layers.Conv2D(6, 3, padding="same", name="conv")(x)
    x = skipped = keras.layers.BatchNormalization(momentum=0.9, name="bn")(x)
    x = keras.layers.Conv2D(6, 3, padding="same", name="second_conv")(x)
    x = keras.layers.BatchNormalization(momentum=0.9, name="second_bn")(x)
    x = stochastic_depth.StochasticDepth(noise, name="drop")(x)
    x = keras.layers.Add()([x, skipped])
    x = keras.layers.Activation("swish")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = stochastic_depth.Dropout(noise, name="dropout")(x)
    x = keras.layers.Dense(CLASSES, name="predictions")(x)
    return keras.Model(pixels, x)


def trainable(network, steps=1, replicas=1, **settings):
    return trainer.make_trainable(
        network,
        # It falls with every step that is counted.
        learning_rate=schedules.exponential_decay(
            0.05, 1.0, decay_factor=0.5, decay_epochs=1.0, warmup_epochs=0.0
        ),
        ema_decay=0.5,
        num_labeled=LABELED // replicas // steps,
        unlabeled_ratio=3.0,
        accumulation_steps=steps,
        **settings,
    )


def fit(model, num_steps=3, seed=0):
    """Trains on one batch again and again; returns the logs."""
    batches = tf.data.Dataset.from_tensors(batch(seed=seed)).repeat()
    history = model.fit(
        batches, steps_per_epoch=num_steps, shuffle=False, verbose=0
    )
    return {name: values[-1] for name, values in history.history.items()}


def state_of(model):
    return {
        f"{index} {variable.path}": variable.numpy()
        for index, variable in enumerate(
            [*model.variables, *model.optimizer.variables]
        )
        if "seed_generator" not in variable.path
    }


def assert_near(found, expected, rtol=2e-5, atol=2e-6):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(
            found[name], array, rtol=rtol, atol=atol, err_msg=name
        )


def test_parts_have_the_rows_of_the_batch_in_its_mixture():
    rows = {"pixels": np.arange(16), "teacher_pixels": -np.arange(16)[:, None]}
    parts = accumulation.split(rows, 2, num_labeled=2)
    expected = [[0, 1, 4, 5, 6, 7, 8, 9], [2, 3, 10, 11, 12, 13, 14, 15]]
    np.testing.assert_array_equal(parts["pixels"], expected)
    np.testing.assert_array_equal(
        parts["teacher_pixels"], -np.array(expected)[:, :, None]
    )
    for num_labeled in (0, 8):  # of one kind alone
        (one_kind,) = accumulation.split([np.arange(16)], 2, num_labeled)
        np.testing.assert_array_equal(one_kind, np.arange(16).reshape(2, 8))


@pytest.mark.parametrize("steps", (2, 4))
def test_equals_the_whole_batch_where_rows_stand_alone(steps):
    # Weights, averages, optimizer, their counters and the metrics.
    whole = trainable(plain_network())
    expected = fit(whole)
    parts = trainable(plain_network(), steps)
    found = fit(parts)
    assert_near(state_of(parts), state_of(whole))
    assert_near(found, expected)
    assert parts.num_updates.numpy() == parts.optimizer.iterations.numpy() == 3


def one_part_at_a_time(network, steps=2):
    """Yields images and targets of each part; puts the weights back."""
    weights = [weight.numpy() for weight in network.weights]
    parts = accumulation.split(batch(), steps, LABELED // steps)
    for images, targets in zip(*parts, strict=True):
        yield images, targets
        for weight, value in zip(network.weights, weights, strict=True):
            weight.assign(value)


def test_gradient_is_the_mean_over_the_parts():
    model = trainable(real_network(), steps=2)
    network = model.network
    gradients = []
    for images, targets in one_part_at_a_time(network):
        with tf.GradientTape() as tape:
            logits = network(images, training=True)
            loss = keras.ops.mean(model.loss(targets, logits))
        gradients.append(tape.gradient(loss, network.trainable_weights))

    applied = []
    model.optimizer.apply_gradients = lambda pairs: applied.extend(pairs)
    model.run_eagerly = True
    fit(model, num_steps=1)
    assert len(applied) == len(network.trainable_weights)
    for (found, weight), one, two in zip(applied, *gradients, strict=True):
        np.testing.assert_allclose(
            found, (one + two) / 2, rtol=1e-4, atol=1e-6, err_msg=weight.path
        )


def test_statistics_move_once_to_the_mean_over_the_parts():
    model = trainable(real_network(), steps=2)
    statistics = model.network.non_trainable_weights
    assert len(statistics) == 4
    before = [statistic.numpy() for statistic in statistics]
    moved = []
    for images, _ in one_part_at_a_time(model.network):
        model.network(images, training=True)
        moved.append([statistic.numpy() for statistic in statistics])
    fit(model, num_steps=1)
    for found, old, one, two in zip(statistics, before, *moved, strict=True):
        assert np.abs(one - two).max() > 1e-4, f"{found.path}: too alike"
        assert np.abs(one - old).max() > 1e-4, f"{found.path} stands still"
        np.testing.assert_allclose(
            found, (one + two) / 2, rtol=1e-5, atol=1e-6, err_msg=found.path
        )


def test_frozen_layers_stay_as_they_are():
    network = real_network()
    frozen = network.get_layer("bn")
    frozen.trainable = False
    before = [weight.numpy() for weight in frozen.weights]
    fit(trainable(network, steps=4))
    for old, weight in zip(before, frozen.weights, strict=True):
        np.testing.assert_array_equal(weight, old)


def test_two_replicas(two_replicas):
    whole = trainable(plain_network())
    expected = fit(whole)
    with two_replicas.scope():
        parts = trainable(plain_network(), steps=2, replicas=2)
    # Rows of a replica come labeled first.
    pixels, targets = batch()
    order = [0, 1, *range(4, 10), 2, 3, *range(10, 16)]
    batches = tf.data.Dataset.from_tensors((pixels[order], targets[order]))
    history = parts.fit(
        batches.repeat(), steps_per_epoch=3, shuffle=False, verbose=0
    )
    assert_near(state_of(parts), state_of(whole))
    found = {name: values[-1] for name, values in history.history.items()}
    assert_near(found, expected)


def test_two_replicas_with_noise_and_statistics(two_replicas):
    # What Keras does not manage: variables that are assigned in the loop, on
    # each replica its own.
    with two_replicas.scope():
        network = real_network(0.5)
        model = trainable(network, steps=2, replicas=2)
    before = [weight.numpy() for weight in network.non_trainable_weights]
    logs = fit(model, num_steps=2)
    assert np.isfinite(list(logs.values())).all(), logs
    for old, weight in zip(before, network.non_trainable_weights, strict=True):
        assert np.abs(weight.numpy() - old).max() > 1e-5, weight.path
    for variable in [*model.trainable_weights, *model.averages]:
        first, second = two_replicas.experimental_local_results(variable.value)
        np.testing.assert_array_equal(first, second, err_msg=variable.path)


def test_noise_is_drawn_for_each_part_and_restored(tmp_path):
    network = real_network(0.5)
    model = trainable(network, steps=2)
    fit(model, num_steps=2)
    # Two steps of two parts.
    drop = network.get_layer("drop")
    assert drop.seed_generator.state.numpy()[1] == 4
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(model, 2)
    fit(model, num_steps=2)
    expected = state_of(model)

    again = trainable(real_network(0.5), steps=2)
    assert checkpoints.restore(again) == 2
    fit(again, num_steps=2)
    for name, array in state_of(again).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_an_online_teacher_answers_part_by_part():
    pixels, targets = batch()
    teacher_pixels, _ = batch(seed=1)

    def state(steps):
        teacher = OnlineTeacher(plain_network(), num_labeled=LABELED // steps)
        model = trainable(plain_network(), steps, online_teacher=teacher)
        batches = tf.data.Dataset.from_tensors(
            ({"pixels": pixels, "teacher_pixels": teacher_pixels}, targets)
        )
        model.fit(batches.repeat(), steps_per_epoch=2, shuffle=False, verbose=0)
        return state_of(model)

    assert_near(state(4), state(1))


@pytest.mark.slow
def test_xla_compiles_the_loop():
    model = trainable(real_network(), steps=2)
    fit(model, num_steps=1)
    compiled = trainable(real_network(), steps=2, jit_compile=True)
    fit(compiled, num_steps=1)
    assert_near(state_of(compiled), state_of(model), rtol=1e-4, atol=1e-5)


def test_a_run_takes_it_from_its_flag(tmp_path):
    run = digits_run(tmp_path, accumulation_steps=2)  # batches of 4 + 8
    model, _ = assembly.make_trainable(run, "distill", 1, num_labeled=50)
    assert (model.accumulation_steps, model.num_labeled) == (2, 2)


@pytest.mark.parametrize(
    ("replicas", "steps", "message"),
    [
        (1, 3, "of 8 images does not divide into 3 parts: make it 6 or 9, or"),
        (2, 8, "of 8 .* among 2 devices and into 8 parts: make it 16, or"),
    ],
)
def test_batches_that_do_not_divide_are_named(replicas, steps, message):
    with pytest.raises(UserError, match=message) as error:
        distribution.check_divisible(replicas, steps, unlabeled=8)
    assert f"--accumulation_steps={steps}" in str(error.value)
    distribution.check_divisible(2, 4, labeled=8, unlabeled=0)


def test_a_run_refuses_what_does_not_divide(tmp_path):
    with pytest.raises(UserError, match="unlabeled batch of 2 .* 3 parts"):
        digits_run(
            tmp_path, batch_size=3, unlabeled_ratio="0.5", accumulation_steps=3
        )
