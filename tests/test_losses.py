# SPDX-License-Identifier: Apache-2.0
"""The mixed loss is the official one, on one device and on several."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import BUNDLED

from noisy_student.training import losses
from noisy_student.training import online_teacher
from noisy_student.training import trainer

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


def read_case(name):
    """Settings of a golden case, its arrays, and the targets they imply."""
    cases = json.loads((BUNDLED / "loss" / "index.json").read_text())
    settings = next(case for case in cases if case["name"] == name)
    with np.load(BUNDLED / "loss" / "losses.npz") as file:
        arrays = {
            key.removeprefix(name + "/"): file[key]
            for key in file.files
            if key.startswith(name + "/")
        }
    targets = smooth(
        arrays["labels"], settings["num_classes"], settings["label_smoothing"]
    )
    unlabeled = unlabeled_targets(settings, arrays)
    if unlabeled is not None:
        targets = np.concatenate([targets, unlabeled])
    return settings, arrays, targets.astype("float32")


def unlabeled_targets(settings, arrays):
    """Targets (U, C) from whatever a golden case gives, or None."""
    temperature = settings["teacher_softmax_temp"]
    if "teacher_logits" in arrays:
        return online_teacher.teacher_targets(
            arrays["teacher_logits"][settings["labeled"] :],
            kind="hard" if temperature == -1 else "soft",
            temperature=temperature,
            label_smoothing=settings["label_smoothing"],
        )
    if "stored_probabilities" in arrays:
        powers = arrays["stored_probabilities"] ** (1 / temperature)
        return powers / powers.sum(-1, keepdims=True)
    if "pseudo_labels" in arrays:
        return smooth(
            arrays["pseudo_labels"],
            settings["num_classes"],
            settings["label_smoothing"],
        )
    return None


@pytest.mark.parametrize("batch", ("known", "unknown"))
@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_equals_the_official_loss_and_gradient(name, batch):
    settings, arrays, targets = read_case(name)
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


@pytest.mark.parametrize("ratio", (1.0, 2.5))
@pytest.mark.parametrize("weight", losses.WEIGHTS)
def test_the_three_weights_of_the_paper_and_the_code(weight, ratio):
    rng = np.random.default_rng(0)
    labeled = 4
    rows = labeled + int(labeled * ratio)
    targets = rng.dirichlet(np.ones(3), rows).astype("float32")
    logits = rng.normal(size=(rows, 3)).astype("float32")
    each = -(targets * (logits - np.log(np.exp(logits).sum(-1))[:, None])).sum(
        -1
    )
    first, second = each[:labeled].mean(), each[labeled:].mean()
    expected = {
        "ratio": first + ratio * second,
        "equal": first + second,
        "mean": each.mean(),
    }
    loss = losses.mixed_cross_entropy(labeled, ratio, weight)
    found = np.mean(loss(targets, logits))
    assert found == pytest.approx(expected[weight], rel=1e-6)
    # A teacher's batch has labeled images alone.
    alone = losses.mixed_cross_entropy(labeled, 0.0, weight)
    found = np.mean(alone(targets[:labeled], logits[:labeled]))
    assert found == pytest.approx(first, rel=1e-6)


def test_an_unknown_weight_is_refused():
    with pytest.raises(ValueError, match="weight must be one of"):
        losses.mixed_cross_entropy(4, 1.0, "official")


@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_metrics_show_both_official_parts(name):
    settings, arrays, targets = read_case(name)
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


@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_soft_targets_are_as_sure_as_the_official_ones(name):
    settings, arrays, targets = read_case(name)
    soft = settings["unlabeled"] > 0 and settings["teacher_softmax_temp"] != -1
    assert ("mean_max_target_prob" in arrays) == soft
    if soft:
        found = targets[settings["labeled"] :].max(-1).mean()
        error = abs(found - arrays["mean_max_target_prob"])
        assert error < 1e-6, f"{found}, off by {error}"


def decayed_weights(arrays):
    """The values of a golden case that our optimizer decays, and the others.

    A network gets the values as its weights; one step without any gradient
    then moves what has an L2 term of its own.
    """
    layers = [
        keras.Input((3,)),
        keras.layers.Dense(4, name="dense"),
        keras.layers.BatchNormalization(name="bn"),
    ]
    model = trainer.make_trainable(
        keras.Sequential(layers),
        learning_rate=1.0,
        weight_decay=0.1,
        num_labeled=1,
    )
    variables = model.network.trainable_weights
    names = {
        "dense/kernel": "wd_kernel",
        "dense/bias": "wd_bias",
        "bn/gamma": "wd_bn_gamma",
        "bn/beta": None,
    }
    names = [names["/".join(v.path.split("/")[-2:])] for v in variables]
    for variable, name in zip(variables, names, strict=True):
        variable.assign(arrays[name] if name else np.ones(variable.shape))
    before = [v.numpy() for v in variables]
    model.optimizer.apply([np.zeros_like(values) for values in before])
    moved = [
        bool((v.numpy() != values).any())
        for v, values in zip(variables, before, strict=True)
    ]
    return dict(zip(names, moved, strict=True))


def l2_loss(values):
    return float((values.astype("float64") ** 2).sum() / 2)


@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_l2_term_is_the_official_one_but_for_a_constant(name):
    settings, arrays, targets = read_case(name)
    decayed = decayed_weights(arrays)
    assert decayed == {
        "wd_kernel": True,
        "wd_bias": True,
        "wd_bn_gamma": False,
        None: False,  # the other weight of the BatchNormalization
    }
    terms = [l2_loss(arrays[key]) for key, moved in decayed.items() if moved]
    # Officially an online teacher's weights are in the sum, which no gradient
    # sees; they are not in ours.
    if settings["source"] == "teacher_logits":
        terms.append(l2_loss(arrays["wd_teacher_kernel"]))
    expected = arrays["total_loss"]
    term = settings["weight_decay"] * sum(terms)
    # No more than the rounding of a float32 sum: any term would show.
    error = abs(float(expected) - float(arrays["data_loss"]) - term)
    assert error <= np.spacing(expected), f"L2 term off by {error}"
    loss_fn = losses.mixed_cross_entropy(
        settings["labeled"], settings["unlabel_ratio"]
    )
    total = np.mean(loss_fn(targets, arrays["logits"])) + term
    assert abs(total - expected) < 5e-6, f"{total} instead of {expected}"


def test_every_golden_case_is_tested():
    cases = json.loads((BUNDLED / "loss" / "index.json").read_text())
    assert {case["name"] for case in cases} == set(GOLDEN_CASES)


def test_the_bundled_files_are_the_golden_ones(golden):
    for name in ("index.json", "losses.npz"):
        bundled = (BUNDLED / "loss" / name).read_bytes()
        assert bundled == (golden / "loss" / name).read_bytes(), name


def test_teacher_targets_by_hand():
    # Probabilities of T = 1 as above; of T = 1/2 their squares.
    soft = online_teacher.teacher_targets(LOGITS)
    np.testing.assert_allclose(
        soft, [[1 / 8, 2 / 8, 5 / 8], [0.6, 0.2, 0.2]], rtol=1e-6
    )
    for temperature in (0.01, 0.05, 100.0):
        for logits in (LOGITS, 50 * LOGITS, 0 * LOGITS - 60):
            found = online_teacher.teacher_targets(
                logits, temperature=temperature
            )
            np.testing.assert_allclose(np.sum(found, axis=-1), 1, atol=1e-5)
    sharp = online_teacher.teacher_targets(LOGITS, temperature=0.5)
    np.testing.assert_allclose(sharp[0], np.array([1, 4, 25]) / 30, rtol=1e-6)
    hard = online_teacher.teacher_targets(
        LOGITS, kind="hard", label_smoothing=0.3
    )
    np.testing.assert_allclose(
        hard, [[0.1, 0.1, 0.8], [0.8, 0.1, 0.1]], rtol=1e-6
    )
    for targets in (soft, hard):
        assert targets.dtype == tf.float32
    with pytest.raises(ValueError, match="soft or hard, not 'both'"):
        online_teacher.teacher_targets(LOGITS, kind="both")


@pytest.mark.parametrize("kind", ("soft", "hard"))
def test_no_gradient_reaches_the_teacher(kind):
    logits = tf.Variable(LOGITS.astype("float16"))
    with tf.GradientTape() as tape:
        targets = online_teacher.teacher_targets(logits, kind=kind)
        loss = tf.reduce_sum(targets**2)
    assert targets.dtype == tf.float32
    assert tape.gradient(loss, logits) is None


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
