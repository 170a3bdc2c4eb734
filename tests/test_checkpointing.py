# SPDX-License-Identifier: Apache-2.0
"""A run that was stopped, however rudely, ends with the same bits."""

import contextlib
import json
import os
import shutil
import signal
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from noisy_student import stopping
from noisy_student.errors import UserError
from noisy_student.models import efficientnet
from noisy_student.models.stochastic_depth import Dropout
from noisy_student.models.stochastic_depth import StochasticDepth
from noisy_student.training import curves
from noisy_student.training import trainer
from noisy_student.training.checkpointing import Checkpoints
from noisy_student.training.checkpointing import StopAtNonFinite
from noisy_student.training.schedules import exponential_decay

NUM_CLASSES = 3
IMAGE_SIZE = 4
STEPS = 4


def make_network(*, filters=3, num_blocks=1):
    """The parts of an EfficientNet that have a state, and no more."""
    layers = keras.layers
    pixels = keras.Input((IMAGE_SIZE, IMAGE_SIZE, 3))
    x = layers.Rescaling(1 / 255, name="normalization")(pixels)
    x = layers.Conv2D(filters, 1, name="stem_conv")(x)
    for number in range(num_blocks):
        name = f"block{number}_"
        branch = layers.Conv2D(
            filters, 3, padding="same", use_bias=False, name=name + "conv"
        )(x)
        branch = layers.BatchNormalization(name=name + "bn")(branch)
        branch = StochasticDepth(0.3, name=name + "drop")(branch)
        x = layers.Add(name=name + "add")([x, branch])
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    x = Dropout(0.3, name="top_dropout")(x)
    logits = layers.Dense(NUM_CLASSES, name="predictions")(x)
    return keras.Model(pixels, logits)


def make_model(
    *,
    seed,
    strategy=None,
    new_process=True,
    make_network=make_network,
    **kwargs,
):
    """A fresh compiled model, as the phases make one."""
    if new_process:
        # Keras counts names from here, as it would there.
        keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    strategy = strategy or tf.distribute.get_strategy()
    # Another rate at each step.
    learning_rate = exponential_decay(0.1, 1, decay_epochs=1, warmup_epochs=2)
    with strategy.scope():
        return trainer.make_trainable(
            make_network(**kwargs),
            learning_rate=learning_rate,
            num_labeled=4 // strategy.num_replicas_in_sync,
            unlabeled_ratio=1.0,
        )


def make_batches(first_step, *, fails_at=None):
    """Other images and targets at each step, and the same in every run."""

    def batch(step):
        if fails_at is not None:
            tf.debugging.assert_less(step, tf.constant(fails_at, tf.int64))
        seed = tf.stack([step, 0])
        shape = (8, IMAGE_SIZE, IMAGE_SIZE, 3)
        pixels = tf.random.stateless_uniform(shape, seed, 0, 256, tf.int32)
        targets = tf.random.stateless_normal((8, NUM_CLASSES), seed)
        return tf.cast(pixels, tf.uint8), tf.nn.softmax(targets)

    return tf.data.Dataset.counter(first_step).map(batch)


def fit(model, directory, steps, *, batches=make_batches, minutes=60):
    return trainer.fit(
        model,
        batches,
        steps=steps,
        checkpoints=Checkpoints(directory / "checkpoints"),
        checkpoint_minutes=minutes,
        metrics_path=directory / "metrics.jsonl",
    )


def state_of(model):
    """Weights, averages, noise and optimizer: (path, array) of each."""
    variables = [*model.variables, *model.optimizer.variables]
    return [(v.path, v.numpy()) for v in variables]


def assert_same_bits(model, expected):
    for (path, found), (_, array) in zip(
        state_of(model), expected, strict=True
    ):
        np.testing.assert_array_equal(found, array, err_msg=path)


