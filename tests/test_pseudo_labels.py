# SPDX-License-Identifier: Apache-2.0
"""Row k stays the k-th image, from the teacher to the student's batch."""

import json
import pathlib
import resource

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import clean_view

from noisy_student.data import pipelines
from noisy_student.data import sources
from noisy_student.data import tfrecord_source
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
    # Before a shard is labeled nothing is lost with what was begun.
    store.begin({"source": {"fingerprint": "b"}})
    store.begin(manifest)
    store.write_probs(0, np.full((4, 3), 1 / 3, np.float32))
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
    """(reference, target) of all that a pass shows."""
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
    shown = [images.index(image) for image, _ in pairs]
    assert np.bincount(shown, minlength=17).tolist() == copies.tolist()
    for (_, target), row in zip(pairs, shown, strict=True):
        assert target.dtype == np.float32
        np.testing.assert_allclose(target.sum(), 1, atol=1e-6)
        if kind == "soft":
            np.testing.assert_allclose(target, probs[row], atol=2e-3)
        else:
            top = np.full(3, 0.1, np.float32)
            top[probs[row].argmax()] += 0.7
            np.testing.assert_allclose(target, top, atol=1e-6)


def stored(source, directory, copies):
    """A store of two classes with copies; its labels do not matter."""
    store = store_for(source, directory, 2)
    for shard, size in enumerate(source.shard_sizes):
        store.write_probs(shard, np.eye(2, dtype=np.float32)[[0] * size])
    store.write_copies(np.asarray(copies, np.uint32), {})
    return store


def numbered_source(count, monkeypatch, shard_size):
    monkeypatch.setattr(sources, "IMAGES_PER_SHARD", shard_size)
    return make_source([str(row) for row in range(count)])


def shown_by(examples, *, first_batch=0, num_batches, batch_size, buffer):
    """Rows that the batches of a stream show, (num_batches, batch_size)."""
    stream = pipelines.stream(
        examples,
        seed=0,
        shuffle_buffer=buffer,
        start=first_batch * batch_size,
    )
    batches = stream.map(lambda numbered, _: numbered[1][0]).batch(batch_size)
    return np.array(
        [batch.numpy().astype(int) for batch in batches.take(num_batches)]
    )


