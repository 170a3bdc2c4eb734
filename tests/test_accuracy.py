# SPDX-License-Identifier: Apache-2.0
"""Accuracy counts every image once, however they are cut into batches."""

import numpy as np
import pytest

from noisy_student.evaluation import accuracy
from noisy_student.evaluation.accuracy import Accuracy


@pytest.mark.parametrize("batch_size", [1, 4, 10, 64])
def test_equals_numpy_over_all_images(batch_size):
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(20), 101).astype(np.float32)
    labels = rng.integers(0, 20, 101)
    order = np.argsort(-probs, axis=1, kind="stable")
    counts = Accuracy()
    for start in range(0, 101, batch_size):
        rows = slice(start, start + batch_size)
        counts.update(probs[rows], labels[rows])
    assert counts.result() == {
        "top1": (order[:, 0] == labels).mean(),
        "top5": (order[:, :5] == labels[:, None]).any(axis=1).mean(),
        "num_examples": 101,
    }


def test_images_without_prediction_do_not_count():
    counts = Accuracy()
    counts.update(np.array([[np.nan, np.nan], [0.9, 0.1]]), np.array([-1, 0]))
    assert counts.result() == {"top1": 1, "top5": 1, "num_examples": 1}


def test_a_tie_is_won_by_the_lower_class_alone():
    # Uniform predictions must not look right: only class 0 wins this tie.
    counts = Accuracy()
    counts.update(np.full((10, 10), 0.1), np.arange(10))
    assert counts.result() == {"top1": 0.1, "top5": 0.5, "num_examples": 10}


def test_nothing_to_evaluate():
    assert Accuracy().result()["top1"] is None


def test_chance_is_that_of_the_same_answers_in_random_order():
    rng = np.random.default_rng(0)
    labels = rng.choice(3, 60, p=[0.7, 0.2, 0.1])
    answers = rng.choice(3, 60, p=[0.5, 0.1, 0.4])
    right = [(rng.permutation(answers) == labels).sum() for _ in range(5000)]
    mean, deviation = accuracy.chance(labels, answers)
    assert mean == pytest.approx(np.mean(right), rel=0.01)
    assert deviation == pytest.approx(np.std(right), rel=0.03)


def test_one_answer_to_all_is_chance():
    labels = np.repeat([0, 1], [70, 30])
    mean, deviation = accuracy.chance(labels, np.zeros(100, int))
    assert (mean, deviation) == (pytest.approx(70), 0)
