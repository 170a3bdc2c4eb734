# SPDX-License-Identifier: Apache-2.0
"""A network over the shards of a source: clean images in, probabilities out."""

import keras
import numpy as np

from noisy_student.data import pipelines


def make_predictor(network):
    """Let a network carry the row numbers of its images through `predict`.

    However a strategy splits and joins the batches, each output then names
    the image that it belongs to.

    Args:
        network: A `keras.Model` from pixels to logits `(N, C)`.

    Returns:
        A `keras.Model` on the dicts of `pipelines.inference`, returning a dict
        of `index` and `label`, int64 `(N,)`, and `probs`, float32 `(N, C)`.
    """
    pixels = keras.Input(network.input_shape[1:], name="pixels")
    index = keras.Input((), dtype="int64", name="index")
    label = keras.Input((), dtype="int64", name="label")
    probs = keras.layers.Softmax(dtype="float32")(network(pixels))
    return keras.Model(
        {"pixels": pixels, "index": index, "label": label},
        # Adding zero: Keras returns nothing that no layer has made.
        {"index": index + 0, "label": label + 0, "probs": probs},
    )


def predict_shard(
    predictor,
    source,
    shard,
    *,
    num_classes,
    image_size,
    augment,
    batch_size,
    seed=0,
):
    """Predict every image of a shard.

    Args:
        predictor: Of `make_predictor`.
        source: A `Source`.
        shard: Its number.
        num_classes: C.
        image_size: S in pixels.
        augment: As in `pipelines.inference`.
        batch_size: N, a multiple of the number of replicas.
        seed: As in `pipelines.inference`.

    Returns:
        Pair of float32 `(N_i, C)` probabilities, row k for the k-th image, NaN
        where the image could not be decoded, and int64 `(N_i,)` labels, -1
        where there is none.
    """
    num_examples = source.shard_sizes[shard]
    batches = pipelines.inference(
        source.open_shard(shard),
        source.load,
        num_examples,
        image_size=image_size,
        augment=augment,
        batch_size=batch_size,
        seed=seed,
    )
    outputs = predictor.predict(batches, verbose=0)
    probs = np.full((num_examples, num_classes), np.nan, np.float32)
    labels = np.full(num_examples, -1, np.int64)
    real = outputs["index"] >= 0
    rows = outputs["index"][real]
    probs[rows] = outputs["probs"][real]
    labels[rows] = outputs["label"][real]
    return probs, labels
