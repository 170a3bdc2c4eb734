# SPDX-License-Identifier: Apache-2.0
"""What is printed says the numbers that it should."""

import numpy as np
import pytest

from noisy_student import assembly
from noisy_student.config import Config
from noisy_student.data import sources
from noisy_student.reporting import console
from noisy_student.reporting import selection_summary


def test_data_summary_counts_images_steps_and_passes():
    text = console.data_summary(
        sources.digits("labeled").class_names,
        {
            "labeled": sources.digits("labeled"),
            "unlabeled": sources.digits("unlabeled"),
            "evaluation": None,
        },
        batch_size=20,
        unlabeled_batch_size=60,
    )
    lines = [line.split() for line in text.splitlines()]
    assert lines[1][:3] == ["classes", "10", "0,"]
    assert lines[2][:2] == ["labeled", "50"]
    assert lines[3][:2] == ["unlabeled", "947"]
    assert lines[4][:3] == ["evaluation", "0", "none"]
    assert "2.5 steps of 20" in text
    assert "0.16 passes" in text  # 2.5 * 60 / 947


@pytest.mark.parametrize(
    ("warmup_epochs", "train_steps", "told"),
    [(5, 3, True), (5, 12, True), (5, 13, False), (0, 1, False)],
)
def test_a_warm_up_longer_than_the_training_is_told(
    warmup_epochs, train_steps, told
):
    config = Config(
        batch_size=20,
        train_steps=train_steps,
        warmup_epochs=warmup_epochs,
    )
    # Of 50 images: 2.5 steps an epoch, 12.5 steps of warm-up cut to 12.
    text = console.training_summary(
        role="teacher",
        variant="b0",
        image_size=8,
        steps=assembly.num_steps(config, "teach", 50),
        batch_size=20,
        num_labeled=50,
        unlabeled_batch_size=0,
        num_unlabeled=0,
        num_replicas=1,
        warmup_steps=assembly.num_warmup_steps(config, "teach", 50),
    )
    assert ("takes 12 steps, so the learning rate never" in text) == told


def test_selection_says_what_it_kept_and_which_class_is_empty():
    confidence = np.array([0.9, 0.2, 0.8, np.nan], np.float32)
    classes = np.array([0, 0, 1, 0])
    copies = np.array([2, 0, 2, 0], np.uint32)
    summary = selection_summary.summarize(
        confidence,
        classes,
        copies,
        threshold=0.3,
        images_per_class=2,
        class_names=("cat", "dog", "wolf"),
    )
    assert summary["num_undecodable"] == 1
    assert summary["above_threshold_per_class"] == [1, 1, 0]
    assert summary["selected_per_class"] == [2, 2, 0]
    text = selection_summary.text(summary)
    assert "2 of 4 images" in text and "wolf" in text


def test_results_table_has_a_line_for_each_model():
    records = [
        {
            "phase": phase,
            "iteration": iteration,
            "variant": "b0",
            "top1": top1,
            "top5": None,
            "steps": 5,
        }
        for phase, iteration, top1 in (
            ("teach", 0, 0.5),
            ("label", 1, None),
            ("distill", 1, 0.625),
            ("evaluate", 1, 0.1),
        )
    ]
    table = console.results_table(records, [1.4, 0.1, None, 2], 10)
    lines = table.strip().splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["teacher", "student"]
    assert "50.00%" in lines[2] and "62.50%" in lines[3]


def test_top_5_of_five_classes_says_nothing():
    record = {"phase": "teach", "iteration": 0, "variant": "b0", "steps": 1}
    record |= {"top1": 0.5, "top5": 1.0}
    assert console.accuracy_text(record, 5) == "top-1 50.00%"
    assert console.accuracy_text(record, 6) == "top-1 50.00%, top-5 100.00%"
    assert "100.00%" not in console.results_table([record], [1], 5)
    assert "100.00%" in console.results_table([record], [1], 6)


def test_a_threshold_that_filters_nothing_is_told():
    for names, is_told in ((("a", "b", "c"), True), (tuple("abcd"), False)):
        summary = selection_summary.summarize(
            np.array([0.4, 0.9]),
            np.array([0, 1]),
            np.ones(2, np.uint32),
            threshold=0.3,
            images_per_class=None,
            class_names=names,
        )
        text = selection_summary.text(summary)
        assert ("nothing is filtered" in text) == is_told
        # Another's selection asks for no confidence.
        text = selection_summary.text(summary, taken_from="b0/labels")
        assert "as selected in b0/labels" in text and "confidence" not in text
