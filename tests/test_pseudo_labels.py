# SPDX-License-Identifier: Apache-2.0
"""Row k stays the k-th image, from the teacher to the student's batch."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import clean_view

from noisy_student.data import sources
from noisy_student.errors import UserError
from noisy_student.pseudo_labels import predict
from noisy_student.pseudo_labels.dataset import pseudo_labeled_examples
from noisy_student.pseudo_labels.store import LabelStore
from noisy_student.training import distribution


def gray_png(value):
    image = np.full((8, 8, 1), value, np.uint8)
    return tf.io.encode_png(image).numpy()


def make_source(images):
    """A source in memory with several shards, labels 0, 1, 2, 0, ..."""
    return sources.source_in_memory(
        name="made",
        class_names=("a", "b", "c"),
        fingerprint="f",
        references=images,
        labels=[i % 3 for i in range(len(images))],
        load=tf.identity,
        row_name=lambda row: f"image {row}",
    )


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(sources, "IMAGES_PER_SHARD", 7)


def store_for(source, directory, num_classes=3):
    return LabelStore(directory, source.shard_sizes, num_classes)


def test_files_are_plain_and_named_by_shard(tmp_path, small_shards):
    source = make_source([gray_png(v) for v in range(17)])
    store = store_for(source, tmp_path)
    assert store.missing_shards() == [0, 1, 2]
    store.write_probs(1, np.full((7, 3), 1 / 3, np.float32))
    assert store.missing_shards() == [0, 2]
    path = tmp_path / "probs-00001-of-00003.npy"
    array = np.load(path, mmap_mode="r")
    assert (array.dtype, array.shape) == (np.float16, (7, 3))
    assert not list(tmp_path.glob("*tmp*")), "a temporary file was left"
    with pytest.raises(ValueError, match="expected"):
        store.write_probs(2, np.zeros((7, 3)))


def test_labels_of_something_else_are_refused(tmp_path):
    store = LabelStore(tmp_path, (4,), 3)
    manifest = {"source": {"fingerprint": "a"}, "teacher": {"sha256": "t"}}
    store.begin(manifest)
    store.begin(manifest)
    for key in manifest:
        with pytest.raises(UserError, match=f"another {key}"):
            store.begin({**manifest, key: {"x": 1}})
    assert json.loads(store.manifest_path.read_text()) == manifest


def test_a_damaged_file_is_named(tmp_path):
    store = LabelStore(tmp_path, (4,), 3)
    np.save(store.probs_path(0), np.zeros((4, 2), np.float16))
    with pytest.raises(UserError, match="probs-00000"):
        store.confidences()


def read_all(examples):
    """(reference, target) of a pass, in order."""
    pairs = []
    for shard in range(examples.num_shards):
        for reference, raw in examples.open_shard(shard):
            pairs.append((reference.numpy(), examples.target(raw).numpy()))
    return pairs


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_copies_filter_and_repeat_the_right_images(
    tmp_path, small_shards, kind
):
    rng = np.random.default_rng(0)
    images = [gray_png(v) for v in range(17)]
    source = make_source(images)
    store = store_for(source, tmp_path)
    probs = rng.dirichlet(np.ones(3), 17).astype(np.float32)
    copies = rng.integers(0, 4, 17).astype(np.uint32)
    bounds = np.cumsum((0, *source.shard_sizes))
    for shard in range(3):
        store.write_probs(shard, probs[bounds[shard] : bounds[shard + 1]])
    store.write_copies(copies, {"num_kept": 1})
    examples = pseudo_labeled_examples(
        source, store, kind=kind, label_smoothing=0.3
    )
    assert examples.num_examples == copies.sum()
    pairs = read_all(examples)
    expected = [row for row in range(17) for _ in range(copies[row])]
    assert [p[0] for p in pairs] == [images[row] for row in expected]
    for (_, target), row in zip(pairs, expected, strict=True):
        assert target.dtype == np.float32
        np.testing.assert_allclose(target.sum(), 1, atol=1e-6)
        if kind == "soft":
            np.testing.assert_allclose(target, probs[row], atol=2e-3)
        else:
            top = np.full(3, 0.1, np.float32)
            top[probs[row].argmax()] += 0.7
            np.testing.assert_allclose(target, top, atol=1e-6)


def test_temperature_softens(tmp_path):
    source = make_source([gray_png(0)])
    store = store_for(source, tmp_path)
    store.write_probs(0, np.array([[0.64, 0.32, 0.04]], np.float32))
    store.write_copies(np.array([1], np.uint32), {})
    examples = pseudo_labeled_examples(source, store, temperature=2.0)
    root = np.sqrt([0.64, 0.32, 0.04])
    np.testing.assert_allclose(
        read_all(examples)[0][1], root / root.sum(), atol=1e-3
    )


def brightness_network():
    """Logits that tell how bright the image is: `(v, -v, 0)`, v in 0..1."""
    pixels = keras.Input((8, 8, 3))
    mean = keras.layers.GlobalAveragePooling2D()(pixels)
    kernel = np.zeros((3, 3), np.float32)
    kernel[0] = (1 / 255, -1 / 255, 0)
    dense = keras.layers.Dense(3, use_bias=False)
    logits = dense(mean)
    dense.set_weights([kernel])
    return keras.Model(pixels, logits)


@pytest.mark.parametrize("num_devices", [1, 2])
@pytest.mark.parametrize("batch_size", [2, 4, 100])
def test_predictions_stand_at_their_image(
    small_shards, num_devices, batch_size
):
    images = [gray_png(15 * v) for v in range(17)]
    images[3], images[16] = b"no image", b""
    source = make_source(images)
    strategy = distribution.make_strategy(
        "mirrored" if num_devices == 2 else "cpu"
    )
    with strategy.scope():
        predictor = predict.make_predictor(brightness_network())
    row = 0
    predictions = predict.predict_shards(
        predictor,
        source,
        range(len(source.shard_sizes)),
        num_classes=3,
        image_size=8,
        augment=clean_view(8),
        batch_size=batch_size,
    )
    for shard, probs, labels in predictions:
        size = source.shard_sizes[shard]
        assert probs.shape == (size, 3) and labels.shape == (size,)
        for k in range(size):
            if row in (3, 16):
                assert np.isnan(probs[k]).all() and labels[k] == -1
            else:
                value = 15 * row / 255
                logits = np.exp([value, -value, 0])
                np.testing.assert_allclose(
                    probs[k], logits / logits.sum(), atol=1e-5
                )
                assert labels[k] == row % 3
            row += 1


def test_a_shard_without_any_image_is_no_error():
    source = make_source([b"no image", b""])
    predictor = predict.make_predictor(brightness_network())
    ((_, probs, labels),) = predict.predict_shards(
        predictor,
        source,
        [0],
        num_classes=3,
        image_size=8,
        augment=clean_view(8),
        batch_size=4,
    )
    assert np.isnan(probs).all() and (labels == -1).all()
