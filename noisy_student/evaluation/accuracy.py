# SPDX-License-Identifier: Apache-2.0
"""Top-1 and top-5 accuracy, exact over all images that can be decoded."""

import numpy as np


class Accuracy:
    """Counts of right answers, added up batch by batch or shard by shard."""

    def __init__(self):
        self.num_examples = 0
        self.num_top1 = 0
        self.num_top5 = 0

    def update(self, probs, labels):
        """Count some images.

        Args:
            probs: float `(N, C)`; rows of NaN are images that could not be
                decoded and are not counted.
            labels: integer `(N,)`.
        """
        predicted = ~np.isnan(probs).any(axis=1)
        probs, labels = probs[predicted], labels[predicted]
        own = probs[np.arange(len(labels)), labels][:, None]  # (N, 1)
        # Classes that come before the true one; of equals the lower number,
        # as argmax does.
        classes = np.arange(probs.shape[1])[None]
        before = (probs > own) | ((probs == own) & (classes < labels[:, None]))
        rank = before.sum(axis=1)
        self.num_examples += len(labels)
        self.num_top1 += int((rank < 1).sum())
        self.num_top5 += int((rank < 5).sum())

    def result(self):
        """Dict of `top1` and `top5` in `[0, 1]` and `num_examples`."""
        if not self.num_examples:
            return {"top1": None, "top5": None, "num_examples": 0}
        return {
            "top1": self.num_top1 / self.num_examples,
            "top5": self.num_top5 / self.num_examples,
            "num_examples": self.num_examples,
        }


def chance(labels, answers):
    """How many answers would be right if they belonged to other images.

    The same answers, dealt to the same images in random order: what Cohen's
    kappa calls chance. Who always says the most frequent class is right as
    often as that, and not more often.

    Args:
        labels: integer `(N,)`, the true classes.
        answers: integer `(N,)`, the predicted ones.

    Returns:
        Pair of floats: mean and standard deviation of the right answers.
    """
    count = len(labels)
    num_classes = 1 + max(labels.max(), answers.max())
    true, said = (
        np.bincount(column, minlength=num_classes) / count
        for column in (labels, answers)
    )
    both = true * said
    spread = (both * (1 - true) * (1 - said)).sum()
    spread += both.sum() ** 2 - (both**2).sum()
    # Never below zero but for rounding.
    variance = max(0.0, spread) * count**2 / max(count - 1, 1)
    return float(count * both.sum()), float(np.sqrt(variance))


def interval(num_right, num_examples):
    """Where an accuracy lies with 95 % confidence: exact, Clopper-Pearson.

    Args:
        num_right: Right answers.
        num_examples: All answers, at least 1.

    Returns:
        Pair of floats in [0, 1].
    """
    from scipy import stats

    bounds = stats.binomtest(num_right, num_examples).proportion_ci(0.95)
    return float(bounds.low), float(bounds.high)
