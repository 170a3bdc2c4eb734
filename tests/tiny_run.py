# SPDX-License-Identifier: Apache-2.0
"""Runs that take seconds: a network of a few weights on tiny images.

`build_model`, a name that other projects rely on, is replaced by a network
that knows the mean color of an image and nothing else. What brings settings,
images and weights to it is the real code, from `phases` down.
"""

import functools
import json
import pathlib
import zipfile

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from noisy_student import phases
from noisy_student.config import Config
from noisy_student.data import decoding
from noisy_student.models import efficientnet
from noisy_student.models import stochastic_depth
from noisy_student.run import open_run

CLASSES = ("amber", "blue", "coral", "dun")
SIDE = 8  # pixels
MOMENTUM, EPSILON = 0.9, 1e-3  # of RMSProp (official code)
SCALE = 1 / 64  # of pixels, in place of ImageNet's statistics
HIDDEN = 4


def mean_colors(seed, count):
    """float `(count, 3)`: near the colors of the classes, in turn."""
    rng = np.random.default_rng(seed)
    centers = np.array([[200, 140, 30], [40, 60, 200], [230, 110, 90],
                        [120, 110, 90]])  # fmt: skip
    return centers[np.arange(count) % 4] + rng.normal(0, 45, (count, 3))


def save_image(path, color, seed):
    """A PNG whose halves differ, so that a mirrored one can be told."""
    rng = np.random.default_rng(seed)
    pixels = color + rng.normal(0, 25, (SIDE, SIDE, 3))
    pixels[:, : SIDE // 2] += 12
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.clip(pixels, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels.astype(float)


class Images:
    """Folders of images as a user has them, one of each kind broken.

    Attributes:
        labeled: Pair of float `(12, S, S, 3)` and int `(12,)`.
        evaluation: Likewise, of 16.
        unlabeled: float `(24, S, S, 3)`, in the order of their names.
        flags: The settings of `Config` that name the folders.
    """

    def __init__(self, root, unlabeled=24):
        self.labeled = self._classes(root / "labeled", 12, 1)
        self.evaluation = self._classes(root / "eval", 16, 2)
        self.unlabeled = np.stack(
            [
                save_image(root / "unlabeled" / f"{k:03d}.png", color, 3000 + k)
                for k, color in enumerate(mean_colors(3, unlabeled))
            ]
        )
        # Last by its name, so that it moves no row.
        (root / "unlabeled" / "zzz.png").write_bytes(b"no image")
        (root / "labeled" / "dun" / "zzz.png").write_bytes(b"no image")
        self.flags = {
            "labeled_dir": str(root / "labeled"),
            "unlabeled_dir": str(root / "unlabeled"),
            "eval_dir": str(root / "eval"),
        }

    def _classes(self, folder, count, seed):
        images = [
            save_image(folder / CLASSES[k % 4] / f"{k:03d}.png", color, k)
            for k, color in enumerate(mean_colors(seed, count))
        ]
        return np.stack(images), np.arange(count) % 4


class TinyNetworks:
    """Stands for `efficientnet.build_model` and remembers how it was called.

    Attributes:
        calls: Dict of the arguments of each call.
        drawn: The fresh kernel of each call, as Keras's initializer drew it.
        initial: Weights that every new network has, by name; without them it
            keeps what the initializer drew.
    """

    def __init__(self, initial=None):
        self.calls, self.drawn = [], []
        self.initial = initial

    def __call__(self, variant="b0", num_classes=1000, **settings):
        self.calls.append({"variant": variant, "classes": num_classes}
                          | settings)  # fmt: skip
        side = settings.get("image_size") or 224
        pixels = keras.Input((side, side, 3), name="pixels")
        x = Witness(name="pixels_seen")(pixels)
        x = keras.layers.Rescaling(SCALE, -2.0, name="normalization")(x)
        x = keras.layers.GlobalAveragePooling2D(name="avg_pool")(x)
        x = dense("stem_conv", HIDDEN)(x)
        x = keras.layers.BatchNormalization(
            momentum=settings.get("batch_norm_momentum", 0.99),
            epsilon=EPSILON,
            name="stem_bn",
        )(x)
        for block in ("block1a", "block2a"):
            branch = dense(f"{block}_project_conv", HIDDEN, "tanh")(x)
            branch = keras.layers.Reshape((1, 1, HIDDEN))(branch)
            branch = stochastic_depth.StochasticDepth(
                settings.get("stochastic_depth_rate", 0.2), name=f"{block}_drop"
            )(branch)
            branch = keras.layers.Reshape((HIDDEN,))(branch)
            branch = Witness(name=f"{block}_seen")(branch)
            x = keras.layers.Add(name=f"{block}_add")([x, branch])
        x = stochastic_depth.Dropout(
            settings.get("dropout_rate") or 0.0, name="top_dropout"
        )(x)
        x = Witness(name="top_seen")(x)
        x = keras.layers.Dense(num_classes, name="predictions")(x)
        network = keras.Model(pixels, x, name="tiny")
        self.drawn.append(np.array(network.get_layer("predictions").kernel))
        if self.initial:
            assign(network, self.initial)
        return network


def dense(name, units, activation=None):
    return keras.layers.Dense(
        units, activation=activation, use_bias=False, name=name
    )


# What networks computed since the list was cleared: the name of the witness,
# whether in training, the number of the replica, and an array `(N, ...)`.
SEEN = []


@keras.saving.register_keras_serializable(package="tests")
class Witness(keras.layers.Layer):
    """Remembers what goes through it."""

    def call(self, inputs, training=False):
        context = tf.distribute.get_replica_context()
        replica = context.replica_id_in_sync_group if context else 0

        def remember(values, replica):
            entry = (self.name, bool(training), int(replica), values.copy())
            SEEN.append(entry)
            return np.float32(0)

        nothing = tf.numpy_function(remember, [inputs, replica], tf.float32)
        # For gradients go through a sum, and not through NumPy.
        return inputs + tf.stop_gradient(tf.ensure_shape(nothing, []))

    def compute_output_shape(self, input_shape):
        return input_shape


def seen(name, training=True):
    """The arrays that a witness saw, batch by batch."""
    return [e[3] for e in SEEN if (e[0], e[1]) == (name, training)]


def find(pixels, images):
    """Which of some images each row shows, -1 for none of them."""
    images = images.astype(np.float32)
    same = (pixels[:, None] == images[None]).all(axis=(2, 3, 4))
    return np.where(same.any(axis=1), same.argmax(axis=1), -1)


def initial_weights(num_classes=4):
    """Weights that learn the four colors within some steps."""
    rng = np.random.default_rng(2)
    shapes = {
        "stem_conv/kernel": (3, HIDDEN),
        "block1a_project_conv/kernel": (HIDDEN, HIDDEN),
        "block2a_project_conv/kernel": (HIDDEN, HIDDEN),
        "predictions/kernel": (HIDDEN, num_classes),
    }
    weights = {n: rng.normal(0, 0.6, shape) for n, shape in shapes.items()}
    weights |= {
        "predictions/bias": np.zeros(num_classes),
        "stem_bn/gamma": np.ones(HIDDEN),
        "stem_bn/beta": np.zeros(HIDDEN),
        "stem_bn/moving_mean": np.zeros(HIDDEN),
        "stem_bn/moving_variance": np.ones(HIDDEN),
    }
    # What the network can hold.
    return {n: np.float64(np.float32(w)) for n, w in weights.items()}


def named(network):
    """The weights of a Keras network by name."""
    return {f"{x.name}/{w.name}": w for x in network.layers for w in x.weights}


def assign(network, weights):
    for name, variable in named(network).items():
        variable.assign(weights[name])


def load(path):
    """The weights of a saved model, float64 arrays by name.

    Whoever trains the saved model trains all of it.
    """
    with zipfile.ZipFile(path) as file:
        layers = json.loads(file.read("config.json"))["config"]["layers"]
    assert all(layer["config"].get("trainable", True) for layer in layers)
    network = _reader()
    network.load_weights(path)
    return {n: np.array(w, np.float64) for n, w in named(network).items()}


@functools.cache
def _reader():
    return TinyNetworks()(num_classes=4, image_size=SIDE)


def save_given(path, weights=None):
    """Save a tiny network as weights from elsewhere."""
    path.parent.mkdir(parents=True, exist_ok=True)
    TinyNetworks(weights)(num_classes=4, image_size=SIDE).save(path)
    return str(path)


# What a run of the tiny network has in common: no noise, whole images.
PLAIN = {
    "crop": "padded",
    "image_size": SIDE,
    "labeled_noise": None,
    "unlabeled_noise": None,
    "teacher_noise": None,
    "finetune_noise": None,
    "eval_batch_size": 16,
}


def config(images, workdir, **settings):
    return Config(workdir=str(workdir), **{**images.flags, **PLAIN, **settings})


def install(monkeypatch, networks):
    """Let phases build tiny networks, read PNGs alone, and make no report.

    The graphs of the other formats and the report take most of the time, and
    then TensorFlow's rewriting of Python that needs none.
    """
    monkeypatch.setattr(efficientnet, "build_model", networks)
    monkeypatch.setattr(
        decoding,
        "decode",
        lambda encoded: tf.ensure_shape(
            tf.io.decode_png(encoded, 3), [None, None, 3]
        ),
    )
    for name in ("run_mode", "teach", "label", "select", "distill"):
        phase = tf.autograph.experimental.do_not_convert(getattr(phases, name))
        monkeypatch.setattr(phases, name, phase)
    if hasattr(phases, "showing"):
        monkeypatch.setattr(phases.showing, "refresh", lambda run: None)
    SEEN.clear()
    return networks


def rows_of(config, count):
    """The row of each unlabeled image, in the order of their names."""
    source = open_run(config).unlabeled
    names = [pathlib.Path(source.example_name(0, k)).name for k in range(count)]
    return np.argsort(names)


def results(workdir):
    return json.loads((workdir / "results.json").read_text())
