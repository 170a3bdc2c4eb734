# SPDX-License-Identifier: Apache-2.0
"""A training step that computes its batch in parts, to need less memory.

Keras's `gradient_accumulation_steps` fails under `MirroredStrategy`, and its
schedules and averages count the parts. Here the parts are a loop inside of
one step, so that whatever counts steps counts real ones: the optimizer and
its schedule, the average, checkpoints, and BatchNormalization's statistics.
"""

import keras
from keras import ops


def split(batch, steps, num_labeled):
    """Cut a batch in parts that are mixed as it is.

    Args:
        batch: Nested tensors `(N * (B + U), ...)`, all labeled rows first.
        steps: N, the number of parts.
        num_labeled: B, labeled rows of a part.

    Returns:
        The same structure of tensors `(N, B + U, ...)`: each part has its B
        labeled rows first, in the order of the batch.
    """

    def cut(rows):
        shape = (steps, -1, *rows.shape[1:])
        count = steps * num_labeled
        return ops.concatenate(
            [ops.reshape(rows[:count], shape), ops.reshape(rows[count:], shape)]
            if num_labeled
            else [ops.reshape(rows, shape)],
            axis=1,
        )

    return keras.tree.map_structure(cut, batch)


def train_step(model, data, *, steps, num_labeled, complete=None):
    """Step once, with the mean gradient of the parts of a batch.

    The loss is a mean over rows, and all parts have as many of each kind: so
    the mean gradient is that of the whole batch, but for the noise, which is
    drawn for each part, and BatchNormalization, which normalizes each part by
    its own mean and variance, as it does on several devices. The moving
    statistics move once in a step: towards the mean over the parts.

    Args:
        model: A compiled `keras.Model` with a built optimizer.
        data: Pair of images and targets, `(N * (B + U), ...)` each.
        steps: N, the number of parts.
        num_labeled: B, labeled rows of a part.
        complete: Function that is applied to the data of each part first.

    Returns:
        Dict of the metrics.

    Differs: the official code has no parts, its batches are cut into TPU cores
    alone.
    """
    import tensorflow as tf

    parts = split(data, steps, num_labeled)
    weights = model.trainable_weights
    statistics = _moving_statistics(model)
    # Not `convert_to_tensor`, which leaves a variable a variable.
    before = [tf.identity(statistic.value) for statistic in statistics]

    def add_part(number, gradients, moves):
        part = keras.tree.map_structure(lambda rows: rows[number], parts)
        found = _gradients(model, complete(part) if complete else part, steps)
        gradients = [a + b for a, b in zip(gradients, found, strict=True)]
        moved = []
        for statistic, old, move in zip(statistics, before, moves, strict=True):
            moved.append(move + (statistic - old))
            # Each part moves them from the same place.
            statistic.assign(old)
        return number + 1, gradients, moved

    # A loop of the graph, one turn at a time: unrolled, TensorFlow would hold
    # the activations of several parts at once.
    _, gradients, moves = tf.while_loop(
        lambda number, *_: number < steps,
        add_part,
        (
            tf.constant(0),
            [ops.zeros(weight.shape, weight.dtype) for weight in weights],
            [ops.zeros_like(statistic) for statistic in before],
        ),
        parallel_iterations=1,
    )
    for statistic, old, move in zip(statistics, before, moves, strict=True):
        statistic.assign(old + move / steps)
    model.optimizer.apply_gradients(zip(gradients, weights, strict=True))
    return model.get_metrics_result()


def _moving_statistics(model):
    """The weights that move without a gradient, where they are not frozen."""
    return [
        weight
        for layer in model.network.layers
        if layer.trainable
        for weight in layer.non_trainable_weights
    ]


def _gradients(model, data, steps):
    """What `keras.Model.train_step` does with a batch, but for the update.

    The gradients are those of an N-th of the loss, for their sum to be a mean.
    """
    import tensorflow as tf

    images, targets = data
    with tf.GradientTape() as tape:
        answers = model(images, training=True)
        # Keras divides it by the number of replicas, whose gradients it adds.
        share = model.compute_loss(images, targets, answers, training=True)
        scaled = model.optimizer.scale_loss(share / steps)
    loss = share * tf.distribute.get_strategy().num_replicas_in_sync
    for metric in model.metrics:
        if metric.name == "loss":
            metric.update_state(loss)
    model.compute_metrics(images, targets, answers)
    return tape.gradient(
        scaled, model.trainable_weights, unconnected_gradients="zero"
    )
