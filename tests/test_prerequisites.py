# SPDX-License-Identifier: Apache-2.0
"""What is refused before time is wasted on it, and with which numbers."""

import dataclasses

import numpy as np
import pytest
from conftest import REPOSITORY

from noisy_student import command_line
from noisy_student import learning
from noisy_student import phases
from noisy_student import prerequisites
from noisy_student.config import Config
from noisy_student.errors import UserError
from noisy_student.evaluation import predictions
from noisy_student.run import open_run


@pytest.fixture
def make_run(tmp_path):
    """Runs on the digits whose teacher is a file that nobody opens."""

    def make(**settings):
        recipe = REPOSITORY / "flags" / "smoke.flags"
        base = command_line.read_flagfile(recipe)
        settings = base | {"workdir": str(tmp_path / "run")} | settings
        run = open_run(Config(**settings))
        model = run.workdir.trained_model(0)
        model.parent.mkdir(parents=True, exist_ok=True)
        model.write_bytes(b"a model")
        return run

    return make


def label(run, classes):
    """Labels of full confidence for the first images, of little for others."""
    labels = run.label_store(1)
    labels.begin(prerequisites.manifest(run, 1))
    rows = np.arange(run.unlabeled.num_examples)
    probs = np.full((len(rows), 10), 0.09, np.float32)
    probs[rows, rows % 10] = 0.19
    probs[: len(classes)] = np.eye(10)[classes]
    start = 0
    for shard, size in enumerate(run.unlabeled.shard_sizes):
        labels.write_probs(shard, probs[start : start + size])
        start += size
    return labels


@pytest.mark.parametrize(
    ("classes", "numbers"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7, 8], "9 of 947 .* none for 1 of 10"),
        ([0, 1, 2, 3] * 30, "120 of 947 .* none for 6 of 10"),
    ],
    ids=["few images", "few classes"],
)
def test_a_poor_selection_is_refused_but_by_force(make_run, classes, numbers):
    run = make_run(confidence_threshold=0.5, balance=False)
    label(run, classes)
    phases.select(run, 1)
    with pytest.raises(UserError, match=f"{numbers} .*--mode=select.*--force"):
        prerequisites.finished_labels(run, 1)
    forced = make_run(confidence_threshold=0.5, balance=False, force=True)
    kept = prerequisites.finished_labels(forced, 1).num_selected()
    assert kept == len(classes)


def test_an_empty_selection_is_refused_by_force_too(make_run):
    run = make_run(confidence_threshold=0.5, force=True)
    label(run, [])
    phases.select(run, 1)
    with pytest.raises(UserError, match="no unlabeled image passed"):
        prerequisites.finished_labels(run, 1)


def test_a_fair_selection_is_taken_with_a_warning(make_run, capsys):
    run = make_run(confidence_threshold=0.5, balance=False)
    label(run, list(range(9)) + [0])
    phases.select(run, 1)
    assert "no image was kept for 1 of 10 classes: 9" in capsys.readouterr().out
    assert prerequisites.finished_labels(run, 1).num_selected() == 10


def test_copies_that_are_not_those_of_the_selection_are_refused(make_run):
    run = make_run(confidence_threshold=0.5, balance=False)
    labels = label(run, list(range(10)) * 3)
    phases.select(run, 1)
    copies = np.array(labels.read_copies(0))
    copies[0] += 1 << 16
    np.save(labels.copies_path(0), copies)
    with pytest.raises(UserError, match="copies .* damaged.*--mode=select"):
        prerequisites.finished_labels(run, 1)


@pytest.mark.parametrize(
    ("top1", "count", "refused"),
    [
        (0.10, 500, True),
        (0.12, 500, True),
        (0.13, 500, False),  # guessing gets up to 0.127
        (0.10, 20, False),  # of so few nobody can tell
        (None, 0, False),
    ],
)
def test_a_teacher_that_guesses_is_no_teacher(make_run, top1, count, refused):
    record = {
        "phase": "teach",
        "iteration": 0,
        "variant": "b0",
        "top1": top1,
        "top5": top1,
        "num_examples": count,
        "steps": 1,
    }
    for online in (False, True):
        run = make_run(online_teacher=online)
        run.workdir.append_result(record, 1.0)
        if not refused:
            prerequisites.check_better_than_guessing(run, 0)
            continue
        teach = learning.train if online else phases.label
        with pytest.raises(UserError, match=f"{top1:.2%} of {count}.*--force"):
            teach(run, 1)
        forced = make_run(force=True)
        prerequisites.check_better_than_guessing(forced, 0)


# The answers to true classes, and what is said of them; None if they will do.
def answers(*counts):
    """Pairs of arrays: true class and answer, as often as the counts say."""
    rows = [(true, said) for true, said, count in counts for _ in range(count)]
    return np.array(rows).T


@pytest.mark.parametrize(
    ("given", "why"),
    [
        # The larger of two unequal classes is always right at 70 %.
        (answers((0, 0, 70), (1, 0, 30)), "100.00% of them is 0, which 70.00%"),
        # The other one too, and nearly always is no better.
        (answers((0, 1, 70), (1, 1, 30)), "100.00% of them is 1, which 30.00%"),
        (
            answers((0, 0, 499), (1, 0, 490), (1, 1, 11)),
            "98.90% of them is 0, which 49.90%",
        ),
        # Guessing as often as the classes are frequent.
        (
            answers((0, 0, 50), (0, 1, 20), (1, 0, 21), (1, 1, 9)),
            "in random order get up to 66.76",
        ),
        # Right on 80 % of nine to one, but on most of the smaller class.
        (answers((0, 0, 150), (0, 1, 30), (1, 1, 15), (1, 0, 5)), None),
        (answers((0, 0, 69), (1, 0, 10), (1, 1, 20), (0, 1, 1)), None),
        # Of one class nobody can tell.
        (answers((0, 0, 60), (0, 1, 40)), None),
    ],
    ids=[
        "the larger class",
        "the smaller class",
        "nearly one class",
        "a guess",
        "unequal, but it has learned",
        "good",
        "one class",
    ],
)
def test_a_teacher_at_chance_is_known_by_its_answers(make_run, given, why):
    run = make_run(num_classes=None)
    labels, said = given
    rows = (labels, said[:, None].astype(np.uint8), np.ones((len(said), 1)))
    about = {"name": "digits"}
    path = predictions.path_of(
        run.workdir.model_folder(0), run.evaluation.fingerprint
    )
    predictions.save(path, [rows], about)
    top1 = float((labels == said).mean())
    record = {
        "phase": "teach",
        "iteration": 0,
        "variant": "b0",
        "top1": top1,
        "top5": top1,
        "num_examples": len(said),
        "steps": 1,
    }
    run.workdir.append_result(record, 1.0)
    if why is None:
        prerequisites.check_better_than_guessing(run, 0)
        return
    with pytest.raises(UserError, match=f"{top1:.2%} of .*{why}"):
        phases.label(run, 1)


def test_labels_of_one_class_alone_are_refused(make_run, capsys):
    run = make_run(confidence_threshold=0.5, balance=False)
    run = dataclasses.replace(
        run, labeled=dataclasses.replace(run.labeled, class_names=("a", "b"))
    )
    labels = run.label_store(1)
    labels.begin(prerequisites.manifest(run, 1))
    for shard, size in enumerate(run.unlabeled.shard_sizes):
        labels.write_probs(shard, np.tile(np.float32([0.1, 0.9]), (size, 1)))
    phases.select(run, 1)
    with pytest.raises(
        UserError, match="none for 1 of 2 classes: train .*--force"
    ):
        prerequisites.finished_labels(run, 1)
