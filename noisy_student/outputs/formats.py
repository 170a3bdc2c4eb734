# SPDX-License-Identifier: Apache-2.0
"""Writes a network as .keras, SavedModel, ONNX or TFLite, and checks the file.

Every format takes `pixels`, float32 `(N, S, S, 3)` in `[0, 255]` with any N,
and returns `logits`, float32 `(N, C)`. The SavedModel also takes the bytes of
image files and preprocesses them as evaluation does.
"""

import dataclasses
import importlib.util
import tempfile
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from noisy_student.models.stochastic_depth import Dropout

# Classes that a SavedModel returns for each image.
TOP = 5
# Relative to the largest logit: float32 sums in another order differ by about
# 1e-6, a convolution with other padding by more than 1e-2.
TOLERANCE = 1e-3
# Where logits are compared; those of accelerators differ in more digits.
DEVICE = "/CPU:0"


class Deviation(Exception):
    """Raised for logits that differ from those of the trained network."""


@dataclasses.dataclass(frozen=True)
class Format:
    """A file format of a network.

    Attributes:
        title: Display name.
        file: Name of the file or folder.
        tools: Modules that it needs besides Keras and TensorFlow.
        write: Function of the network, the path, `view`, a function from
            (encoded image, seed) to pixels `(S, S, 3)`, and `class_names`.
        load: Function of the path that returns a dict of functions to logits,
            by the name of their argument: `pixels`, or `image_bytes`.
    """

    title: str
    file: str
    tools: tuple[str, ...]
    write: Callable
    load: Callable

    def missing_tools(self):
        """Returns the names of the tools that are not installed."""
        return [
            name for name in self.tools if not importlib.util.find_spec(name)
        ]


def portable(network, dtype=None):
    """Copies a network without its noise, which is inactive at inference.

    The copy has only layers of Keras, so it loads without this package.

    Args:
        network: A `keras.Model` of `efficientnet.build_model`.
        dtype: Keras's policy for all layers, such as `float32`; by default
            each layer keeps its own.

    Returns:
        `keras.Model` from `pixels` to float32 logits, with its own weights.
    """

    def clone(layer):
        if isinstance(layer, Dropout):
            return keras.layers.Identity(name=layer.name)
        policy = {"dtype": dtype} if dtype else {}
        return type(layer).from_config(layer.get_config() | policy)

    def call(layer, *args, **kwargs):
        if isinstance(layer, keras.layers.Identity):
            return args[0]
        return layer(*args, **kwargs)

    copy = keras.models.clone_model(
        network, clone_function=clone, call_function=call
    )
    copy.set_weights(network.get_weights())
    return copy


def write_keras(network, path, **_):
    """Writes a `.keras` file."""
    network.save(path)


def load_keras(path):
    """Loads a `.keras` file."""
    return {"pixels": keras.saving.load_model(path, compile=False)}


def write_savedmodel(network, path, *, view, class_names):
    """Writes a SavedModel with two signatures.

    `keras.Model.export` writes only one, which takes pixels.

    `serving_default` takes `image_bytes`, string `(N,)`, encoded images;
    `pixels` takes `pixels`. Both return `logits` and `probabilities`, float32
    `(N, C)`; `classes`, string `(N, k)`, the names of the k = min(5, C) most
    likely classes, most likely first; and `class_probabilities`, float32
    `(N, k)`.
    """
    names = tf.constant([name.encode() for name in class_names])

    def predict(pixels):
        # Convolutions of oneDNN, the default on many CPUs, fail on an empty
        # batch.
        count = tf.shape(pixels)[0]
        padding = tf.cast(count == 0, tf.int32)
        padded = tf.pad(pixels, [[0, padding], [0, 0], [0, 0], [0, 0]])
        logits = network(padded, training=False)[:count]
        probs = tf.nn.softmax(logits)
        top = tf.math.top_k(probs, min(TOP, len(class_names)))
        return {
            "logits": logits,
            "probabilities": probs,
            "classes": tf.gather(names, top.indices),
            "class_probabilities": top.values,
        }

    def predict_bytes(image_bytes):
        no_seed = tf.zeros([2], tf.int64)  # evaluation draws nothing
        pixels = tf.map_fn(
            lambda image: tf.cast(view(image, no_seed), tf.float32),
            image_bytes,
            fn_output_signature=tf.TensorSpec(network.input_shape[1:]),
        )
        return predict(pixels)

    image_bytes = tf.TensorSpec([None], tf.string, name="image_bytes")
    archive = keras.export.ExportArchive()
    archive.track(network)
    archive.add_endpoint("serving_default", predict_bytes, [image_bytes])
    archive.add_endpoint("pixels", predict, [_pixels(network)])
    archive.write_out(str(path), verbose=False)


