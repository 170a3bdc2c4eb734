# SPDX-License-Identifier: Apache-2.0
"""Every setting has a test that fails when it does not arrive.

A new field of `Config` fails here until it is in one of the two tables: with
the test that watches it, or among those on which nothing depends that is
trained, labeled, selected or measured.
"""

import ast
import dataclasses
import pathlib

import mutants

from noisy_student.config import Config

SOFT = "test_soft_labels_and_a_ratio_for_each_student"
HARD = "test_hard_labels_of_finetuned_students"
ALONE = "test_pseudo_labels_alone_and_a_last_rate"
DEVICES = "test_two_devices_compute_what_one_does"
ONLINE = "test_an_online_teacher_in_parts"
WEIGHTS = "test_weights_from_elsewhere"
BUILT = "test_networks_are_built_as_the_settings_say"
NOISE = "test_noise_meets_the_images_it_is_meant_for"
CROPS = "test_crops_and_mirrored_images"
SEED = "test_the_seed_decides_weights_and_order"
SELECT = "test_the_settings_of_a_selection"
RECORDS = "test_tfrecords_in_every_role"
SETS = "test_splits_and_folders_of_data_sets"

WATCHED = {
    "mode": WEIGHTS,
    "workdir": SOFT,
    "seed": SEED,
    "iteration": SOFT,
    "distribution": DEVICES,
    "cpu_devices": DEVICES,
    "dataset": SETS,
    "labeled_split": SETS,
    "unlabeled_split": SETS,
    "eval_split": SETS,
    "data_dir": SETS,
    "labeled_dir": SOFT,
    "unlabeled_dir": SOFT,
    "eval_dir": SOFT,
    "labeled_tfrecords": RECORDS,
    "unlabeled_tfrecords": RECORDS,
    "eval_tfrecords": RECORDS,
    "tfrecord_first_label": RECORDS,
    "num_classes": SETS,
    "shuffle_buffer": SEED,
    "init_from": WEIGHTS,
    "train_teacher": WEIGHTS,
    "student_init_from": WEIGHTS,
    "warm_start": HARD,
    "variant": BUILT,
    "students": BUILT,
    "image_size": BUILT,
    "mean": BUILT,
    "std": BUILT,
    "small_images": BUILT,
    "width": BUILT,
    "depth": BUILT,
    "dropout_rate": BUILT,
    "stochastic_depth_rate": BUILT,
    "batch_norm_momentum": SOFT,
    "dtype": BUILT,
    "labeled_noise": NOISE,
    "unlabeled_noise": NOISE,
    "teacher_noise": NOISE,
    "finetune_noise": NOISE,
    "crop": CROPS,
    "crop_padding": CROPS,
    "flip": CROPS,
    "randaugment_num_ops": NOISE,
    "randaugment_magnitude": NOISE,
    "randaugment_ops": NOISE,
    "randaugment_contrast": NOISE,
    "cutout_const": NOISE,
    "translate_const": NOISE,
    "cutout_size": NOISE,
    "batch_size": SOFT,
    "accumulation_steps": ONLINE,
    "unlabeled_ratio": SOFT,
    "unlabeled_weight": ONLINE,
    "joint_training": ALONE,
    "epochs": SOFT,
    "train_steps": ALONE,
    "base_lr": SOFT,
    "lr_decay_factor": SOFT,
    "lr_decay_epochs": SOFT,
    "final_base_lr": ALONE,
    "warmup_epochs": WEIGHTS,
    "weight_decay": SOFT,
    "label_smoothing": SOFT,
    "ema_decay": SOFT,
    "finetune": HARD,
    "finetune_epochs": HARD,
    "frozen_blocks": WEIGHTS,
    "pseudo_label_kind": HARD,
    "temperature": SOFT,
    "label_top_k": ALONE,
    "online_teacher": ONLINE,
    "selection": SELECT,
    "selection_from": SELECT,
    "confidence_threshold": SOFT,
    "confidence_ceiling": SELECT,
    "images_per_class": SOFT,
    "balance": SELECT,
    "duplicate": SELECT,
    "max_unlabeled": SELECT,
    "max_copies": "test_no_image_is_shown_more_often_than_max_copies",
}
CHANGES_NOTHING = {
    "checkpoint_minutes",  # what a stop loses
    "force",  # what is refused
    "download",
    "rematerialize",  # the same numbers in less memory
    "eval_batch_size",
    "input",
    "output",
    "export_formats",
    "num_unlabeled",
    "plan_device",
    "plan_devices",
    "plan_memory_gb",
}


def test_every_setting_is_watched():
    fields = {field.name for field in dataclasses.fields(Config)}
    known = WATCHED.keys() | CHANGES_NOTHING
    assert not WATCHED.keys() & CHANGES_NOTHING
    assert fields - known == set(), "no test watches these"
    assert known - fields == set(), "there are no such settings any more"


def test_the_tests_that_watch_are_there():
    found = set()
    for path in pathlib.Path(__file__).parent.glob("test_*.py"):
        tree = ast.parse(path.read_text())
        found |= {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
    assert set(WATCHED.values()) <= found, set(WATCHED.values()) - found
    named = {test.rpartition("::")[2] for *_, test in mutants.MUTANTS}
    assert named <= found, named - found


def test_the_list_of_mistakes_is_up_to_date():
    """Whoever changes a line that is on it writes the mistake anew."""
    assert mutants.outdated() == {}
