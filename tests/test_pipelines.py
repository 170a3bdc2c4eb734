# SPDX-License-Identifier: Apache-2.0
"""Batches hold what they should, and depend on seed and position alone."""

import numpy as np
import pytest
import tensorflow as tf
from conftest import clean_view

from noisy_student.data import augmentation
from noisy_student.data import inference
from noisy_student.data import pipelines
from noisy_student.data import sources


def gray_png(value):
    return tf.io.encode_png(np.full((8, 8, 1), value, np.uint8)).numpy()


def make_source(first, count, monkeypatch, shard_size=7):
    """`count` gray images of brightness first, first + 1, ..."""
    monkeypatch.setattr(sources, "IMAGES_PER_SHARD", shard_size)
    return sources.source_in_memory(
        name="made",
        class_names=("a", "b"),
        fingerprint="f",
        references=[gray_png(first + i) for i in range(count)],
        labels=[i % 2 for i in range(count)],
        load=tf.identity,
        row_name=str,
    )


def identity(image_bytes, seed):
    return tf.ensure_shape(tf.io.decode_png(image_bytes, 3), [8, 8, 3])


def make_part(source, batch_size, *, seed=0, start=0, augment=identity, **more):
    examples = pipelines.labeled_examples(source, **more)
    stream = pipelines.stream(
        examples, seed=seed, shuffle_buffer=100, start=start
    )
    return pipelines.Part(examples, stream, augment, batch_size)


def values(images):
    return [int(v) for v in np.asarray(images)[:, 0, 0, 0]]


def seen(part, count):
    """Brightness of the first `count` images of a part's stream."""
    batches = pipelines.labeled(part)
    found = []
    for images, _ in batches:
        found += values(images)
        if len(found) >= count:
            return found[:count]


def test_each_epoch_shows_every_image_once_in_a_new_order(monkeypatch):
    source = make_source(0, 20, monkeypatch)
    found = seen(make_part(source, 6), 60)
    epochs = [tuple(found[i : i + 20]) for i in (0, 20, 40)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(20))
    assert len(set(epochs)) == 3
    assert epochs[0] != tuple(range(20))


def test_the_stream_is_a_function_of_seed_and_position(monkeypatch):
    source = make_source(0, 20, monkeypatch)
    whole = seen(make_part(source, 4), 60)
    assert whole == seen(make_part(source, 4), 60)
    assert whole != seen(make_part(source, 4, seed=1), 60)
    # A stopped run goes on in the middle of any epoch.
    for start in (4, 20, 28, 36):
        rest = seen(make_part(source, 4, start=start), 20)
        assert rest == whole[start : start + 20], f"from {start}"


@pytest.mark.parametrize("global_seed", [0, 7])
def test_the_global_seed_changes_nothing(monkeypatch, global_seed):
    source = make_source(0, 20, monkeypatch)
    tf.random.set_seed(3)
    expected = seen(make_part(source, 4), 40)
    tf.random.set_seed(global_seed)
    assert seen(make_part(source, 4), 40) == expected
    # Nor does the stream change it for others.
    first = tf.random.uniform([])
    tf.random.set_seed(global_seed)
    assert tf.random.uniform([]) == first


def random_value(image_bytes, seed):
    noise = tf.random.stateless_uniform([8, 8, 3], seed, 0, 256, tf.int32)
    return tf.cast(noise, tf.uint8)


def test_noise_differs_between_positions_and_repeats_with_them(monkeypatch):
    source = make_source(0, 5, monkeypatch)

    def images(**settings):
        part = make_part(source, 5, augment=random_value, **settings)
        batches = pipelines.labeled(part).take(3)
        return np.concatenate([b.numpy() for b, _ in batches])

    first = images()
    assert len({image.tobytes() for image in first}) == 15
    assert (first == images()).all()
    assert (first[5:] == images(start=5)[:10]).all()


def test_skipped_rows_are_left_out_and_shift_no_label(monkeypatch):
    source = make_source(0, 20, monkeypatch)
    skipped = [(0, 3), (1, 0), (2, 5)]  # images 3, 7 and 19
    part = make_part(source, 17, skipped=skipped)
    assert part.examples.num_examples == 17
    images, targets = next(iter(pipelines.labeled(part)))
    assert sorted(values(images)) == sorted(set(range(20)) - {3, 7, 19})
    for value, target in zip(values(images), targets, strict=True):
        assert np.argmax(target) == value % 2


def test_targets_are_smoothed_one_hot(monkeypatch):
    source = make_source(0, 4, monkeypatch)
    part = make_part(source, 4, label_smoothing=0.2)
    images, targets = next(iter(pipelines.labeled(part)))
    assert targets.dtype == tf.float32 and images.dtype == tf.uint8
    for value, target in zip(values(images), targets, strict=True):
        expected = [0.9, 0.1] if value % 2 == 0 else [0.1, 0.9]
        np.testing.assert_allclose(target, expected, atol=1e-6)