def load_savedmodel(path):
    """Loads both signatures of a SavedModel."""
    signatures = tf.saved_model.load(path).signatures
    from_bytes, from_pixels = (
        signatures["serving_default"],
        signatures["pixels"],
    )
    return {
        "image_bytes": lambda batch: from_bytes(image_bytes=tf.constant(batch))[
            "logits"
        ],
        "pixels": lambda batch: from_pixels(pixels=tf.constant(batch))[
            "logits"
        ],
    }


def write_onnx(network, path, **_):
    """Writes an ONNX file."""
    _export_logits(network, path, "onnx")


def load_onnx(path):
    """Loads an ONNX file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        path, providers=["CPUExecutionProvider"]
    )
    return {
        "pixels": lambda batch: session.run(["logits"], {"pixels": batch})[0]
    }


def write_tflite(network, path, **_):
    """Writes a TFLite file of built-in operations.

    `format="litert"` would do, but Keras has it only from 3.13 on.
    """
    with tempfile.TemporaryDirectory() as folder:
        _export_logits(network, folder, "tf_saved_model")
        content = tf.lite.TFLiteConverter.from_saved_model(folder).convert()
    with open(path, "wb") as file:
        file.write(content)


def load_tflite(path):
    """Loads a TFLite file."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:  # the one that is part of TensorFlow
        Interpreter = tf.lite.Interpreter
    runner = Interpreter(path).get_signature_runner("serving_default")
    return {"pixels": lambda batch: runner(pixels=batch)["logits"]}


FORMATS = {
    "keras": Format("Keras", "model.keras", (), write_keras, load_keras),
    "savedmodel": Format(
        "SavedModel", "saved_model", (), write_savedmodel, load_savedmodel
    ),
    "onnx": Format(
        "ONNX",
        "model.onnx",
        ("tf2onnx", "onnx", "onnxruntime"),
        write_onnx,
        load_onnx,
    ),
    "tflite": Format("TFLite", "model.tflite", (), write_tflite, load_tflite),
}


def example_images(image_size):
    """Makes encoded images of colored blocks.

    Args:
        image_size: S, the input side of the network in pixels.

    Returns:
        List of bytes: a PNG, a JPEG and a grayscale PNG.
    """
    rng = np.random.RandomState(0)
    scale = 1 + image_size // 8

    def blocks(channels):
        coarse = rng.randint(0, 256, (8, 10, channels), np.uint8)
        return coarse.repeat(scale, axis=0).repeat(scale, axis=1)

    return [
        tf.io.encode_png(blocks(3)).numpy(),
        tf.io.encode_jpeg(blocks(3)).numpy(),
        tf.io.encode_png(blocks(1)).numpy(),
    ]


def check(spec, path, inputs, logits):
    """Loads an exported file and compares its logits with the network's.

    Args:
        spec: The `Format`.
        path: Path of the file or folder.
        inputs: Dict of `pixels`, float32 `(N, S, S, 3)`, and `image_bytes`,
            list of the N encoded images.
        logits: float32 `(N, C)` of the network.

    Returns:
        The largest difference of a logit, relative to the largest logit, over
        a batch of all images and a batch of one.

    Raises:
        Deviation: If it exceeds `TOLERANCE` or is not finite.
    """
    with tf.device(DEVICE):
        return max(
            compare(predict(inputs[name][:count]), logits[:count])
            for name, predict in spec.load(str(path)).items()
            for count in (len(logits), 1)
        )


def compare(found, logits, tolerance=TOLERANCE):
    """Returns the largest difference, relative to the largest logit.

    Args:
        found: float32 `(N, C)`.
        logits: float32 `(N, C)`, the reference.
        tolerance: The largest difference allowed.

    Raises:
        Deviation: If it is larger or not finite, or the shapes differ.
    """
    found, logits = np.asarray(found), np.asarray(logits)
    if found.shape != logits.shape:
        raise Deviation(
            f"its logits have the shape {found.shape}, not {logits.shape}"
        )
    worst = float(np.abs(found - logits).max() / (np.abs(logits).max() or 1))
    if not worst <= tolerance:  # NaN as well
        raise Deviation(
            f"its logits differ from those of the network by {worst:.2g} of "
            f"the largest logit, and at most {tolerance:g} is allowed"
        )
    return worst


def _pixels(network):
    return tf.TensorSpec(network.input_shape, tf.float32, name="pixels")


def _export_logits(network, path, format_name):
    """Exports from `pixels` to `logits`, under these names."""
    named = keras.Model(network.inputs[0], {"logits": network.outputs[0]})
    named.export(
        path,
        format=format_name,
        verbose=False,
        input_signature=[_pixels(network)],
    )
