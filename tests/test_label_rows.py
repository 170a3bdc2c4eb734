# SPDX-License-Identifier: Apache-2.0
"""What is stored of a prediction says the same in every form."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from conftest import REPOSITORY

from noisy_student import batches
from noisy_student import command_line
from noisy_student import files
from noisy_student import phases
from noisy_student import prerequisites
from noisy_student.config import Config
from noisy_student.data import sources
from noisy_student.errors import UserError
from noisy_student.pseudo_labels import rows
from noisy_student.pseudo_labels import store
from noisy_student.pseudo_labels.dataset import pseudo_labeled_examples
from noisy_student.pseudo_labels.store import LabelStore
from noisy_student.run import open_run


def make_probs(count, num_classes, seed=0):
    """float32 `(count, C)` with ties, a row of NaN and a uniform row."""
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.full(num_classes, 0.3), count)
    pairs = np.repeat(probs[::5, ::2], 2, axis=1)[:, :num_classes]
    probs[::5] = pairs / 2  # which do not even sum to 1
    probs[1], probs[2] = np.nan, 1 / num_classes
    return probs.astype(np.float32)


def filled_store(directory, probs, top_k=None, shards=(4, 3)):
    """A store with a label and one copy for each row."""
    labels = LabelStore(directory, shards, probs.shape[1], top_k)
    bounds = np.cumsum((0, *shards))
    for shard in range(len(shards)):
        labels.write_probs(shard, probs[bounds[shard] : bounds[shard + 1]])
    labels.write_copies(np.ones(len(probs), np.uint32), {})
    return labels


def k_highest(probs, k):
    """float16 and classes `(N, k)`: by sorting, of equal ones the first."""
    rounded = probs.astype(np.float16)
    classes = np.argsort(-rounded, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(rounded, classes, axis=1), classes


@pytest.mark.parametrize(
    ("num_classes", "dtype"),
    [(2, "u1"), (256, "u1"), (257, "u2"), (65_536, "u2"), (65_537, "u4")],
)
def test_classes_take_as_few_bytes_as_they_can(num_classes, dtype):
    assert rows.class_dtype(num_classes) == np.dtype(dtype)
    width = np.dtype(dtype).itemsize
    assert rows.row_dtype(num_classes).itemsize == 2 * num_classes
    assert rows.row_dtype(num_classes, 1).itemsize == 2 + width
    assert rows.bytes_per_image(num_classes, 1) == 2 * (2 + width) + 4
    whole = 2 * num_classes + 2 + width + 4
    for top_k in (None, num_classes, num_classes + 1):
        assert rows.bytes_per_image(num_classes, top_k) == whole


@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_k_highest_from_sure_to_unsure(k):
    probs = make_probs(40, 20)
    packed = rows.pack(probs, k)
    expected, classes = k_highest(probs, k)
    labeled = ~np.isnan(probs[:, 0])
    np.testing.assert_array_equal(packed["probs"], expected)
    np.testing.assert_array_equal(packed["classes"][labeled], classes[labeled])


@pytest.mark.parametrize("top_k", [None, 1, 3])
def test_a_selection_reads_the_same_whatever_is_stored(tmp_path, top_k):
    probs = make_probs(7, 20)
    labels = filled_store(tmp_path, probs, top_k)
    stored = probs.astype(np.float16).astype(np.float32)
    confidence, classes = labels.confidences()
    assert (confidence.dtype, classes.dtype) == (np.float32, np.uint8)
    np.testing.assert_array_equal(confidence, stored.max(axis=1))
    np.testing.assert_array_equal(classes, stored.argmax(axis=1))
    assert np.isnan(confidence).sum() == 1
    # Labels from before there were such files, or of which one is lost.
    labels.top_path(1).unlink()
    for again, before in zip(
        labels.confidences(), (confidence, classes), strict=True
    ):
        np.testing.assert_array_equal(again, before)


def test_files_open_without_this_project(tmp_path):
    labels = filled_store(tmp_path, make_probs(7, 300), 2)
    path = tmp_path / "probs-00001-of-00002.npy"
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    assert array["probs"].dtype == np.float16 and array["probs"].shape == (3, 2)
    assert array["classes"].dtype == np.uint16
    top = np.load(labels.top_path(1), mmap_mode="r", allow_pickle=False)
    np.testing.assert_array_equal(top["confidence"], array["probs"][:, 0])
    np.testing.assert_array_equal(top["class"], array["classes"][:, 0])


def test_a_shard_that_was_stopped_halfway_is_not_labeled(tmp_path, monkeypatch):
    labels = LabelStore(tmp_path, (4, 3), 20)

    def stop_at_probs(path, write):
        if "probs" in path.name:
            raise KeyboardInterrupt
        files.write_atomically(path, write)

    monkeypatch.setattr(store, "write_atomically", stop_at_probs)
    with pytest.raises(KeyboardInterrupt):
        labels.write_probs(0, make_probs(4, 20))
    assert labels.top_path(0).exists()
    assert labels.missing_shards() == [0, 1]


def made_whole(probs, k):
    """float64 `(C,)`: what one row's k highest leave is shared evenly."""
    highest, classes = (x[0] for x in k_highest(probs[np.newaxis], k))
    highest = highest.astype(np.float64)
    rest = (1 - highest.sum()) / (len(probs) - k)
    whole = np.full(len(probs), np.clip(rest, 0, highest[-1]))
    whole[classes] = highest
    return whole / whole.sum()


