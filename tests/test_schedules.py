# SPDX-License-Identifier: Apache-2.0
"""The learning rate is the official one, from step 0 to the last."""

import json
import math

import keras
import numpy as np
import pytest
from conftest import BUNDLED

from noisy_student.training import schedules


def rates(schedule, steps):
    return [float(schedule(step)) for step in steps]


@pytest.mark.parametrize("number", (0, 1))
def test_equals_the_official_rates(number):
    folder = BUNDLED / "optimizer"
    settings = json.loads((folder / "learning_rate.json").read_text())[number]
    with np.load(folder / "learning_rate.npz") as file:
        steps, expected = file[f"steps_{number}"], file[f"lr_{number}"]
    settings.pop("total_epochs")
    schedule = schedules.exponential_decay(**settings)
    np.testing.assert_allclose(rates(schedule, steps), expected, rtol=1e-5)


def test_by_hand():
    # 100 steps an epoch: a warm-up of 500 steps, stairs of 240.
    schedule = schedules.exponential_decay(
        0.1, 100, decay_factor=0.97, decay_epochs=2.4, warmup_epochs=5
    )
    expected = {
        0: 0.0,
        1: 0.1 / 500,
        250: 0.05,
        499: 0.1 * 499 / 500,
        # Stairs count from step 0: two are over when the warm-up ends.
        500: 0.1 * 0.97**2,
        719: 0.1 * 0.97**2,
        720: 0.1 * 0.97**3,
    }
    np.testing.assert_allclose(
        rates(schedule, expected), list(expected.values()), rtol=1e-5
    )


def test_without_warmup_the_first_stair_starts_at_the_peak():
    schedule = schedules.exponential_decay(
        0.1, 100, decay_factor=0.9, decay_epochs=2.4, warmup_epochs=0
    )
    np.testing.assert_allclose(
        rates(schedule, (0, 239, 240)), (0.1, 0.1, 0.09), rtol=1e-6
    )


def test_warmup_takes_whole_steps():
    # 2 epochs of 3.75 steps; the official code cuts 7.5 to 7.
    schedule = schedules.exponential_decay(
        0.1, 3.75, decay_epochs=100, warmup_epochs=2
    )
    np.testing.assert_allclose(
        rates(schedule, (1, 6, 7)), (0.1 / 7, 0.6 / 7, 0.1), rtol=1e-6
    )


def test_final_lr_on_svhn():
    # The official run: 0.016 per 256 images falls to 0.0002.
    num_images, batch_size, train_steps = 69257, 128, 109474
    schedule = schedules.exponential_decay(
        0.016 * batch_size / 256,
        num_images / batch_size,
        decay_epochs=999,
        final_lr=0.0002 * batch_size / 256,
        total_epochs=train_steps / (num_images / batch_size),
    )
    # 143.87 factors of 0.97 make 1 / 80, in 202.33 epochs less 5 of warm-up.
    stairs = math.log(80) / -math.log(0.97)
    expected = (train_steps * batch_size / num_images - 5) / stairs
    assert expected == pytest.approx(1.3716, abs=1e-4)
    assert schedule.decay_epochs == pytest.approx(expected, rel=1e-12)
    # 202.33 / 1.3716 = 147.5 stairs are over at the end: the official rate
    # passes 1e-4, because the warm-up is not left out of them.
    last = float(schedule(train_steps - 1))
    assert last == pytest.approx(0.008 * 0.97**147, rel=1e-5)


@pytest.mark.parametrize("steps_per_epoch", (50, 7.8125))
def test_final_lr_is_reached_at_the_end(steps_per_epoch):
    factor, total_epochs = 0.97, 200
    schedule = schedules.exponential_decay(
        0.008,
        steps_per_epoch,
        decay_factor=factor,
        final_lr=1e-4,
        total_epochs=total_epochs,
        warmup_epochs=0,
    )
    # ln(1e-4 / 0.008) / ln 0.97
    assert total_epochs / schedule.decay_epochs == pytest.approx(143.86542)
    last = float(schedule(int(steps_per_epoch * total_epochs) - 1))
    # On the stair just above the value: 143 of 143.87 stairs down.
    assert last == pytest.approx(0.008 * factor**143, rel=1e-5)
    assert 1e-4 <= last < 1e-4 / factor, f"ends at {last}"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"final_lr": 0.1}, "final_lr=0.1 must be below base_lr=0.1"),
        ({"final_lr": 0.2}, "final_lr=0.2 must be below base_lr=0.1"),
        ({"decay_factor": 1.0}, "decay_factor=1.0 never leads to final_lr"),
    ],
)
def test_final_lr_out_of_reach(settings, message):
    good = {"final_lr": 0.01, "total_epochs": 20}
    schedules.exponential_decay(0.1, 100, **good)
    with pytest.raises(ValueError, match=message):
        schedules.exponential_decay(0.1, 100, **(good | settings))


def test_the_last_steps_of_a_schedule():
    # 10 steps an epoch: a warm-up of 50 steps, stairs of 24.
    whole = schedules.exponential_decay(0.1, 10)
    for first_step in (30, 700):  # in the warm-up, and far behind it
        last = schedules.exponential_decay(0.1, 10, first_step=first_step)
        found = rates(last, range(100))
        assert found == rates(whole, range(first_step, first_step + 100))
    assert found[0] == pytest.approx(0.1 * 0.97**29)  # 700 / 24 = 29.2


@pytest.mark.parametrize("dtype", ("int32", "int64"))
def test_takes_the_counters_of_optimizers(dtype):
    schedule = schedules.exponential_decay(0.1, 100)
    step = keras.ops.convert_to_tensor(250, dtype)
    assert float(schedule(step)) == pytest.approx(0.05, rel=1e-6)


def test_config_round_trip():
    schedule = schedules.exponential_decay(
        0.3,
        12.5,
        decay_factor=0.9,
        decay_epochs=1.5,
        warmup_epochs=2,
        first_step=7,
    )
    config = json.loads(
        json.dumps(keras.optimizers.schedules.serialize(schedule))
    )
    again = keras.optimizers.schedules.deserialize(config)
    assert type(again) is schedules.ExponentialDecay
    assert again.get_config() == schedule.get_config()
    steps = (0, 10, 24, 25, 60)
    assert rates(again, steps) == rates(schedule, steps)
