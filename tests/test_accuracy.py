# SPDX-License-Identifier: Apache-2.0
"""Accuracy counts every image once, however they are cut into batches."""

import numpy as np
import pytest

from noisy_student.evaluation.accuracy import Accuracy


@pytest.mark.parametrize("batch_size", [1, 4, 10, 64])
def test_equals_numpy_over_all_images(batch_size):
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(20), 101).astype(np.float32)
    labels = rng.integers(0, 20, 101)
    order = np.argsort(-probs, axis=1, kind="stable")
    accuracy = Accuracy()
    for start in range(0, 101, batch_size):
        rows = slice(start, start + batch_size)
        accuracy.update(probs[rows], labels[rows])
    assert accuracy.result() == {
        "top1": (order[:, 0] == labels).mean(),
        "top5": (order[:, :5] == labels[:, None]).any(axis=1).mean(),
        "num_examples": 101,
    }


def test_images_without_prediction_do_not_count():
    accuracy = Accuracy()
    accuracy.update(np.array([[np.nan, np.nan], [0.9, 0.1]]), np.array([-1, 0]))
    assert accuracy.result() == {"top1": 1, "top5": 1, "num_examples": 1}


def test_a_tie_is_won_by_the_lower_class_alone():
    # Uniform predictions must not look right: only class 0 wins this tie.
    accuracy = Accuracy()
    accuracy.update(np.full((10, 10), 0.1), np.arange(10))
    assert accuracy.result() == {"top1": 0.1, "top5": 0.5, "num_examples": 10}


def test_nothing_to_evaluate():
    assert Accuracy().result()["top1"] is None