def make_source(shard_sizes, monkeypatch):
    monkeypatch.setattr(sources, "IMAGES_PER_SHARD", shard_sizes[0])
    count = sum(shard_sizes)
    source = sources.source_in_memory(
        name="made",
        class_names=(),
        fingerprint="f",
        references=[f"image {row}" for row in range(count)],
        labels=[sources.NO_LABEL] * count,
        load=tf.identity,
        row_name=str,
    )
    assert source.shard_sizes == shard_sizes
    return source


def targets_of(source, labels, **settings):
    examples = pseudo_labeled_examples(source, labels, **settings)
    found = [
        examples.target(raw).numpy()
        for shard in range(examples.num_shards)
        for _, raw in examples.open_shard(shard)
    ]
    assert len(found) == examples.num_examples
    return np.array(found)


@pytest.mark.parametrize(
    ("num_classes", "k"), [(20, 1), (20, 3), (300, 3), (70_000, 1)]
)
def test_a_student_sees_the_distribution(tmp_path, monkeypatch, num_classes, k):
    probs = make_probs(7, num_classes)
    if num_classes > 65_536:  # a class that 16 bits cannot number
        probs[3, -1] = 0.9
    labels = filled_store(tmp_path, probs, k)
    source = make_source((4, 3), monkeypatch)
    labeled = [row for row in range(7) if row != 1]
    soft = targets_of(source, labels)
    assert soft.dtype == np.float32 and np.isnan(soft[1]).all()
    whole = np.array([made_whole(probs[row], k) for row in labeled])
    np.testing.assert_allclose(soft[labeled], whole, rtol=1e-4, atol=1e-7)
    # The top class of equal ones is the first, also where all are equal.
    hard = targets_of(source, labels, kind="hard", label_smoothing=0.0)
    top = probs.astype(np.float16).argmax(axis=1)
    np.testing.assert_array_equal(hard.argmax(axis=1)[labeled], top[labeled])
    # The temperature is that of the whole distribution.
    softer = targets_of(source, labels, temperature=2.0)[labeled]
    root = np.sqrt(whole)
    root /= root.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(softer, root, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", ["soft", "hard"])
@pytest.mark.parametrize("k", [None, 2])
def test_half_precision_is_cast_and_nothing_else(
    tmp_path, monkeypatch, kind, k
):
    # Of CPUs without its arithmetic, oneDNN calls all else an error.
    labels = filled_store(tmp_path, make_probs(7, 5), k)
    examples = pseudo_labeled_examples(
        make_source((4, 3), monkeypatch), labels, kind=kind
    )
    graph = (
        tf.function(examples.target)
        .get_concrete_function(tf.TensorSpec([], tf.string))
        .graph
    )
    taken_by = {
        operation.type
        for operation in graph.get_operations()
        for tensor in operation.inputs
        if tensor.dtype == tf.float16
    }
    assert taken_by <= {"Cast"}


def test_all_classes_are_stored_as_ever(tmp_path, monkeypatch):
    probs = make_probs(7, 5)
    source = make_source((4, 3), monkeypatch)
    plain = filled_store(tmp_path / "plain", probs)
    for k in (5, 6):
        labels = filled_store(tmp_path / str(k), probs, k)
        for shard in range(2):
            path = labels.probs_path(shard)
            assert path.read_bytes() == plain.probs_path(shard).read_bytes()
        np.testing.assert_array_equal(
            targets_of(source, labels), targets_of(source, plain)
        )


@pytest.mark.parametrize(("written", "read"), [(None, 2), (2, None), (2, 3)])
def test_labels_in_another_form_are_never_misread(
    tmp_path, monkeypatch, written, read
):
    filled_store(tmp_path, make_probs(7, 20), written)
    labels = LabelStore(tmp_path, (4, 3), 20, read)
    source = make_source((4, 3), monkeypatch)
    with pytest.raises(UserError, match="probs-00000.*expected.*label again"):
        pseudo_labeled_examples(source, labels)
    labels.top_path(0).unlink()
    with pytest.raises(UserError, match="probs-00000.*expected.*label again"):
        labels.confidences()


def test_a_damaged_top_file_is_named(tmp_path):
    labels = filled_store(tmp_path, make_probs(7, 20))
    np.save(labels.top_path(1), np.zeros(3, np.float16))
    with pytest.raises(UserError, match="top-00001"):
        labels.confidences()
    np.save(labels.copies_path(1), np.zeros(4, np.uint32))
    with pytest.raises(UserError, match="copies-00001.*select again"):
        labels.num_selected()


def test_from_the_flag_to_the_students_batch(tmp_path):
    settings = command_line.read_flagfile(REPOSITORY / "flags" / "smoke.flags")
    settings |= {"workdir": str(tmp_path), "randaugment_num_ops": 0}
    run = open_run(Config(**settings, label_top_k=3))
    model = run.workdir.trained_model(0)
    model.parent.mkdir(parents=True)
    model.write_bytes(b"nobody asks it anything")
    labels = run.label_store(1)
    manifest = prerequisites.manifest(run, 1)
    assert manifest["label_top_k"] == 3
    labels.begin(manifest)
    rng = np.random.default_rng(0)
    sizes = run.unlabeled.shard_sizes
    for shard, size in enumerate(sizes):
        labels.write_probs(shard, rng.dirichlet(np.full(10, 0.2), size))
    phases.select(run, 1)
    assert prerequisites.finished_labels(run, 1).num_selected()

    unlabeled_size = run.unlabeled_batch_size(1)
    made = batches.make_batches(run, "distill", 1)(0)
    _, targets = next(iter(made))
    # Of each pseudo-labeled image three probabilities and seven equal ones.
    for target in targets.numpy()[-unlabeled_size:]:
        values, counts = np.unique(target, return_counts=True)
        assert counts.max() >= 7 and len(values) <= 4
        np.testing.assert_allclose(target.sum(), 1, atol=1e-6)

    other = dataclasses.replace(run, config=Config(**settings))
    with pytest.raises(UserError, match="with another label_top_k .3, now nul"):
        prerequisites.finished_labels(other, 1)
    # Ten of ten classes are all of them.
    every = Config(**settings, label_top_k=10)
    assert dataclasses.replace(run, config=every).label_store(1).top_k is None


def test_labels_of_before_are_those_of_all_classes(tmp_path):
    labels = LabelStore(tmp_path, (4,), 20)
    manifest = {"source": {"fingerprint": "0"}, "crop": "padded"}
    labels.begin(manifest)
    labels.write_probs(0, np.full((4, 20), 0.05))
    labels.begin(manifest | {"label_top_k": None})
    with pytest.raises(UserError, match="another label_top_k"):
        labels.begin(manifest | {"label_top_k": 3})
