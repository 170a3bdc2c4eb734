# SPDX-License-Identifier: Apache-2.0
"""The one loss, over a batch of labeled and pseudo-labeled images together.

A batch holds the labeled rows first (on every replica), then the
pseudo-labeled ones. The official code adds the mean loss of the labeled
images and `unlabeled_ratio` times the mean loss of the unlabeled ones; with
exactly `unlabeled_ratio` unlabeled images for each labeled one that is the sum
over all rows divided by the number of *labeled* ones. The paper has two other
weights. They are other learning rates, too: RMSProp's epsilon of 1e-3 is larger
than most gradients, so that a step grows nearly as the loss does.
"""

import keras
from keras import ops

WEIGHTS = ("ratio", "equal", "mean")  # of the pseudo-labeled part


def cross_entropy(targets, logits):
    """Cross-entropy of each row.

    Args:
        targets: float `(N, C)`, each row a distribution.
        logits: float `(N, C)`.

    Returns:
        float32 `(N,)`.
    """
    logits = ops.cast(logits, "float32")
    targets = ops.cast(targets, "float32")
    log_probs = ops.log_softmax(logits, axis=-1)
    return -ops.sum(targets * log_probs, axis=-1)


def mixed_cross_entropy(num_labeled, unlabeled_ratio, weight="ratio"):
    """Build the loss of a mixed batch.

    Args:
        num_labeled: B, how many rows of a (per-replica) batch are labeled;
            they come first. 0 when it holds pseudo-labeled images alone.
        unlabeled_ratio: Pseudo-labeled images per labeled one; 0 when the
            batch holds labeled images alone.
        weight: `ratio` for `labeled mean + unlabeled_ratio * unlabeled mean`
            (official code); `equal` for `labeled mean + unlabeled mean` (the
            paper's Algorithm 1); `mean` for the mean over all B + U images
            (the paper's text).

    Returns:
        Function `(targets (B + U, C), logits (B + U, C)) -> float32 (B + U,)`
        whose mean is the loss, the form that Keras reduces correctly on any
        number of replicas.

    Raises:
        ValueError: For another `weight`.

    Reference: noisystudent/main.py, `data_loss`; see docs/design.md.
    """
    if weight not in WEIGHTS:
        raise ValueError(f"weight must be one of {WEIGHTS}, not {weight!r}.")
    if weight == "equal" and unlabeled_ratio:
        unlabeled_ratio = 1.0

    def loss(targets, logits):
        rows = cross_entropy(targets, logits)  # (B + U,)
        if not num_labeled or (weight == "mean" and unlabeled_ratio):
            return rows
        num_rows = rows.shape[0] if rows.shape[0] else ops.shape(rows)[0]
        num_rows = ops.cast(num_rows, "float32")
        labeled_weight = num_rows / num_labeled
        labeled = rows[:num_labeled] * labeled_weight
        if not unlabeled_ratio:
            return labeled
        num_unlabeled = num_rows - num_labeled
        unlabeled_weight = unlabeled_ratio * num_rows / num_unlabeled
        unlabeled = rows[num_labeled:] * unlabeled_weight
        return ops.concatenate([labeled, unlabeled])

    loss.__name__ = "loss"
    return loss


def mixed_metrics(num_labeled, mixed):
    """What to watch: both parts of the loss apart, and how often each agrees.

    Args:
        num_labeled: B, as in `mixed_cross_entropy`.
        mixed: Whether the batches hold pseudo-labeled rows.

    Returns:
        List of `keras.metrics.Metric`: `labeled_loss` and `labeled_accuracy`
        if there are labeled rows; `unlabeled_loss` and `unlabeled_agreement`
        (how often the noised student's top class is the teacher's) when
        `mixed`.
    """
    parts = {}
    if num_labeled:
        parts["labeled"] = slice(None, num_labeled)
    if mixed:
        parts["unlabeled"] = slice(num_labeled, None)

    def loss_of(rows):
        return lambda targets, logits: cross_entropy(
            targets[rows], logits[rows]
        )

    def agreement_of(rows):
        return lambda targets, logits: ops.cast(
            ops.argmax(targets[rows], -1) == ops.argmax(logits[rows], -1),
            "float32",
        )

    agreement = {"labeled": "accuracy", "unlabeled": "agreement"}
    functions = {}
    for name, rows in parts.items():
        functions[f"{name}_loss"] = loss_of(rows)
        functions[f"{name}_{agreement[name]}"] = agreement_of(rows)
    return [
        keras.metrics.MeanMetricWrapper(function, name=name)
        for name, function in functions.items()
    ]
