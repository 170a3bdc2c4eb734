# SPDX-License-Identifier: Apache-2.0
"""Where models go wrong on the evaluation images, and where they disagree."""

import numpy as np

# Up to so many classes the table of all confusions can be read.
MATRIX_CLASSES = 20
WORST = 10


def confusion(predictions, num_classes):
    """int64 `(C, C)`: images of the row's class that were taken for a column's.

    Args:
        predictions: `Predictions`.
        num_classes: C, few enough.
    """
    rows = predictions.decoded
    label = predictions.label[rows].astype(np.int64)
    pairs = label * num_classes + predictions.classes[rows, 0]
    counts = np.bincount(pairs, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def worst_classes(predictions, num_classes):
    """The classes that are recognized least.

    Args:
        predictions: `Predictions`.
        num_classes: C.

    Returns:
        List of dicts, worst first: `number`, `num_right`, `num_examples`, and
        `taken_for`, the class that most of the others were taken for, or None;
        `times`, how many.
    """
    rows = predictions.decoded
    label, guess = predictions.label[rows], predictions.classes[rows, 0]
    examples = np.bincount(label, minlength=num_classes)
    right = np.bincount(label[label == guess], minlength=num_classes)
    seen = np.flatnonzero(examples)
    share = right[seen] / examples[seen]
    # Of equal ones the class with more images: that is the surer finding.
    order = seen[np.lexsort((seen, -examples[seen], share))]
    worst = []
    for number in order[:WORST]:
        wrong = guess[(label == number) & (guess != number)]
        taken_for, times = None, 0
        if len(wrong):
            counts = np.bincount(wrong)
            taken_for, times = int(counts.argmax()), int(counts.max())
        worst.append(
            {
                "number": int(number),
                "num_right": int(right[number]),
                "num_examples": int(examples[number]),
                "taken_for": taken_for,
                "times": times,
            }
        )
    return worst


def confused_pairs(predictions, num_classes):
    """The commonest mistakes: list of (class, taken for, times)."""
    wrong = predictions.decoded & ~predictions.right
    label = predictions.label[wrong].astype(np.int64)
    pairs, times = np.unique(
        label * num_classes + predictions.classes[wrong, 0], return_counts=True
    )
    order = np.argsort(-times, kind="stable")[:WORST]
    return [
        (int(pair // num_classes), int(pair % num_classes), int(number))
        for pair, number in zip(pairs[order], times[order], strict=True)
    ]


def surest_mistakes(predictions, count):
    """Numbers of the images that a model was wrong and yet sure about."""
    wrong = np.flatnonzero(predictions.decoded & ~predictions.right)
    sure = predictions.probs[wrong, 0].astype(np.float32)
    return wrong[np.argsort(-sure, kind="stable")][:count].tolist()


def compare(teacher, student, count):
    """Where a student agrees with its teacher, and where not.

    Args:
        teacher: `Predictions`.
        student: `Predictions` on the same images.
        count: Examples of a kind.

    Returns:
        Dict of numbers of images: `num_examples`, `agree` (the same class,
        right or wrong), `both_right`, `learned` (the student alone is right),
        `lost` (the teacher alone), `both_wrong`; and lists of numbers of
        images, those that the student is surest about: `examples_learned`,
        `examples_lost`, `examples_disputed` (both wrong, in different ways).
    """
    rows = teacher.decoded & student.decoded
    same = teacher.classes[:, 0] == student.classes[:, 0]
    kinds = {
        "both_right": rows & teacher.right & student.right,
        "learned": rows & ~teacher.right & student.right,
        "lost": rows & teacher.right & ~student.right,
        "both_wrong": rows & ~teacher.right & ~student.right,
    }
    sure = student.probs[:, 0].astype(np.float32)

    def examples(chosen):
        numbers = np.flatnonzero(chosen)
        order = np.argsort(-sure[numbers], kind="stable")
        return numbers[order][:count].tolist()

    return {
        "num_examples": int(rows.sum()),
        "agree": int((rows & same).sum()),
        **{name: int(chosen.sum()) for name, chosen in kinds.items()},
        "examples_learned": examples(kinds["learned"]),
        "examples_lost": examples(kinds["lost"]),
        "examples_disputed": examples(kinds["both_wrong"] & ~same),
    }
