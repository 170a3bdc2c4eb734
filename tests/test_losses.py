# SPDX-License-Identifier: Apache-2.0
"""The mixed loss is the official one, on one device and on several."""

import json

import numpy as np
import pytest
import tensorflow as tf

from noisy_student.training import losses

GOLDEN_CASES = (
    "supervised",
    "supervised_no_smoothing",
    "soft_stored_T1",
    "soft_teacher_T1",
    "soft_stored_T2",
    "soft_teacher_T2",
    "hard_stored",
    "hard_teacher",
    "soft_teacher_T1_fractional_ratio",
    "hard_stored_fractional_ratio",
)

# Probabilities of the first row 1/8, 2/8, 5/8; of the second .6, .2, .2.
LOGITS = np.log([[1, 2, 5], [3, 1, 1]]).astype("float32")
TARGETS = np.array([[0, 1, 0], [0.5, 0.5, 0]], "float32")
FIRST_ROW = 1.386294  # ln 4
SECOND_ROW = 1.060132  # -(ln .6 + ln .2) / 2


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def smooth(labels, num_classes, label_smoothing):
    """One distribution for each label, (N, C), as the official code says."""
    one_hot = np.eye(num_classes, dtype="float32")[np.asarray(labels)]
    return one_hot * (1 - label_smoothing) + label_smoothing / num_classes


def read_case(golden, name):
    """Settings of a golden case, its arrays, and the targets they imply."""
    cases = json.loads((golden / "loss" / "index.json").read_text())
    settings = next(case for case in cases if case["name"] == name)
    with np.load(golden / "loss" / "losses.npz") as file:
        arrays = {
            key.removeprefix(name + "/"): file[key]
            for key in file.files
            if key.startswith(name + "/")
        }
    temperature = settings["teacher_softmax_temp"]
    hard = arrays.get("pseudo_labels")
    soft = None
    if "stored_probabilities" in arrays:
        soft = arrays["stored_probabilities"] ** (1 / temperature)
        soft /= soft.sum(-1, keepdims=True)
    elif "teacher_logits" in arrays:
        teacher_logits = arrays["teacher_logits"][settings["labeled"] :]
        if temperature == -1:
            hard = teacher_logits.argmax(-1)
        else:
            soft = softmax(teacher_logits / temperature)
    labels = arrays["labels"] if hard is None else [*arrays["labels"], *hard]
    targets = smooth(
        labels, settings["num_classes"], settings["label_smoothing"]
    )
    if soft is not None:
        targets = np.concatenate([targets, soft]).astype("float32")
    return settings, arrays, targets


@pytest.mark.parametrize("batch", ("known", "unknown"))
@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_equals_the_official_loss_and_gradient(golden, name, batch):
    settings, arrays, targets = read_case(golden, name)
    loss_fn = losses.mixed_cross_entropy(
        settings["labeled"], settings["unlabel_ratio"]
    )

    def loss_and_gradient(targets, logits):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            loss = tf.reduce_mean(loss_fn(targets, logits))
        return loss, tape.gradient(loss, logits)

    if batch == "unknown":
        rows = tf.TensorSpec((None, settings["num_classes"]))
        loss_and_gradient = tf.function(
            loss_and_gradient, input_signature=(rows, rows)
        )
    loss, gradient = loss_and_gradient(
        tf.constant(targets), tf.constant(arrays["logits"])
    )
    expected = arrays["data_loss"]
    assert abs(loss - expected) < 5e-6, f"{loss} instead of {expected}"
    error = np.abs(gradient - arrays["grad_data_loss_wrt_logits"]).max()
    assert error < 5e-6, f"gradient off by {error}"


@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_metrics_show_both_official_parts(golden, name):
    settings, arrays, targets = read_case(golden, name)
    mixed = settings["unlabeled"] > 0
    found = {}
    for metric in losses.mixed_metrics(settings["labeled"], mixed):
        metric.update_state(targets, arrays["logits"])
        found[metric.name] = float(metric.result())
    for part in ("labeled_loss", "unlabeled_loss"):
        assert (part in found) == (part in arrays), f"{name}: {sorted(found)}"
        if part in found:
            error = abs(found[part] - arrays[part])
            assert error < 5e-6, f"{part} {found[part]}, off by {error}"


