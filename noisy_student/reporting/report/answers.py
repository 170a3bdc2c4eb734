# SPDX-License-Identifier: Apache-2.0
"""Sections of the page on evaluation images: mistakes and agreement."""

from noisy_student.evaluation.accuracy import interval
from noisy_student.reporting.report import facts
from noisy_student.reporting.report import figures
from noisy_student.reporting.report import mistakes
from noisy_student.reporting.report import words

EXAMPLES = 12


def wanted(answers, pairs):
    """Positions of the evaluation images that the sections show.

    Args:
        answers: The newest model's `Predictions`, or None.
        pairs: List of (teacher's, student's) `Predictions`.

    Returns:
        List of numbers of images.
    """
    numbers = []
    if answers is not None:
        numbers += mistakes.surest_mistakes(answers, EXAMPLES)
    if pairs:
        found = mistakes.compare(*pairs[-1], EXAMPLES)
        for kind in ("learned", "lost", "disputed"):
            numbers += found[f"examples_{kind}"]
    return sorted(set(numbers))


def confusion(role, answers, pictures):
    """The confusion matrix, the worst classes and the surest mistakes.

    Args:
        role: Of the model.
        answers: Its `Predictions`.
        pictures: Dict of image number -> picture.
    """
    names = answers.about["classes"]
    count = len(names)
    worst = mistakes.worst_classes(answers, count)
    for row in worst:
        low, high = interval(row["num_right"], row["num_examples"])
        row["name"] = names[row["number"]]
        row["share"] = round(100 * row["num_right"] / row["num_examples"], 1)
        row["low"], row["width"] = round(100 * low, 1), 100 * (high - low)
        taken_for = row["taken_for"]
        row["taken_for"] = None if taken_for is None else names[taken_for]
    cells = None
    if count <= mistakes.MATRIX_CLASSES:
        cells = figures.matrix(mistakes.confusion(answers, count))
    return {
        "role": role,
        "names": names,
        "matrix": cells,
        "dense": count > 12,
        "named": max(map(len, names)) <= 3,
        "num_classes": words.count(count),
        "worst": [row for row in worst if row["share"] < 100],
        "pairs": [
            {"true": names[true], "guess": names[guess], "times": times}
            for true, guess, times in mistakes.confused_pairs(answers, count)
        ],
        "num_wrong": int((answers.decoded & ~answers.right).sum()),
        "num_examples": words.count(int(answers.decoded.sum())),
        "pictures": [
            {**pictures[number], "text": _verdict(answers, number)}
            for number in mistakes.surest_mistakes(answers, EXAMPLES)
            if number in pictures
        ],
    }


def _verdict(answers, number):
    names = answers.about["classes"]
    sure = words.percent(float(answers.probs[number, 0]), 0)
    guess = words.name(names[answers.classes[number, 0]], 40)
    true = words.name(names[answers.label[number]], 40)
    return f"{guess}, {sure}; is {true}"


def agreement(pairs, roles, pictures):
    """Where students agree with their teachers, and where not.

    Args:
        pairs: List of (teacher's, student's) `Predictions`, one at least.
        roles: List of their (teacher's, student's) roles.
        pictures: Dict of image number -> picture.
    """
    rows = []
    for (teacher, student), (first, second) in zip(pairs, roles, strict=True):
        found = mistakes.compare(teacher, student, EXAMPLES)
        total = max(found["num_examples"], 1)
        chance = facts.luck(found["lost"], found["learned"])
        rows.append(
            {
                **found,
                "teacher": "the teacher"
                if first == "teacher"
                else f"its teacher, {first}",
                "student": second,
                "agree_text": words.percent(found["agree"] / total),
                "shares": {
                    key: round(100 * found[key] / total, 2)
                    for key in ("both_right", "learned", "lost", "both_wrong")
                },
                "luck": _luck(chance),
            }
        )
    teacher, student = pairs[-1]
    titles = {
        "learned": "the student alone is right",
        "lost": "the teacher alone is right",
        "disputed": "both wrong, in different ways",
    }
    groups = []
    for kind, title in titles.items():
        shown = [
            {
                **pictures[number],
                "text": _both(teacher, student, number),
            }
            for number in rows[-1][f"examples_{kind}"]
            if number in pictures
        ]
        if shown:
            groups.append({"title": title, "kind": kind, "pictures": shown})
    return {"rows": rows, "groups": groups}


def _luck(chance):
    if chance is None:
        return None
    if chance < 0.001:
        return "below 0.1%"
    return words.percent(chance, 1 if chance < 0.1 else 0)


def _both(teacher, student, number):
    names = student.about["classes"]
    words_of = [
        words.name(names[answers.classes[number, 0]], 40)
        for answers in (teacher, student)
    ]
    true = words.name(names[student.label[number]], 40)
    return f"{words_of[0]} → {words_of[1]}; is {true}"