def write_records(path, images):
    """A TFRecord file of images without labels."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for image in images:
            value = tf.train.BytesList(value=[image])
            feature = {"image/encoded": tf.train.Feature(bytes_list=value)}
            features = tf.train.Features(feature=feature)
            example = tf.train.Example(features=features)
            writer.write(example.SerializeToString())
    return tfrecord_source.tfrecords(str(path), labeled=False)


# One file that is read at positions, one that can only be read from its
# beginning: in the latter the rounds pass each other now and then.
@pytest.mark.parametrize(
    ("place", "least"),
    [
        ("memory", (0.94, 0.98)),
        ("{}/file", (0.94, 0.98)),
        ("ram://{}/file", (0.92, 0.97)),
    ],
)
def test_the_copies_of_an_image_lie_apart(tmp_path, place, least):
    count = 2**15
    # The paper's mean of 1.6 copies.
    copies = np.random.default_rng(0).choice([1, 2], count, p=[0.4, 0.6])
    images = [b"%d" % row for row in range(count)]
    if place == "memory":
        source = make_source(images)
    else:
        source = write_records(place.format(tmp_path), images)
    shown = shown_by(
        pseudo_labeled_examples(source, stored(source, tmp_path, copies)),
        num_batches=1,
        batch_size=copies.sum(),
        buffer=4096,
    )[0]
    # Parts of a pass as large as the paper's U of 28,672 and 6,144 in a pass
    # of 215,000: hardly less distinct than a pile that is mixed as a whole.
    for num_batches, share in zip((7.5, 35), least, strict=True):
        size = int(len(shown) / num_batches)
        batches = [shown[i : i + size] for i in range(0, len(shown), size)]
        distinct = [len(np.unique(b, axis=0)) / len(b) for b in batches[:-1]]
        assert np.mean(distinct) >= share


@pytest.mark.parametrize("shard_size", [100, 512])
def test_a_class_that_is_repeated_much_is_spread_over_the_pass(
    tmp_path, monkeypatch, shard_size
):
    copies = np.where(np.arange(1000) % 10 == 0, 30, 1)
    source = numbered_source(1000, monkeypatch, shard_size)
    examples = pseudo_labeled_examples(source, stored(source, tmp_path, copies))
    shown = shown_by(examples, num_batches=26, batch_size=150, buffer=16384)
    # A whole pass: exactly what was selected.
    assert np.bincount(shown.ravel()).tolist() == copies.tolist()
    repeated = (shown % 10 == 0).mean(axis=1)
    assert (abs(repeated - 3000 / 3900) < 0.15).all()
    # 115 draws of 100 images, and 35 that come once: 0.69 of 150.
    distinct = [len(np.unique(batch)) / 150 for batch in shown]
    assert np.mean(distinct) > 0.66


def test_one_class_in_ten_thousand_copies_costs_numbers_alone(tmp_path):
    copies = np.ones(600, int)
    copies[[3, 4, 590]] = 10_000
    copies[100:200] = 0
    images = [b"%d" % row for row in range(600)]
    source = write_records(tmp_path / "file", images)
    examples = pseudo_labeled_examples(source, stored(source, tmp_path, copies))
    # Two blocks, 10,000 rounds each; rounds that show nothing are none.
    assert examples.num_shards == 20_000
    assert examples.num_examples == copies.sum() == 30_497
    pair = tf.constant(9999, tf.int64)
    rows = [int(examples.load(x)) for x, _ in examples.open_shard(pair)]
    assert sorted(rows) == [3, 4]


@pytest.mark.parametrize("place", ["{}/file", "ram://{}/file"])
def test_copies_of_records(tmp_path, place):
    images = [b"%d" % row for row in range(1100)]
    source = write_records(place.format(tmp_path), images)
    store = store_for(source, tmp_path / "labels", 2)
    first = np.linspace(0, 1, 1100, dtype=np.float16)
    store.write_probs(0, np.stack([first, 1 - first], axis=1))
    copies = np.arange(1100) % 3
    store.write_copies(copies, {})
    examples = pseudo_labeled_examples(source, store)
    stream = pipelines.stream(examples, seed=0, shuffle_buffer=100)

    @tf.autograph.experimental.do_not_convert
    def load(numbered, _):
        reference, raw = numbered[1]
        return examples.load(reference), examples.target(raw)

    shown = []
    for image, target in stream.map(load).take(examples.num_examples):
        shown.append(int(image.numpy()))
        np.testing.assert_allclose(target[0], first[shown[-1]], atol=1e-3)
    assert np.bincount(shown, minlength=1100).tolist() == copies.tolist()


def test_memory_does_not_grow_with_the_copies(tmp_path):
    images = [b"%d" % row + b" " * 40_000 for row in range(1100)]
    source = write_records(tmp_path / "file", images)
    examples = pseudo_labeled_examples(
        source, stored(source, tmp_path / "labels", np.full(1100, 500))
    )
    stream = pipelines.stream(examples, seed=0, shuffle_buffer=16384)
    images = stream.map(lambda numbered, _: examples.load(numbered[1][0]))

    def resident():
        pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
        return int(pages) * resource.getpagesize()

    before = resident()
    shown = [int(image) for image in images.take(1000).as_numpy_iterator()]
    # 16,384 images would be 650 MB; they are numbers until they are shown.
    assert resident() - before < 150e6
    assert len(set(shown)) > 600  # 1000 draws of 1100


@pytest.mark.parametrize("shard_size", [70, 600])
def test_a_student_resumes_in_the_middle_of_a_pass(
    tmp_path, monkeypatch, shard_size
):
    copies = np.random.default_rng(1).integers(0, 5, 600)
    source = numbered_source(600, monkeypatch, shard_size)
    examples = pseudo_labeled_examples(source, stored(source, tmp_path, copies))
    settings = {"batch_size": 50, "buffer": 100}
    whole = shown_by(examples, num_batches=60, **settings)
    for first in (1, 20, 59):
        rest = shown_by(examples, first_batch=first, num_batches=1, **settings)
        assert (rest[0] == whole[first]).all()


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


@pytest.mark.parametrize("temperature", [0.01, 0.05, 0.5, 1.5, 100.0])
@pytest.mark.parametrize("top_k", [None, 2])
def test_any_temperature_gives_a_distribution(tmp_path, temperature, top_k):
    """From rows as float16 stores them: 0, and the least above it."""
    rows = np.array(
        [
            [0.26, 0.25, 0.25, 0.24],
            [1, 0, 0, 0],
            [0.9, 0.1, 6e-8, 0],
            [0.25, 0.25, 0.25, 0.25],
        ]
    )
    source = make_source([gray_png(v) for v in range(4)])
    store = LabelStore(tmp_path, (4,), 4, top_k)
    store.write_probs(0, rows.astype(np.float32))
    store.write_copies(np.ones(4, np.uint32), {})
    examples = pseudo_labeled_examples(source, store, temperature=temperature)
    found = np.array([target for _, target in read_all(examples)])
    assert np.isfinite(found).all() and (found >= 0).all()
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
    # In whole numbers of a larger type nothing underflows.
    probs = rows.astype(np.float16).astype(np.longdouble)
    if top_k:
        rest = (1 - probs[:, :2].sum(axis=1)) / 2
        probs[:, 2:] = np.minimum(rest, probs[:, 1])[:, np.newaxis]
    powers = probs ** (1 / np.longdouble(temperature))
    expected = powers / powers.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(
        found, expected.astype(np.float64), rtol=3e-4, atol=2e-6
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


@pytest.mark.parametrize(
    ("num_devices", "batch_size"),
    [
        *((1, size) for size in (2, 4, 100)),
        pytest.param(2, 4, marks=pytest.mark.two_devices),
    ],
)
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