def test_every_golden_case_is_tested(golden):
    cases = json.loads((golden / "loss" / "index.json").read_text())
    assert {case["name"] for case in cases} == set(GOLDEN_CASES)


def test_cross_entropy_by_hand():
    rows = losses.cross_entropy(TARGETS, LOGITS)
    np.testing.assert_allclose(rows, [FIRST_ROW, SECOND_ROW], rtol=1e-6)


def test_mixed_loss_by_hand():
    rows = losses.mixed_cross_entropy(1, 3.0)(TARGETS, LOGITS)
    # Keras takes the mean of the rows, so each carries its weight twice.
    expected = [2 * FIRST_ROW, 2 * 3 * SECOND_ROW]
    np.testing.assert_allclose(rows, expected, rtol=1e-6)
    # 1.386294 + 3 * 1.060132
    np.testing.assert_allclose(np.mean(rows), 4.566690, rtol=1e-6)


@pytest.mark.parametrize("dtype", ("float16", "bfloat16"))
def test_half_precision_logits_are_widened_first(dtype):
    # exp(12) does not fit float16, and bfloat16 has three digits.
    logits = tf.cast([[12.0, 0.0, -12.0]], dtype)
    rows = losses.cross_entropy([[0.0, 0.0, 1.0]], logits)
    assert rows.dtype == tf.float32, f"{rows.dtype} loss"
    # 24 + ln(1 + e^-12 + e^-24)
    np.testing.assert_allclose(rows, [24.0000061], rtol=1e-7)


def test_mean_over_two_replicas_is_the_loss_over_the_whole():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(10, 5)).astype("float32")
    targets = softmax(rng.normal(size=(10, 5))).astype("float32")
    whole = np.mean(losses.mixed_cross_entropy(4, 1.2)(targets, logits))
    # Each replica gets two of the four labeled rows, then three of the six.
    halves = [
        np.mean(losses.mixed_cross_entropy(2, 1.2)(targets[rows], logits[rows]))
        for rows in ([0, 1, 4, 5, 6], [2, 3, 7, 8, 9])
    ]
    assert abs(halves[0] - halves[1]) > 0.01, f"halves {halves} show nothing"
    np.testing.assert_allclose(np.mean(halves), whole, rtol=1e-6)


@pytest.mark.parametrize("label_smoothing", (0.0, 0.1))
def test_smoothed_labels_are_the_official_distributions(label_smoothing):
    # Here, so that the loss is tested without the pipeline.
    from noisy_student.data import pipelines

    for label in range(4):
        target = pipelines.smooth_one_hot(label, 4, label_smoothing)
        assert target.dtype == tf.float32
        assert np.sum(target) == pytest.approx(1, abs=1e-6)
        # What the golden cases above were built with.
        expected = smooth(label, 4, label_smoothing)
        np.testing.assert_allclose(target, expected, atol=1e-7)


def test_metrics_look_at_their_own_rows():
    # Two labeled rows, one of them right; three unlabeled rows, two in
    # agreement. The sure logits make the loss of a right row 0.
    classes = [0, 1, 2, 0, 1]
    predicted = [0, 2, 2, 0, 2]
    targets = np.eye(3, dtype="float32")[classes]
    logits = 100 * np.eye(3, dtype="float32")[predicted]
    found = {}
    for metric in losses.mixed_metrics(2, mixed=True):
        metric.update_state(targets, logits)
        found[metric.name] = float(metric.result())
    expected = {
        "labeled_loss": 100 / 2,
        "labeled_accuracy": 1 / 2,
        "unlabeled_loss": 100 / 3,
        "unlabeled_agreement": 2 / 3,
    }
    assert found == pytest.approx(expected, rel=1e-6), found
