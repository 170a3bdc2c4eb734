# SPDX-License-Identifier: Apache-2.0
"""Three whole training steps of the official code, variable by variable.

The golden file continues an official checkpoint (raw weights, averages, slots
of the optimizer, step 12345) on one batch of 4 labeled and 4 pseudo-labeled
images, without noise: it sees network, loss, gradients, L2 term, optimizer,
schedule, BatchNormalization's statistics and averages work together.
"""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from noisy_student.models import efficientnet
from noisy_student.models import import_weights
from noisy_student.training import averaging
from noisy_student.training import losses
from noisy_student.training import schedules
from noisy_student.training import trainer

EMA = "/ExponentialMovingAverage"
# The rate is 0.1, so that each step magnifies a difference by about ten: when
# all weights are changed by 1e-7 before the first step, the logits of the three
# steps change by 4e-6, 1e-4 and 8e-4. Found are 9e-6, 1.4e-4 and 1.0e-3; the
# limits leave a factor of four for another order of summation.
LOGITS = (4e-5, 6e-4, 4e-3)
LOSS = (2e-6, 2e-5, 1.4e-4)  # relative
GRADIENT = 2e-4  # relative, in L2; found 4e-5
CHANGE = 4e-3  # relative, of what three steps change; found 1.5e-3


@pytest.fixture
def official(golden):
    """The golden arrays, their settings, and a reader of the checkpoint."""
    folder = golden / "train_step"
    settings = json.loads((folder / "train_step.json").read_text())
    checkpoint = golden / "efficientnet" / "b0_w025_d05_64" / "ckpt"
    reader = tf.train.load_checkpoint(str(checkpoint / "model.ckpt"))
    return np.load(folder / "train_step.npz"), settings, reader


def official_names(network):
    """From each weight of the network to its official name."""
    keys = {
        f"{layer.name}/{weight.name}": weight
        for layer in network.layers
        for weight in layer.weights
    }
    names = import_weights.foreign_names(list(keys))
    return {
        id(weight): f"efficientnet-b0/{names[key][0]}"
        for key, weight in keys.items()
    }


def continue_checkpoint(settings, reader):
    """Our model in the state of the official checkpoint."""
    network = efficientnet.build_model(
        "b0",
        settings["num_classes"],
        image_size=settings["resolution"],
        width=settings["width_coefficient"],
        depth=settings["depth_coefficient"],
        dropout_rate=0.0,
        stochastic_depth_rate=0.0,
    )
    model = trainer.make_trainable(
        network,
        learning_rate=schedules.exponential_decay(
            settings["base_lr_at_this_batch"],
            settings["steps_per_epoch"],
            decay_factor=settings["decay_factor"],
            decay_epochs=settings["decay_epochs"],
            warmup_epochs=settings["warmup_epochs"],
        ),
        weight_decay=settings["weight_decay"],
        ema_decay=settings["ema_decay"],
        num_labeled=settings["labeled"],
        unlabeled_ratio=settings["unlabel_ratio"],
    )
    names = official_names(network)
    for weight, average in zip(network.weights, model.averages, strict=True):
        weight.assign(reader.get_tensor(names[id(weight)]))
        average.assign(reader.get_tensor(names[id(weight)] + EMA))
    optimizer = model.optimizer
    for weight in network.trainable_weights:
        index = optimizer._get_variable_index(weight)
        name = names[id(weight)]
        optimizer._mean_squares[index].assign(
            reader.get_tensor(f"{name}/RMSProp")
        )
        optimizer._momentum_buffers[index].assign(
            reader.get_tensor(f"{name}/RMSProp_1")
        )
    step = int(reader.get_tensor("global_step"))
    optimizer.iterations.assign(step)
    model.num_updates.assign(step)
    return model, names


def targets_of(arrays, settings):
    labels = np.eye(settings["num_classes"])[arrays["labels"]]
    smoothing = settings["label_smoothing"]
    labels = labels * (1 - smoothing) + smoothing / settings["num_classes"]
    return np.concatenate([labels, arrays["stored_probabilities"]]).astype(
        np.float32
    )


def relative(found, expected, floor=0.0):
    """Distance in L2, relative to the expected."""
    distance = np.linalg.norm(np.asarray(found, np.float64) - expected)
    return distance / max(np.linalg.norm(expected), floor, 1e-30)


def is_silent(name):
    """Whether a gain or shift only reaches later BatchNormalizations.

    Its true gradient is almost zero and the stored one rounding noise: the
    shift of each block's last one (golden README).
    """
    block = name.split("/")[1]
    last = "_1" if block == "blocks_0" else "_2"
    return name.endswith(f"tpu_batch_normalization{last}/beta")


