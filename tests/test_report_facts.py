# SPDX-License-Identifier: Apache-2.0
"""The numbers of the report, without the page."""

import numpy as np
import pytest
from scipy import stats

from noisy_student.evaluation import accuracy
from noisy_student.evaluation import predictions
from noisy_student.evaluation.accuracy import Accuracy
from noisy_student.reporting.report import facts
from noisy_student.reporting.report import labels
from noisy_student.reporting.report import mistakes
from noisy_student.reporting.report import plots
from noisy_student.reporting.report import words

ABOUT = {"name": "a", "fingerprint": "f" * 64, "classes": ["a", "b", "c"]}


def answers(label, guess, sure=None):
    """`Predictions` of a model that says `guess`."""
    sure = np.full(len(label), 0.9) if sure is None else np.array(sure)
    classes = np.array(guess, np.uint8)[:, None]
    probs = sure.astype(np.float16)[:, None]
    return predictions.Predictions(
        np.array(label, np.uint8), classes, probs, ABOUT
    )


def test_answers_agree_with_the_accuracy_that_was_counted(tmp_path):
    rng = np.random.default_rng(0)
    probs = rng.random((3000, 300)).astype(np.float32)
    probs[:500] = np.round(probs[:500], 1)  # many equal ones
    probs[7] = np.nan
    labels_ = rng.integers(0, 300, 3000)
    labels_[::3] = probs[::3].argmax(axis=1)
    labels_[7] = -1
    accuracy = Accuracy()
    accuracy.update(probs, labels_)
    path = predictions.path_of(tmp_path, "0123456789")
    predictions.save(path, [(labels_, *predictions.surest(probs))], ABOUT)
    found = predictions.load(path)
    counted = accuracy.result()
    assert found.decoded.sum() == counted["num_examples"] == 2999
    assert found.right.sum() == accuracy.num_top1
    (model,) = facts.models(
        [{"phase": "teach", "iteration": 0, "variant": "b0", **counted}],
        {("teach", 0): found},
    )
    assert (model["top1"], model["top5"]) == (counted["top1"], counted["top5"])
    assert found.about == ABOUT and path.name == "predictions-01234567.npz"


def test_the_same_answers_are_the_same_bytes_and_few(tmp_path):
    rng = np.random.default_rng(0)
    probs = rng.random((1000, 1000)).astype(np.float32)
    row = (rng.integers(0, 1000, 1000), *predictions.surest(probs))
    files = []
    for name in "ab":
        path = tmp_path / name
        predictions.save(path, [row], ABOUT)
        files.append(path.read_bytes())
    assert files[0] == files[1]
    # Two bytes for the label, and two each for 5 classes and probabilities.
    assert len(files[0]) < 1000 * 22 + 2000


@pytest.mark.parametrize("right", [0, 1, 445, 500])
def test_intervals_are_those_of_clopper_and_pearson(right):
    low, high = accuracy.interval(right, 500)
    # Their definition: at either end, 2.5 % of chance for what was seen or
    # more extreme.
    assert right == 0 or stats.binom.sf(right - 1, 500, low) == pytest.approx(
        0.025
    )
    assert right == 500 or stats.binom.cdf(right, 500, high) == pytest.approx(
        0.025
    )
    assert (low == 0) == (right == 0) and (high == 1) == (right == 500)


def test_luck_is_the_sign_test():
    assert facts.luck(0, 0) is None
    assert facts.luck(0, 5) == pytest.approx(2 / 2**5)
    assert facts.luck(4, 4) == 1


def test_labels_are_counted_over_shards():
    nan = np.nan
    shards = [
        (np.float32([0.2, 0.9, nan]), np.array([0, 1, 0]), np.array([0, 2, 0])),
        (np.float32([0.31, 1.0]), np.array([1, 2]), np.array([0, 1])),
    ]
    counts = labels.count(shards, 4, threshold=0.3)
    assert counts["num_images"] == 5 and counts["num_undecodable"] == 1
    assert counts["predicted"].tolist() == [1, 2, 1, 0]
    assert counts["above"].tolist() == [0, 2, 1, 0]
    assert counts["kept"].tolist() == [0, 1, 1, 0]
    assert counts["selected"].tolist() == [0, 2, 1, 0]
    assert counts["histogram"].sum() == 4
    assert counts["histogram"][-1] == 1  # a confidence of 1
    below = labels.count(shards, 4, threshold=0.3, ceiling=0.95)
    assert below["above"].tolist() == [0, 2, 0, 0]


