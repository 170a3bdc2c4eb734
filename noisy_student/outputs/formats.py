# SPDX-License-Identifier: Apache-2.0
"""One network in the formats of others: .keras, SavedModel, ONNX, TFLite.

All of them take float32 pixels in `[0, 255]` by the name `pixels`, any number
of images at once, and give `logits`. The SavedModel takes the bytes of image
files too, and sees them as evaluation does.
"""

import contextlib
import dataclasses
import importlib.util
import logging
import pathlib
import tempfile
from collections.abc import Callable

import keras
import tensorflow as tf

# Classes that a served model names for an image.
TOP = 5


@dataclasses.dataclass(frozen=True)
class Format:
    """A format that a network can be written in.

    Attributes:
        title: What people call it.
        file: Name of its file or folder.
        tools: Modules that it needs beside Keras and TensorFlow.
        write: Function of the network, the path, a function from (encoded
            image, seed) to pixels `(S, S, 3)`, and the names of the classes.
    """

    title: str
    file: str
    tools: tuple[str, ...]
    write: Callable

    def missing_tools(self):
        """Those of its tools that are not installed."""
        return [
            name for name in self.tools if not importlib.util.find_spec(name)
        ]


def write_keras(network, path, view, class_names):
    """Write a `.keras` file that loads without this package."""
    del view, class_names
    network.save(path)


def write_savedmodel(network, path, view, class_names):
    """Write a SavedModel with two signatures.

    `serving_default` takes `image_bytes`, string `(N,)`, encoded images;
    `pixels` takes `pixels`, float32 `(N, S, S, 3)`. Both give `logits` and
    `probabilities`, float32 `(N, C)`, and of the surest classes, at most five,
    from sure to unsure, `classes`, string `(N, 5)`, their names, and
    `class_probabilities`, float32 `(N, 5)`.
    """
    names = tf.constant([name.encode() for name in class_names])
    top = min(TOP, len(class_names))

    def answer(pixels):
        # Convolutions of oneDNN, TensorFlow's default on many CPUs, fail for
        # no image at all.
        count = tf.shape(pixels)[0]
        one = tf.cast(count == 0, tf.int32)
        padded = tf.pad(pixels, [[0, one], [0, 0], [0, 0], [0, 0]])
        logits = network(padded, training=False)[:count]
        probs = tf.nn.softmax(logits)
        best = tf.math.top_k(probs, top)
        return {
            "logits": logits,
            "probabilities": probs,
            "classes": tf.gather(names, best.indices),
            "class_probabilities": best.values,
        }

    def answer_bytes(image_bytes):
        no_seed = tf.zeros([2], tf.int64)  # nothing is drawn
        pixels = tf.map_fn(
            lambda image: tf.cast(view(image, no_seed), tf.float32),
            image_bytes,
            fn_output_signature=tf.TensorSpec(network.input_shape[1:]),
        )
        return answer(pixels)

    encoded = tf.TensorSpec([None], tf.string, name="image_bytes")
    _write_archive(
        network,
        path,
        {
            "serving_default": (answer_bytes, encoded),
            "pixels": (answer, _pixels(network)),
        },
    )


def write_onnx(network, path, view, class_names):
    """Write an ONNX file from `pixels` to `logits`."""
    del view, class_names
    import onnx
    import tf2onnx

    signature = [_pixels(network)]
    function = tf.function(_logits(network), input_signature=signature)
    with _quiet("tf2onnx"):
        model, _ = tf2onnx.convert.from_function(function, signature)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(model, path)


def write_tflite(network, path, view, class_names):
    """Write a TFLite file from `pixels` to `logits`, of its own kernels."""
    del view, class_names
    beside = pathlib.Path(path).parent
    with (
        tempfile.TemporaryDirectory(dir=beside) as folder,
        _quiet("tensorflow"),
    ):
        # The converter makes constants of weights only if they come from here.
        _write_archive(
            network,
            folder,
            {"serving_default": (_logits(network), _pixels(network))},
        )
        content = tf.lite.TFLiteConverter.from_saved_model(folder).convert()
    with open(path, "wb") as file:
        file.write(content)


FORMATS = {
    "keras": Format("Keras", "model.keras", (), write_keras),
    "savedmodel": Format("SavedModel", "saved_model", (), write_savedmodel),
    "onnx": Format(
        "ONNX",
        "model.onnx",
        ("tf2onnx", "onnx", "onnxruntime"),
        write_onnx,
    ),
    "tflite": Format("TFLite", "model.tflite", (), write_tflite),
}


def _pixels(network):
    return tf.TensorSpec(network.input_shape, tf.float32, name="pixels")


def _logits(network):
    return lambda pixels: {"logits": network(pixels, training=False)}


def _write_archive(network, path, endpoints):
    archive = keras.export.ExportArchive()
    archive.track(network)
    for name, (function, spec) in endpoints.items():
        archive.add_endpoint(name, function, input_signature=[spec])
    archive.write_out(str(path), verbose=False)


@contextlib.contextmanager
def _quiet(name):
    """Keep a converter's notes on itself off the terminal."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
