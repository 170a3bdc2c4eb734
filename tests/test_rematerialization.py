# SPDX-License-Identifier: Apache-2.0
"""A network that computes its blocks again trains like one that does not."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from noisy_student.models import efficientnet
from noisy_student.models import rematerialization
from noisy_student.models import stochastic_depth
from noisy_student.training import trainer

CLASSES = 3
LABELED, UNLABELED = 4, 8


@pytest.fixture(autouse=True)
def two_blocks(monkeypatch):
    """Networks of two blocks, the second with a skip connection.

    Most of the time goes into tracing them.
    """
    monkeypatch.setattr(efficientnet, "STAGES", efficientnet.STAGES[1:2])


def build(dtype="float32"):
    keras.utils.set_random_seed(0)
    return efficientnet.build_model(
        "b0",
        CLASSES,
        image_size=16,
        width=0.25,
        depth=1.0,
        dropout_rate=0.3,
        stochastic_depth_rate=0.8,
        batch_norm_momentum=0.9,
        dtype=dtype,
    )


def trained(rematerialize, replicas=1, steps=1, dtype="float32", **settings):
    """The state after two steps, by name, and the logs."""
    network = build(dtype)
    forward = None
    if rematerialize:
        forward = rematerialization.rematerialized(network)
    labeled = LABELED // replicas // steps
    # Noise on labeled images alone: their rows must be the same ones again.
    stochastic_depth.direct_noise(
        network, stochastic_depth.StochasticDepth, slice(0, labeled)
    )
    model = trainer.make_trainable(
        network,
        learning_rate=0.05,
        num_labeled=labeled,
        unlabeled_ratio=2.0,
        accumulation_steps=steps,
        forward=forward,
        **settings,
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


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert any("seed_generator" in name for name in expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_trains_to_the_same_bits():
    # Weights, averages, moving statistics (moved once), seeds of the noise.
    expected, logs = trained(False)
    found, found_logs = trained(True)
    assert found_logs == logs
    assert_same(found, expected)


def test_together_with_bfloat16_parts_and_two_replicas(two_replicas):
    settings = {"replicas": 2, "steps": 2, "dtype": "bfloat16"}
    with two_replicas.scope():
        expected, logs = trained(False, **settings)
        found, found_logs = trained(True, **settings)
    assert found_logs == logs
    assert_same(found, expected)