def test_the_surest_and_the_least_sure_are_shown():
    confidence = np.float32([0.5, 0.9, 0.8, 0.7, 0.6, 0.2, 0.1])
    shard = (3, confidence, np.zeros(7, int), np.uint32([1, 1, 2, 1, 1, 0, 0]))
    chosen = labels.choose_images([shard], [0, 1], 0.3, each=2)
    rows = {k: [i["row"] for i in images] for k, images in chosen[0].items()}
    none = dict.fromkeys(rows, [])
    assert rows == none | {"sure": [1, 2], "unsure": [0, 4], "dropped": [5, 6]}
    assert chosen[0]["sure"][1]["copies"] == 2
    assert chosen[1] == none


@pytest.mark.parametrize(
    ("limits", "left_out", "dropped"),
    [
        ((0.25,), [1, 3, 4], [5, 6]),
        ((0.5,), [1], [3, 4, 5, 6]),  # 0.5 is not above 0.5
        ((0.5, None, True), [1, 3], [4, 5, 6]),
        ((0.25, 0.75), [3, 4], [1, 5, 6]),
    ],
)
def test_what_balancing_leaves_out_was_confident_enough(
    limits, left_out, dropped
):
    """Another threshold would not bring it back."""
    confidence = np.float32([1, 0.8, 0.7, 0.5, 0.4, 0.2, 0.1])
    shard = (0, confidence, np.zeros(7, int), np.uint32([1, 0, 1, 0, 0, 0, 0]))
    chosen = labels.choose_images([shard], [0], *limits)
    rows = {k: [i["row"] for i in images] for k, images in chosen[0].items()}
    assert (rows["left_out"], rows["dropped"]) == (left_out, dropped)


def test_classes_are_chosen_by_the_rule_that_the_page_states():
    predicted = np.arange(40)
    mean = np.linspace(0.9, 0.2, 40)
    mean[0] = np.nan  # without an image
    chosen = labels.choose_classes(
        {"predicted": predicted, "mean_confidence": mean}
    )
    assert len(chosen) == labels.ALL_CLASSES
    assert set(chosen) >= {39, 38, 37, 1, 2, 3, 36, 35} and 0 not in chosen


def test_candidates_are_few_and_spread():
    few = labels.candidate_shards([512] * 10)
    assert few == list(range(10))
    many = labels.candidate_shards([512] * 1000)
    assert len(many) == labels.CANDIDATES // 512
    assert many[-1] > 900
    assert labels.candidate_shards([10**7] * 3) == [0]


def test_mistakes_are_counted():
    found = answers([0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 2, 2],
                    [0.9, 0.5, 0.8, 0.9, 0.7, np.nan])  # fmt: skip
    table = mistakes.confusion(found, 3)
    assert table.tolist() == [[1, 2, 0], [0, 1, 1], [0, 0, 0]]
    assert mistakes.confused_pairs(found, 3) == [(0, 1, 2), (1, 2, 1)]
    assert mistakes.surest_mistakes(found, 2) == [2, 4]
    worst = mistakes.worst_classes(found, 3)
    assert [(w["number"], w["num_right"], w["taken_for"]) for w in worst] == [
        (0, 1, 1), (1, 1, 2),
    ]  # fmt: skip


def test_teacher_and_student_are_compared():
    label = [0, 0, 0, 0, 1]
    teacher = answers(label, [0, 1, 0, 1, 2])
    student = answers(label, [0, 0, 1, 1, 0])
    found = mistakes.compare(teacher, student, 9)
    kinds = ("both_right", "learned", "lost", "both_wrong", "agree")
    assert [found[kind] for kind in kinds] == [1, 1, 1, 2, 2]
    assert found["examples_learned"] == [1] and found["examples_lost"] == [2]
    assert found["examples_disputed"] == [4]


def test_curves_leave_out_what_is_half_written_or_not_finite():
    text = (
        '{"step": 1, "labeled_loss": 2.0}\n'
        '{"step": 2, "labeled_loss": NaN, "unlabeled_loss": 1}\n'
        '{"step": 3, "labeled_lo'
    )
    assert facts.curve(text) == {
        "labeled_loss": [(1, 2.0)],
        "unlabeled_loss": [(2, 1)],
    }


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.8592, 0.962), (0, 950), (3, 3), (0, 1e-9)]
)
def test_axes_hold_what_they_show_at_round_numbers(low, high):
    axis = plots.Axis(low, high)
    assert axis.low <= low and high <= axis.high
    assert 2 <= len(axis.ticks) <= 8
    assert 0 <= axis.at(low) <= axis.at(high) <= 100


def test_numbers_are_spelled_for_people():
    assert words.percent(0.9444) == "94.4%" and words.percent(None) == "–"
    assert words.count(130_000_000) == "130 M" and words.count(947) == "947"
    assert words.duration(59) == "59 s" and words.duration(3700) == "1 h 01 min"
    assert words.plural(1, "class") == "1 class"
    assert words.plural(2, "class") == "2 classes"
