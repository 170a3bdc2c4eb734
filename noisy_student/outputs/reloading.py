# SPDX-License-Identifier: Apache-2.0
"""A program of its own: load an exported model, and let it answer.

    python reloading.py FORMAT MODEL PROBE ANSWERS

PROBE is a `.npz` of `pixels`, float32 `(N, S, S, 3)`, and the bytes of the same
images before they were decoded, `image_0`, ...; ANSWERS becomes one of the
logits that come out. It imports nothing of the package that it lies in, as the
people who are given the model will not.
"""

import contextlib
import sys
import warnings

import numpy as np


def main(argv):
    """Answer once with all images, and once with the first alone."""
    name, model, probe_path, answers_path = argv[1:]
    # Without pickle.
    with np.load(probe_path) as file:
        probe = dict(file)
    answers = ANSWERS[name](model, probe)
    if "noisy_student" in sys.modules:
        raise ImportError("the model needs noisy_student to be loaded")
    np.savez(answers_path, **answers)


def keras_answers(path, probe):
    """Answers of a `.keras` file."""
    import keras

    network = keras.saving.load_model(path, compile=False)
    return _answers(lambda pixels: np.asarray(network(pixels)), probe)


def savedmodel_answers(path, probe):
    """Answers of a SavedModel, to pixels and to encoded images."""
    import tensorflow as tf

    signatures = tf.saved_model.load(path).signatures
    encoded = [
        probe[f"image_{number}"].tobytes()
        for number in range(len(probe["pixels"]))
    ]
    served = signatures["serving_default"](image_bytes=tf.constant(encoded))
    answers = _answers(
        lambda pixels: signatures["pixels"](pixels=tf.constant(pixels))[
            "logits"
        ].numpy(),
        probe,
    )
    return {**answers, "of_bytes": served["logits"].numpy()}


def onnx_answers(path, probe):
    """Answers of an ONNX file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        path, providers=["CPUExecutionProvider"]
    )
    return _answers(
        lambda pixels: session.run(["logits"], {"pixels": pixels})[0], probe
    )


def tflite_answers(path, probe):
    """Answers of a TFLite file."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        import tensorflow as tf

        Interpreter = tf.lite.Interpreter
    with warnings.catch_warnings():
        # tf.lite's interpreter says that it will move.
        warnings.simplefilter("ignore")
        runner = Interpreter(path).get_signature_runner("serving_default")
    return _answers(lambda pixels: runner(pixels=pixels)["logits"], probe)


def _answers(logits_of, probe):
    pixels = probe["pixels"]
    return {
        "of_pixels": np.array(logits_of(pixels)),
        "of_one": np.array(logits_of(pixels[:1])),
    }


ANSWERS = {
    "keras": keras_answers,
    "savedmodel": savedmodel_answers,
    "onnx": onnx_answers,
    "tflite": tflite_answers,
}

if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        main(sys.argv)