@pytest.mark.parametrize("num_replicas", [1, 2, 4])
def test_every_replica_gets_the_same_mix(monkeypatch, num_replicas):
    labeled = make_source(0, 20, monkeypatch)
    unlabeled = make_source(100, 50, monkeypatch)
    batches = pipelines.mixed(
        make_part(labeled, 8),
        make_part(unlabeled, 20, seed=1),
        num_replicas=num_replicas,
    )
    for images, targets in batches.take(4):
        assert images.shape == (28, 8, 8, 3) and targets.shape == (28, 2)
        slices = np.split(np.array(values(images)), num_replicas)
        for part in slices:
            assert (part[: 8 // num_replicas] < 100).all()
            assert (part[8 // num_replicas :] >= 100).all()


def test_the_mix_is_the_same_whatever_the_replicas(monkeypatch):
    labeled = make_source(0, 20, monkeypatch)
    unlabeled = make_source(100, 50, monkeypatch)

    def first_batch(num_replicas):
        batches = pipelines.mixed(
            make_part(labeled, 4),
            make_part(unlabeled, 8, seed=1),
            num_replicas=num_replicas,
        )
        return sorted(values(next(iter(batches))[0]))

    assert first_batch(1) == first_batch(2) == first_batch(4)


def test_replicas_that_cannot_share_are_refused(monkeypatch):
    source = make_source(0, 20, monkeypatch)
    parts = make_part(source, 4), make_part(source, 5)
    with pytest.raises(ValueError, match="5 does not divide among 2"):
        pipelines.mixed(*parts, num_replicas=2)


@pytest.mark.parametrize("batch_size", [1, 4, 7, 64])
def test_inference_keeps_order_and_loses_none(monkeypatch, batch_size):
    source = make_source(10, 7, monkeypatch)
    batches = inference.batches(
        source,
        [0],
        image_size=8,
        augment=clean_view(8),
        batch_size=batch_size,
    )
    rows = []
    for batch in batches:
        assert batch["pixels"].shape == (batch_size, 8, 8, 3)
        assert batch["pixels"].dtype == tf.float32
        for index, label, value in zip(
            batch["index"], batch["label"], values(batch["pixels"]), strict=True
        ):
            if index >= 0:
                rows.append((int(index), int(label), value))
    assert rows == [(i, i % 2, 10 + i) for i in range(7)]


def test_inference_goes_through_shards_one_after_the_other(monkeypatch):
    source = make_source(10, 40, monkeypatch, shard_size=18)
    sizes = source.shard_sizes
    assert sizes == (18, 18, 4)
    batches = inference.batches(
        source,
        [2, 0],
        image_size=8,
        augment=clean_view(8),
        batch_size=8,
    )
    rows = [batch["index"].numpy().tolist() for batch in batches]
    assert rows == [
        [0, 1, 2, 3, -1, -1, -1, -1],
        [0, 1, 2, 3, 4, 5, 6, 7],
        [8, 9, 10, 11, 12, 13, 14, 15],
        [16, 17, -1, -1, -1, -1, -1, -1],
    ]


@pytest.mark.parametrize("crop", ["resized", "padded"])
def test_augmented_images_have_their_size_and_follow_their_seed(crop):
    augment = augmentation.make_augment(
        image_size=24,
        crop=crop,
        flip=True,
        randaugment_num_ops=2,
        randaugment_magnitude=8,
        # The constants for 224 pixels would move all of this image out.
        cutout_const=3,
        translate_const=3,
        cutout_size=6,
    )
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (40, 30, 3)).astype(np.uint8)
    encoded = tf.io.encode_jpeg(picture).numpy()

    def run(numbers):
        seeds = tf.data.Dataset.from_tensor_slices(np.array(numbers))
        return [
            image.numpy()
            for image in seeds.map(lambda seed: augment(encoded, seed))
        ]

    images = run([[5, i] for i in range(8)])
    for image in images:
        assert image.shape == (24, 24, 3) and image.dtype == np.uint8
    assert len({image.tobytes() for image in images}) == 8
    assert (run([[5, 3]])[0] == images[3]).all()
    # Eager, as in a notebook, gives the same as in tf.data.
    assert (augment(encoded, tf.constant([5, 3])).numpy() == images[3]).all()


def test_no_noise_leaves_the_resized_image():
    augment = augmentation.make_augment(
        image_size=8,
        crop="padded",
        crop_padding=0,
        flip=False,
        randaugment_num_ops=0,
    )
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
    encoded = tf.io.encode_png(picture).numpy()
    assert (augment(encoded, tf.constant([1, 2])).numpy() == picture).all()
