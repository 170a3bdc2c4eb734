# SPDX-License-Identifier: Apache-2.0
"""Filter and balance: exact counts, and the surest images first."""

import numpy as np
import pytest

from noisy_student.pseudo_labels import selection


def select(confidence, predicted_class, **changes):
    settings = {
        "num_classes": 3,
        "threshold": 0.3,
        "images_per_class": 4,
        "seed": 0,
    }
    return selection.select(
        confidence, predicted_class, **{**settings, **changes}
    )


def test_by_hand():
    #             class 0: 3 kept of 4         class 1: 5 kept, too many
    confidence = [0.9, 0.3, 0.5, 0.4, 0.31, 0.99, 0.6, 0.8, 0.7]
    classes = [0, 0, 0, 0, 1, 1, 1, 1, 1]
    copies = select(confidence, classes)
    assert copies.dtype == np.uint32
    assert copies[1] == 0  # at the threshold is not above it
    assert sorted(copies[[0, 2, 3]]) == [1, 1, 2]
    assert list(copies[4:]) == [0, 1, 1, 1, 1]  # the four surest


def test_equal_confidences_are_ranked_by_position():
    copies = select([0.5] * 6, [2] * 6)
    assert list(copies) == [1, 1, 1, 1, 0, 0]


def test_no_prediction_is_never_selected():
    confidence = [np.nan, 0.9, np.nan]
    for threshold in (0.0, 0.3):
        for images_per_class in (None, 5):
            copies = select(
                confidence,
                [0, 0, 0],
                threshold=threshold,
                images_per_class=images_per_class,
            )
            assert list(copies > 0) == [False, True, False]


def test_without_balancing_what_passes_counts_once():
    copies = select([0.9, 0.2, 0.4], [0, 0, 1], images_per_class=None)
    assert list(copies) == [1, 0, 1]


@pytest.mark.parametrize("images_per_class", [1, 7, 50, 1000])
def test_every_class_with_an_image_gets_exactly_its_number(images_per_class):
    rng = np.random.default_rng(1)
    confidence = rng.uniform(size=2000).astype(np.float16)
    classes = rng.integers(0, 9, 2000)  # class 9 of 10 stays empty
    copies = select(
        confidence,
        classes,
        num_classes=10,
        images_per_class=images_per_class,
    )
    for k in range(9):
        mine = classes == k
        assert copies[mine].sum() == images_per_class
        chosen, kept = mine & (copies > 0), mine & (confidence > 0.3)
        assert not (chosen & ~kept).any()
        # Copies of one class differ by one at most, so none dominates.
        assert np.ptp(copies[chosen].astype(int)) <= 1
        # No image is left out while a less sure one is in.
        left_out = kept & ~chosen
        if left_out.any():
            assert confidence[left_out].max() <= confidence[chosen].min()
    assert copies[classes == 9].sum() == 0


def test_the_seed_decides_who_is_shown_once_more():
    confidence, classes = np.full(300, 0.9), np.zeros(300, int)
    settings = {"num_classes": 1, "images_per_class": 450}
    first = select(confidence, classes, **settings)
    assert (first == select(confidence, classes, **settings)).all()
    other = select(confidence, classes, seed=1, **settings)
    assert (first != other).sum() > 50
    assert other.sum() == first.sum() == 450


def test_average_per_class_keeps_a_pass_as_long():
    confidence = [0.9, 0.8, 0.7, 0.6, 0.5, 0.1, np.nan]
    classes = [0, 0, 0, 0, 2, 1, 1]
    average = selection.average_per_class(
        confidence, classes, num_classes=4, threshold=0.3
    )
    assert average == 3  # 5 images, 2 classes, rounded up
    assert (
        selection.average_per_class(
            confidence, classes, num_classes=4, threshold=1.0
        )
        == 0
    )
