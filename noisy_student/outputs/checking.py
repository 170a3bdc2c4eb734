# SPDX-License-Identifier: Apache-2.0
"""Does an exported model say the same? Asked in a new process.

A model that was written is loaded again by `reloading.py`, where nothing of
this process can help it, and its logits are compared with the network's.
"""

import os
import pathlib
import subprocess
import sys

import numpy as np
import tensorflow as tf

from noisy_student.outputs import reloading

# Of the largest logit: float32 that is added up in another order differs by
# about 1e-6, a convolution that is padded otherwise by more than 1e-2.
TOLERANCE = 1e-3


class Deviation(Exception):
    """An exported model that cannot be loaded or says something else."""


def probe_images(image_size):
    """A few images that nobody has, as files of several kinds and shapes.

    Args:
        image_size: S in pixels.

    Returns:
        List of bytes: a PNG, a JPEG and a gray PNG.
    """
    rng = np.random.RandomState(0)

    def patches(height, width, channels):
        coarse = rng.randint(0, 256, (8, 8, channels))
        rows, columns = (np.arange(n) * 8 // n for n in (height, width))
        return coarse[rows][:, columns].astype(np.uint8)

    larger = image_size + image_size // 2
    return [
        tf.io.encode_png(patches(larger, image_size + 9, 3)).numpy(),
        tf.io.encode_jpeg(patches(image_size + 8, larger, 3)).numpy(),
        tf.io.encode_png(patches(image_size, image_size, 1)).numpy(),
    ]


def write_probe(path, images, view):
    """Write what the new process is to ask.

    Args:
        path: Ends in `.npz`.
        images: List of N encoded images.
        view: Function from (encoded image, seed) to pixels `(S, S, 3)`.

    Returns:
        Pixels, float32 `(N, S, S, 3)`.
    """
    no_seed = tf.zeros([2], tf.int64)
    pixels = np.stack(
        [np.asarray(view(image, no_seed), np.float32) for image in images]
    )
    encoded = {
        f"image_{number}": np.frombuffer(image, np.uint8)
        for number, image in enumerate(images)
    }
    np.savez(path, pixels=pixels, **encoded)
    return pixels


def reloaded_deviation(name, model, probe, logits):
    """Load a model in a new process and compare what it says.

    Args:
        name: Of the format.
        model: Path.
        probe: Path that `write_probe` wrote.
        logits: float32 `(N, C)` of the network itself.

    Returns:
        The largest difference of a logit, divided by the largest logit.

    Raises:
        Deviation: If it is more than `TOLERANCE`, or the process failed.
    """
    answers_path = pathlib.Path(probe).with_name(f"{name}_answers.npz")
    command = [reloading.__file__, name, model, probe, answers_path]
    done = subprocess.run(
        # -P: the folder of the program is not searched for modules.
        [sys.executable, "-P", *map(str, command)],
        # Where the comparison was computed too, and memory is free.
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
        capture_output=True,
        text=True,
        errors="backslashreplace",
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise Deviation(
            f"a new process cannot load it and let it answer ({lines[-1]})"
        )
    with np.load(answers_path) as answers:
        worst = max(
            deviation(answer, logits[: len(answer)])
            for answer in answers.values()
        )
    check(worst)
    return worst


def deviation(answer, logits):
    """The largest difference, divided by the largest logit; NaN if any is."""
    if answer.shape != logits.shape:
        raise Deviation(
            f"it answers {answer.shape}, and the network {logits.shape}"
        )
    scale = float(np.abs(logits).max()) or 1.0
    return float(np.abs(answer - logits).max()) / scale


def check(worst):
    """Raise `Deviation` for more than the tolerance, or NaN."""
    if not worst <= TOLERANCE:
        raise Deviation(
            f"its logits differ from the network's by {worst:.2g} of the "
            f"largest, and {TOLERANCE:g} is allowed"
        )