def reported_steps(directory):
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """State after four steps in one go."""
    directory = tmp_path_factory.mktemp("uninterrupted")
    model = make_model(seed=1)
    before = state_of(model)
    assert fit(model, directory, STEPS) == 0
    assert reported_steps(directory) == [1, 2, 3, 4]
    after = state_of(model)
    # So a model that did not restore one of them would show.
    for (path, old), (_, new) in zip(before, after, strict=True):
        assert (old != new).any(), f"{path} did not change in {STEPS} steps"
    return after


@pytest.fixture
def small_model():
    return make_model(seed=1)


def test_two_halves_make_a_whole(uninterrupted, tmp_path):
    first = make_model(seed=1)
    assert fit(first, tmp_path, 2) == 0
    # Another seed: nothing of a new model may survive the restoring.
    second = make_model(seed=2)
    assert fit(second, tmp_path, STEPS) == 2
    assert_same_bits(second, uninterrupted)
    assert reported_steps(tmp_path) == [1, 2, 3, 4]


def test_killed_run_with_a_damaged_checkpoint(uninterrupted, tmp_path):
    # The run dies after three steps, checkpoints after each; the newest is cut
    # off, so that step three is done and reported a second time.
    with pytest.raises(tf.errors.InvalidArgumentError):
        fit(
            make_model(seed=1),
            tmp_path,
            STEPS,
            batches=lambda first: make_batches(first, fails_at=3),
            minutes=0,
        )
    assert reported_steps(tmp_path) == [1, 2, 3]
    newest = tmp_path / "checkpoints" / "checkpoint-000000003.npz"
    newest.write_bytes(newest.read_bytes()[:1000])
    model = make_model(seed=2)
    assert fit(model, tmp_path, STEPS) == 2
    assert_same_bits(model, uninterrupted)
    assert reported_steps(tmp_path) == [1, 2, 3, 4]


@pytest.mark.slow
def test_two_halves_make_a_whole_on_two_replicas(two_replicas, tmp_path):
    whole = make_model(seed=1, strategy=two_replicas)
    fit(whole, tmp_path / "whole", STEPS)
    expected = state_of(whole)
    fit(make_model(seed=1, strategy=two_replicas), tmp_path, 2)
    resumed = make_model(seed=2, strategy=two_replicas)
    assert fit(resumed, tmp_path, STEPS) == 2
    assert_same_bits(resumed, expected)
    # What is trained came back on the second replica too.
    for variable in resumed.trainable_weights:
        first, second = two_replicas.experimental_local_results(variable.value)
        np.testing.assert_array_equal(first.numpy(), second.numpy())


@pytest.mark.slow
def test_two_halves_of_an_efficientnet(tmp_path):
    def make(seed):
        return make_model(
            seed=seed,
            make_network=efficientnet.build_model,
            num_classes=NUM_CLASSES,
            image_size=IMAGE_SIZE,
            width=0.1,
            depth=0.6,
        )

    whole = make(seed=1)
    fit(whole, tmp_path / "whole", STEPS)
    expected = state_of(whole)
    fit(make(seed=1), tmp_path, 2)
    resumed = make(seed=2)
    assert fit(resumed, tmp_path, STEPS) == 2
    assert_same_bits(resumed, expected)


def test_finished_run_does_nothing(small_model, tmp_path):
    Checkpoints(tmp_path / "checkpoints").save(small_model, STEPS)
    expected = state_of(small_model)

    def no_batches(first_step):
        raise AssertionError(f"batches from step {first_step} on")

    model = make_model(seed=2)
    assert fit(model, tmp_path, STEPS, batches=no_batches) == STEPS
    assert_same_bits(model, expected)


def test_no_checkpoint_is_step_0(small_model, tmp_path):
    expected = state_of(small_model)
    assert Checkpoints(tmp_path / "nothing").restore(small_model) == 0
    assert_same_bits(small_model, expected)