def test_three_official_steps(official):
    arrays, settings, reader = official
    model, names = continue_checkpoint(settings, reader)
    images, targets = arrays["images"], targets_of(arrays, settings)
    loss_of = losses.mixed_cross_entropy(
        settings["labeled"], settings["unlabel_ratio"]
    )

    # The gradients before the first step, the L2 term included as officially.
    network = model.network
    before = [np.asarray(weight) for weight in network.weights]
    with tf.GradientTape() as tape:
        logits = network(images, training=True)
        loss = keras.ops.mean(loss_of(targets, logits))
    gradients = tape.gradient(
        loss, [weight.value for weight in network.trainable_weights]
    )
    for weight, value in zip(network.weights, before, strict=True):
        weight.assign(value)  # the moving statistics have moved
    worst = 0.0
    for weight, gradient in zip(
        network.trainable_weights, gradients, strict=True
    ):
        name = names[id(weight)]
        gradient = np.asarray(gradient)
        if "batch_normalization" not in name:
            gradient = gradient + settings["weight_decay"] * weight.numpy()
        norm = float(arrays[f"step0_gradient_l2/{name}"])
        if is_silent(name):
            assert np.linalg.norm(gradient) < 1e-5, name
            continue
        worst = max(worst, abs(np.linalg.norm(gradient) - norm) / norm)
        key = f"step0_gradient/{name}"
        if key in arrays:
            worst = max(worst, relative(gradient, arrays[key]))
    print(f"gradients: largest relative deviation {worst:.1e}")
    assert worst < GRADIENT, worst

    for number, step in enumerate(settings["steps"]):
        statistics = [np.asarray(weight) for weight in network.weights]
        logits = np.asarray(network(images, training=True))
        for weight, value in zip(network.weights, statistics, strict=True):
            weight.assign(value)
        expected = arrays[f"logits_training_mode_step{number}"]
        deviation = np.abs(logits - expected).max()
        print(f"step {number}: logits {deviation:.1e}")
        assert deviation < LOGITS[number], f"step {number}: {deviation}"
        lr = float(model.optimizer.learning_rate)
        assert lr == pytest.approx(step["lr"], rel=1e-6)
        dataset = tf.data.Dataset.from_tensors((images, targets))
        logs = model.fit(dataset, verbose=0).history
        for name, key in (
            ("loss", "data"),
            ("labeled_loss", "lab"),
            ("unlabeled_loss", "ext"),
        ):
            assert logs[name][0] == pytest.approx(
                step[key], rel=LOSS[number]
            ), f"step {number}: {name} {logs[name][0]} {step[key]}"

    assert int(model.optimizer.iterations) == settings["global_step_after"]
    deviations = changes(model, names, arrays, reader)
    for kind, worst in deviations.items():
        print(f"{kind}: largest relative deviation of the change {worst}")
        assert worst[0] < CHANGE, (kind, worst)


def changes(model, names, arrays, reader):
    """Largest deviation of what three steps changed, by kind of variable."""
    optimizer, network = model.optimizer, model.network
    variables = {}
    for weight, average in zip(network.weights, model.averages, strict=True):
        name = names[id(weight)]
        variables[name] = ("weights", weight)
        variables[name + EMA] = ("averages", average)
    for weight in network.trainable_weights:
        index = optimizer._get_variable_index(weight)
        name = names[id(weight)]
        variables[f"{name}/RMSProp"] = (
            "mean squares",
            optimizer._mean_squares[index],
        )
        variables[f"{name}/RMSProp_1"] = (
            "momentum",
            optimizer._momentum_buffers[index],
        )
    checked = {
        key.removeprefix("after3_delta_l2/")
        for key in arrays
        if key.startswith("after3_delta_l2/")
    }
    assert checked == set(variables)  # none of the official ones is left out
    deviations = {}
    for name, (kind, variable) in variables.items():
        old = reader.get_tensor(name).astype(np.float64)
        found = np.asarray(variable) - old
        norm = float(arrays[f"after3_delta_l2/{name}"])
        # float32 cannot tell smaller changes of such a variable.
        floor = 1e-6 * np.linalg.norm(old) + 1e-7
        deviation = abs(np.linalg.norm(found) - norm) / max(norm, floor / 1e-3)
        key = f"after3/{name}"
        if key in arrays:
            expected = arrays[key].astype(np.float64) - old
            deviation = max(
                deviation, relative(found, expected, floor=floor / 1e-3)
            )
        deviations[kind] = max(
            deviations.get(kind, (0.0, "")), (deviation, name)
        )
    return deviations


def test_the_average_counts_updates_as_the_official_code():
    # `num_updates=global_step` is read after the step has counted itself.
    assert float(averaging.ema_decay_at(1, 0.9999)) == pytest.approx(2 / 11)
