# SPDX-License-Identifier: Apache-2.0
"""A network over the shards of a source: clean images in, probabilities out."""

import keras
import numpy as np
import tensorflow as tf

from noisy_student.data import inference


def make_predictor(network, *, softmax=True):
    """Let a network carry the row numbers of its images through `predict`.

    However a strategy splits and joins the batches, each output then names
    the image that it belongs to.

    Args:
        network: A `keras.Model` from pixels to logits `(N, C)`.
        softmax: Whether they become probabilities; False for a network that
            answers something else, such as features.

    Returns:
        A `keras.Model` on the dicts of `inference.batches`, returning a dict
        of `index` and `label`, int64 `(N,)`, and `answer`, float32 `(N, C)`.
    """
    pixels = keras.Input(network.input_shape[1:], name="pixels")
    index = keras.Input((), dtype="int64", name="index")
    label = keras.Input((), dtype="int64", name="label")
    activation = "softmax" if softmax else "linear"
    answer = keras.layers.Activation(activation, dtype="float32")
    return keras.Model(
        {"pixels": pixels, "index": index, "label": label},
        # Adding zero: Keras returns nothing that no layer has made.
        {
            "index": index + 0,
            "label": label + 0,
            "answer": answer(network(pixels)),
        },
    )


def predict_shards(
    predictor,
    source,
    shards,
    *,
    num_classes,
    image_size,
    augment,
    batch_size,
    seed_of=lambda shard: 0,
    reseed=None,
    jit_compile=False,
    on_images=None,
):
    """Predict every image of some shards, one shard after the other.

    Memory does not grow with the number of images: what has been yielded is
    forgotten.

    Args:
        predictor: Of `make_predictor`.
        source: A `Source`.
        shards: Their numbers.
        num_classes: C.
        image_size: S in pixels.
        augment: As in `inference.batches`.
        batch_size: N, a multiple of the number of replicas.
        seed_of: Function from a shard's number to the seed of its images.
        reseed: Function of that seed, called before a shard is predicted: for
            a network that draws.
        jit_compile: Whether to compile the network with XLA.
        on_images: Function that is told of each batch how many images it had.

    Yields:
        Triples (shard; float32 `(N_i, C)` probabilities, or what else the
        predictor answers, row k for the k-th image, NaN where the image could
        not be decoded; int64 `(N_i,)` labels, -1 where there is none).
    """
    batches = inference.batches(
        source,
        shards,
        image_size=image_size,
        augment=augment,
        batch_size=batch_size,
        seeds=[seed_of(shard) for shard in shards],
    )
    strategy = predictor.distribute_strategy
    batches = strategy.experimental_distribute_dataset(batches)
    predict_batch = _predict_function(predictor, strategy, jit_compile)

    def outputs():
        iterator = iter(batches)
        for shard in shards:
            if reseed:
                reseed(seed_of(shard))
            size = source.shard_sizes[shard]
            for _ in range(inference.num_batches(size, batch_size)):
                yield predict_batch(next(iterator))

    ahead = _one_ahead(outputs())
    for shard in shards:
        size = source.shard_sizes[shard]
        probs = np.full((size, num_classes), np.nan, np.float32)
        labels = np.full(size, -1, np.int64)
        for start in range(0, size, batch_size):
            output = {key: np.asarray(v) for key, v in next(ahead).items()}
            real = output["index"] >= 0
            rows = output["index"][real]
            probs[rows] = output["answer"][real]
            labels[rows] = output["label"][real]
            if on_images:
                on_images(min(batch_size, size - start))
        yield shard, probs, labels


def _predict_function(predictor, strategy, jit_compile):
    """Function from a distributed batch to what all replicas answer.

    Keras's own `predict` opens the data anew at each call, and keeps what it
    has answered until the end.
    """
    answer = tf.function(
        lambda batch: predictor(batch, training=False), jit_compile=jit_compile
    )

    def concatenate(rows):
        return tf.concat(strategy.experimental_local_results(rows), axis=0)

    @tf.function
    def predict_batch(batch):
        answers = strategy.run(answer, args=(batch,))
        return {name: concatenate(rows) for name, rows in answers.items()}

    return predict_batch


def _one_ahead(items):
    """Ask for an item before the one that came last is given away.

    So an accelerator has a batch to work on while the host reads the answers
    to another.
    """
    nothing = object()
    last = nothing
    for item in items:
        if last is not nothing:
            yield last
        last = item
    if last is not nothing:
        yield last