def test_keeps_the_newest_two(small_model, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    # In the order of numbers, not of letters.
    for step in (9, 10, 100, 1000):
        checkpoints.save(small_model, step)
    names = ["checkpoint-000000100.npz", "checkpoint-000001000.npz"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    # Killed before it could drop the oldest, and with nothing left to do.
    shutil.copy(tmp_path / names[0], tmp_path / "checkpoint-000000010.npz")
    assert checkpoints.restore(small_model) == 1000
    assert sorted(path.name for path in tmp_path.iterdir()) == names


@pytest.mark.parametrize("damage", ("cut", "empty", "flipped"))
def test_damaged_newest_is_passed_over(small_model, tmp_path, damage):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(small_model, 1)
    expected = state_of(small_model)
    small_model.network.weights[0].assign_add(
        np.ones(small_model.network.weights[0].shape)
    )
    checkpoints.save(small_model, 2)
    newest = tmp_path / "checkpoint-000000002.npz"
    content = bytearray(newest.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "empty":
        content = b""
    else:
        # One bit of the first number of the weight that was changed.
        place = content.index(small_model.network.weights[0].numpy().tobytes())
        content[place] ^= 1
    newest.write_bytes(content)
    model = make_model(seed=2)
    assert checkpoints.restore(model) == 1
    assert_same_bits(model, expected)


@pytest.mark.parametrize("kind", [PermissionError, MemoryError])
def test_what_cannot_be_read_now_is_not_passed_over(
    small_model, tmp_path, monkeypatch, kind
):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(small_model, 1)
    checkpoints.save(small_model, 2)

    def load(*arguments, **options):
        raise kind(13, "no")

    monkeypatch.setattr(np, "load", load)
    with pytest.raises(kind):
        checkpoints.restore(small_model)


def test_dying_while_saving_leaves_the_one_before(
    small_model, tmp_path, monkeypatch
):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(small_model, 1)

    def die(file, **arrays):
        file.write(b"half of a checkpoint")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", die)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(small_model, 2)
    assert [path.name for path in tmp_path.glob("*.npz")] == [
        "checkpoint-000000001.npz"
    ]
    assert checkpoints.restore(small_model) == 1


@pytest.mark.parametrize("change", ({"num_blocks": 2}, {"filters": 5}))
def test_checkpoint_of_another_architecture(small_model, tmp_path, change):
    Checkpoints(tmp_path).save(small_model, 1)
    with pytest.raises(UserError, match="another model"):
        Checkpoints(tmp_path).restore(make_model(seed=1, **change))


def test_training_does_not_begin_again_over_damaged_checkpoints(
    small_model, tmp_path
):
    Checkpoints(tmp_path).save(small_model, 1)
    (path,) = tmp_path.glob("*.npz")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="delete that folder"):
        Checkpoints(tmp_path).restore(small_model)


def test_checkpoint_with_a_name_of_an_array_changed(small_model, tmp_path):
    # Zip's own sums do not cover names.
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(small_model, 1)
    checkpoints.save(small_model, 2)
    path = tmp_path / "checkpoint-000000002.npz"
    content = path.read_bytes()
    assert b"stem_conv:bias" in content
    path.write_bytes(content.replace(b"stem_conv:bias", b"stem_conv:bios"))
    assert checkpoints.restore(small_model) == 1


@pytest.mark.parametrize("bad_step", (1, 3))
def test_a_loss_that_is_no_number_stops_at_once(tmp_path, bad_step):
    def batches(first_step):
        def spoil(step, batch):
            pixels, targets = batch
            bad = tf.equal(step, bad_step - 1)
            return pixels, tf.where(bad, np.nan, targets)

        steps = tf.data.Dataset.counter(first_step)
        return tf.data.Dataset.zip(steps, make_batches(first_step)).map(spoil)

    kept = "step 2 is kept" if bad_step > 1 else "no checkpoint"
    with pytest.raises(UserError, match=f"step {bad_step}: .*{kept}"):
        # A checkpoint after each step.
        fit(make_model(seed=1), tmp_path, 9, batches=batches, minutes=0)
    model = make_model(seed=2)
    Checkpoints(tmp_path / "checkpoints").restore(model)
    for path, array in state_of(model):
        assert np.isfinite(array).all(), path


def test_a_signal_saves_the_step_and_the_same_command_goes_on(
    uninterrupted, tmp_path
):
    def batches(first_step):
        def ask_to_stop(step):
            if step == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return step

        steps = tf.data.Dataset.counter(first_step).map(
            lambda step: tf.numpy_function(ask_to_stop, [step], tf.int64)
        )
        both = tf.data.Dataset.zip(steps, make_batches(first_step))
        return both.map(lambda _, batch: batch)

    with pytest.raises(stopping.Stopped), stopping.signals():
        fit(make_model(seed=1), tmp_path, STEPS, batches=batches)
    model = make_model(seed=2)
    assert 1 <= fit(model, tmp_path, STEPS) < STEPS
    assert_same_bits(model, uninterrupted)


@pytest.mark.parametrize("step", (2, STEPS))
@pytest.mark.parametrize("in_notebook", (False, True))
def test_a_signal_while_a_checkpoint_is_written_ends_the_run_after_it(
    uninterrupted, tmp_path, monkeypatch, step, in_notebook
):
    save = np.savez
    written = []

    def save_and_ask_to_stop(file, **arrays):
        save(file, **arrays)
        written.append(file.name)
        if len(written) == step:
            os.kill(os.getpid(), signal.SIGTERM)

    handlers = contextlib.nullcontext if in_notebook else stopping.signals
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patched:
        patched.setattr(np, "savez", save_and_ask_to_stop)
        with pytest.raises(stopping.Stopped, match="SIGTERM"), handlers():
            fit(make_model(seed=1), tmp_path, STEPS, minutes=0)
    assert len(written) == step, "it went on"
    assert signal.getsignal(signal.SIGTERM) is before
    model = make_model(seed=2)
    assert fit(model, tmp_path, STEPS) == step
    assert_same_bits(model, uninterrupted)


def test_a_signal_while_a_checkpoint_is_restored_ends_the_run(
    small_model, tmp_path, monkeypatch
):
    Checkpoints(tmp_path / "checkpoints").save(small_model, 2)
    load = np.load

    def load_and_ask_to_stop(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return load(*args, **kwargs)

    monkeypatch.setattr(np, "load", load_and_ask_to_stop)
    with pytest.raises(stopping.Stopped), stopping.signals():
        fit(make_model(seed=1), tmp_path, STEPS)


def test_a_second_signal_does_not_wait_for_the_checkpoint(
    tmp_path, monkeypatch
):
    def ask_twice(file, **arrays):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("it waited")

    monkeypatch.setattr(np, "savez", ask_twice)
    with pytest.raises(stopping.Stopped), stopping.signals():
        fit(make_model(seed=1), tmp_path, STEPS, minutes=0)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_figures_stay_on_the_device_until_they_are_shown(tmp_path, monkeypatch):
    # To fetch one is to wait for the device, at each step.
    fetched = []
    eager = next(c for c in type(tf.constant(0)).__mro__ if "_numpy" in vars(c))
    original = eager._numpy

    def count(tensor):
        if tensor.dtype.is_floating:
            fetched.append(tensor)
        return original(tensor)

    counts = {}

    class Counter(curves.Watcher):
        def step(self, step, figures):
            counts[step] = len(fetched)
            if step == 31:
                assert set(figures()) > {"loss", "labeled_loss"}
                counts["shown"] = len(fetched) - counts[step]
            fetched.clear()

    monkeypatch.setattr(eager, "_numpy", count)
    trainer.fit(
        make_model(seed=1),
        make_batches,
        steps=2 * curves.LINES,
        checkpoints=Checkpoints(tmp_path / "checkpoints"),
        checkpoint_minutes=60,
        metrics_path=tmp_path / "metrics.jsonl",
        watcher=Counter(),
    )
    shown = counts.pop("shown")
    assert shown
    for step, count in counts.items():
        # A line every other step: the figures and the learning rate.
        assert bool(count) == (step % 2 == 0), (step, count)


def test_a_loss_that_nobody_reads_is_checked_now_and_then(
    tmp_path, monkeypatch
):
    clock = iter(range(1000))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    guard = StopAtNonFinite(Checkpoints(tmp_path), first_step=100)
    guard.on_train_batch_end(0, {"loss": tf.constant(1.0)})
    guard.on_train_batch_end(1, {"loss": tf.constant(np.inf)})
    with pytest.raises(UserError, match="the loss is inf at step 102"):
        for batch in range(2, 30):
            guard.on_train_batch_end(batch, {"loss": tf.constant(np.nan)})


def test_restores_into_a_second_model_of_the_process(small_model, tmp_path):
    # In a notebook, where nobody resets the names that Keras counts.
    Checkpoints(tmp_path).save(small_model, 1)
    model = make_model(seed=2, new_process=False)
    assert Checkpoints(tmp_path).restore(model) == 1
    assert_same_bits(model, state_of(small_model))


def test_half_a_line_of_metrics_is_dropped(tmp_path):
    # The run was killed in the middle of a report.
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "lo')
    assert curves.begin_curves(path, 1) == [{"step": 1, "loss": 2.5}]
    assert reported_steps(tmp_path) == [1]


def test_metrics_are_means_since_the_line_before(tmp_path):
    # A rate of 0 and no noise: the loss of every step can be had again.
    pixels = keras.Input((IMAGE_SIZE, IMAGE_SIZE, 3))
    x = keras.layers.Rescaling(1 / 255)(pixels)
    x = keras.layers.Dense(NUM_CLASSES)(keras.layers.Flatten()(x))
    model = trainer.make_trainable(
        keras.Model(pixels, x),
        learning_rate=0.0,
        num_labeled=4,
        unlabeled_ratio=0.5,
    )
    steps = 2 * curves.LINES
    fit(model, tmp_path, steps)
    labeled, unlabeled = [], []
    for images, targets in make_batches(0).take(steps):
        rows = keras.losses.categorical_crossentropy(
            targets, model(images), from_logits=True
        ).numpy()
        labeled.append(rows[:4].mean())
        unlabeled.append(rows[4:].mean())
    assert np.std(labeled) > 0.01, f"losses {labeled} show nothing"
    # Lines of two steps each.
    labeled = np.reshape(labeled, (-1, 2)).mean(-1)
    unlabeled = np.reshape(unlabeled, (-1, 2)).mean(-1)
    assert reported_steps(tmp_path) == list(range(2, steps + 1, 2))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    for number, line in enumerate(map(json.loads, lines)):
        expected = {
            "loss": labeled[number] + 0.5 * unlabeled[number],
            "labeled_loss": labeled[number],
            "unlabeled_loss": unlabeled[number],
            "lr": 0,
        }
        found = {name: line[name] for name in expected}
        assert found == pytest.approx(expected, rel=1e-4), f"line {number}"


def test_weight_decay_spares_batch_normalization_alone():
    network = efficientnet.build_model(
        "b0", NUM_CLASSES, image_size=8, width=0.1, depth=0.1
    )
    model = trainer.make_trainable(network, learning_rate=0.1, num_labeled=4)
    expected = {
        weight.path
        for layer in network.layers
        if isinstance(layer, keras.layers.BatchNormalization)
        for weight in layer.trainable_weights
    }
    # Of the stem, the top, two in the first block and three in six others.
    assert len(expected) == 2 * (1 + 1 + 2 + 6 * 3), len(expected)
    excluded = set(model.optimizer.l2_excluded)
    assert excluded == expected, sorted(excluded ^ expected)
