# SPDX-License-Identifier: Apache-2.0
"""Pseudo-labels that the teacher makes while the student trains.

The official SVHN script labels in the training step: nothing is stored,
filtered or balanced, and the teacher answers for every batch anew. It is
another source of targets, not another way to train.
"""

from keras import ops


def teacher_targets(
    logits, *, kind="soft", temperature=1.0, label_smoothing=0.1
):
    """What the student shall answer, from the teacher's answers.

    Args:
        logits: float `(U, C)` of the teacher, for clean images.
        kind: `soft` for the teacher's distribution; `hard` for its top class,
            label-smoothed like a real label.
        temperature: T of `softmax(logits / T)`, for soft targets alone.
        label_smoothing: s, for hard targets alone, as in the official code.

    Returns:
        float32 `(U, C)`, each row a distribution, without a gradient.

    Raises:
        ValueError: For an unknown kind.

    Reference: noisystudent/main.py, `teacher_prob`, `teacher_one_hot_pred`.
    """
    if kind not in ("soft", "hard"):
        raise ValueError(f"kind must be soft or hard, not {kind!r}.")
    logits = ops.stop_gradient(ops.cast(logits, "float32"))
    if kind == "soft":
        return ops.softmax(logits / temperature, axis=-1)
    num_classes = logits.shape[-1]
    top_class = ops.argmax(logits, axis=-1)
    one_hot = ops.one_hot(top_class, num_classes, dtype="float32")
    return one_hot * (1 - label_smoothing) + label_smoothing / num_classes


class OnlineTeacher:
    """A network that fills in the targets of the pseudo-labeled images.

    Args:
        network: A `keras.Model` from pixels to logits, never trained here.
        num_labeled: Labeled rows of a batch on each replica; they come first
            and keep their targets.
        kind: As in `teacher_targets`.
        temperature: As in `teacher_targets`.
        label_smoothing: As in `teacher_targets`.
    """

    def __init__(self, network, *, num_labeled, **targets):
        self.network = network
        weights = {id(weight) for weight in network.weights}
        self.noise = [v for v in network.variables if id(v) not in weights]
        self.num_labeled = num_labeled
        self.targets = targets

    def complete(self, data):
        """Put the teacher's answers into a batch.

        Args:
            data: Pair of a dict of `pixels`, what the student sees, and
                `teacher_pixels`, what the teacher sees, `(B + U, ...)` each,
                and float targets `(B + U, C)`.

        Returns:
            Pair of the pixels and the targets, the last U of them replaced.
        """
        images, targets = data
        logits = self.network(
            images["teacher_pixels"][self.num_labeled :], training=False
        )
        answers = teacher_targets(logits, **self.targets)
        return images["pixels"], ops.concatenate(
            [targets[: self.num_labeled], answers]
        )
