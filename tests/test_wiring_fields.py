# SPDX-License-Identifier: Apache-2.0
"""Settings seen where they arrive: networks, noise, streams, selection.

What cannot be computed by hand is observed at the borders that other projects
rely on: the arguments of `build_model`, `randaugment`, `select` and the crops,
and the pixels and activations inside of a tiny network.
"""

import csv
import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tiny_run
from tiny_run import find
from tiny_run import seen

from noisy_student import phases
from noisy_student.config import Config
from noisy_student.data import decoding
from noisy_student.data import preprocessing
from noisy_student.data import randaugment
from noisy_student.data import sources
from noisy_student.data import tfds_source
from noisy_student.errors import UserError
from noisy_student.pseudo_labels import selection
from noisy_student.pseudo_labels.store import LabelStore
from noisy_student.run import open_run

SHORT = {"batch_size": 12, "train_steps": 1, "unlabeled_ratio": "2"}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny_run.Images(tmp_path_factory.mktemp("images"))


@pytest.fixture
def start(images, tmp_path, monkeypatch):
    """Function from settings to the tiny networks of a run in `tmp_path`."""

    def run(**settings):
        networks = tiny_run.install(monkeypatch, tiny_run.TinyNetworks())
        name = settings.pop("workdir", "run")
        config = tiny_run.config(
            images, tmp_path / name, **{**SHORT, **settings}
        )
        networks.config = config
        phases.run_mode(config)
        return networks

    return run


@pytest.fixture
def noise_calls(monkeypatch):
    """The arguments of RandAugment, which is replaced by a mark."""
    calls = []

    def marked(image, num_ops, magnitude, **settings):
        settings.pop("seed")
        calls.append({"num_ops": num_ops, "magnitude": magnitude} | settings)
        # Made of the image, for it would not even be decoded otherwise.
        return tf.maximum(image // 255, mark(magnitude)) if num_ops else image

    monkeypatch.setattr(randaugment, "randaugment", marked)
    return calls


def mark(magnitude):
    """The bytes of an image that RandAugment was at."""
    return int(70 + 2 * magnitude)


# Networks and their sizes


def test_networks_are_built_as_the_settings_say(
    start, noise_calls, monkeypatch
):
    def center_crop(image, image_size):
        return tf.fill([image_size, image_size, 3], 55.5)

    monkeypatch.setattr(preprocessing, "center_crop", center_crop)
    settings = {
        "dropout_rate": 0.11,
        "stochastic_depth_rate": 0.12,
        "small_images": True,
        "width": 0.3,
        "depth": 0.4,
        "batch_norm_momentum": 0.8,
        "dtype": "bfloat16",
    }
    networks = start(
        crop="resized",
        image_size=None,
        variant="b0",
        students="l0,b1",
        mean="1,2,3",
        std="4,5,6",
        finetune=True,
        finetune_epochs=0.1,
        batch_size=2,
        eval_batch_size=2,
        unlabeled_ratio="1",
        labeled_noise="randaugment",
        confidence_threshold=0.0,
        force=True,
        **settings,
    )
    # L0 is trained at fewer pixels than it is finetuned and evaluated at.
    sizes = [("b0", 224), ("l0", 380), ("l0", 600), ("b1", 240), ("b1", 240)]
    assert [(c["variant"], c["image_size"]) for c in networks.calls] == sizes
    for call in networks.calls:
        assert call["classes"] == 4
        assert call | settings == call
        assert call["mean"] == (1, 2, 3) and call["std"] == (4, 5, 6)
    # Each model evaluates and labels the evaluation's view at its own size:
    # b0 does both, l0 as well when it is finetuned.
    views = seen("pixels_seen", training=False)
    assert all((view[0] == 55.5).all() for view in views)
    counts = {224: 21, 380: 8, 600: 21, 240: 16}  # batches of 2
    found = [view.shape[1] for view in views]
    assert {size: found.count(size) for size in counts} == counts
    # Half a hole and a shift shrink with images below 224 pixels alone.
    for call in noise_calls:
        assert (call["cutout_const"], call["translate_const"]) == (40, 100)


def test_an_online_teacher_sees_images_at_its_own_size(start, tmp_path):
    # L0 is taken as it is evaluated, and trained at fewer pixels.
    start(
        image_size=None,
        variant="l0",
        students="l0,b1",
        eval_dir=None,
        init_from=tiny_run.save_given(tmp_path / "given.keras"),
        train_teacher=False,
        online_teacher=True,
        batch_size=3,
        force=True,
    )
    teachers = [batch.shape for batch in seen("pixels_seen", training=False)]
    assert teachers == [(6, 600, 600, 3), (6, 380, 380, 3)]
    shapes = [batch.shape for batch in seen("pixels_seen")]
    assert shapes == [(9, 380, 380, 3), (9, 240, 240, 3)]


def test_weights_without_a_run_see_images_as_evaluation_does(
    start, images, tmp_path
):
    common = {
        "image_size": None,
        "variant": "l0",
        "students": None,
        "init_from": tiny_run.save_given(tmp_path / "given.keras"),
    }
    networks = start(mode="evaluate", **common)
    assert [call["image_size"] for call in networks.calls] == [600]
    networks = start(
        mode="predict", workdir="none", num_classes=4,
        input=f"{images.flags['eval_dir']}/blue",
        output=str(tmp_path / "answers.csv"), **common,
    )  # fmt: skip
    assert [call["image_size"] for call in networks.calls] == [600]


# Noise


def marked_rows(pixels, magnitude):
    """Which images RandAugment was at, whatever else was cut out of them."""
    marks = (pixels == mark(magnitude)).all(axis=3)
    return marks.mean(axis=(1, 2)) > 0.5


def dropped_rows(values):
    """Which rows of activations hold a zero."""
    return (values.reshape(len(values), -1) == 0).any(axis=1)


@pytest.mark.parametrize("swapped", [False, True])
def test_noise_meets_the_images_it_is_meant_for(
    start, images, noise_calls, swapped
):
    noises = ["randaugment,dropout", "stochastic_depth"]
    labeled, unlabeled = reversed(noises) if swapped else noises
    # Each of these differs once from what labeled images get, and once from
    # what unlabeled ones do.
    teacher, finetune = noises
    networks = start(
        students="b0",
        labeled_noise=labeled,
        unlabeled_noise=unlabeled,
        teacher_noise=teacher,
        finetune_noise=finetune,
        finetune=True,
        finetune_epochs=1.0,
        dropout_rate=0.6,
        stochastic_depth_rate=0.6,
        randaugment_num_ops=3,
        randaugment_magnitude="1.5,2.5",
        randaugment_contrast="corrected",
        randaugment_ops="paper",
        cutout_const=3,
        translate_const=2,
        cutout_size=4,
        confidence_threshold=0.0,
        images_per_class=6,
        frozen_blocks=1,
        force=True,
    )
    assert len(networks.calls) == 3
    assert noise_calls
    for call in noise_calls:
        if call["num_ops"]:
            assert call["num_ops"] == 3
            assert call["contrast"] == "corrected"
            assert len(call["ops"]) == 14
            assert call["cutout_const"] == 3 and call["translate_const"] == 2

    pixels = seen("pixels_seen")
    assert [len(batch) for batch in pixels] == [12, 36, 12]
    kinds = {
        # phase: (batch, rows, noise, magnitude)
        "teacher": (0, slice(None), labeled, 1.5),
        "labeled": (1, slice(0, 12), labeled, 2.5),
        "unlabeled": (1, slice(12, None), unlabeled, 2.5),
        "finetuned": (2, slice(None), finetune, 2.5),
    }
    for kind, (batch, rows, noise, magnitude) in kinds.items():
        shown = pixels[batch][rows]
        marked = marked_rows(shown, magnitude)
        own = images.unlabeled if kind == "unlabeled" else images.labeled[0]
        if "randaugment" in noise:
            assert marked.all(), kind
            # A hole of 4 pixels, less where it lies at an edge.
            holes = (shown == 128).all(axis=3).sum(axis=(1, 2))
            assert holes.max() == 16 and holes.min() > 0, kind
        else:
            assert (find(shown, own) >= 0).all(), kind
        dropped = dropped_rows(seen("top_seen")[batch][rows])
        assert dropped.any() == ("dropout" in noise), kind
        assert not dropped.any() or dropped.sum() > len(dropped) / 2
        dropped = dropped_rows(seen("block2a_seen")[batch][rows])
        assert dropped.any() == ("stochastic_depth" in noise), kind
    # A block that is frozen is not disturbed.
    blocks = [dropped_rows(b).any() for b in seen("block1a_seen")]
    assert blocks == [swapped, True, False]
    # Whoever labels is noised where it is asked for; nobody is when measured.
    marked = [
        marked_rows(batch, 1.5).any()
        for batch in seen("pixels_seen", training=False)
    ]
    dropped = [
        dropped_rows(batch).any() for batch in seen("top_seen", training=False)
    ]
    # 16 evaluated, 24 labeled in two batches, twice 16 evaluated.
    assert marked == [False, True, True, False, False]
    assert dropped == [False, True, True, False, False]
    workdir = pathlib.Path(networks.config.workdir)
    (manifest,) = workdir.glob("*/labels/manifest.json")
    assert json.loads(manifest.read_text())["teacher_noise"] == sorted(
        filter(None, teacher.split(","))
    )


@pytest.mark.parametrize(
    ("crop", "flip"), [("resized", True), ("padded", True), ("padded", False)]
)
def test_crops_and_mirrored_images(start, images, monkeypatch, crop, flip):
    def whole(encoded, image_size, *, seed):
        image = tf.io.decode_png(encoded, 3)
        return tf.ensure_shape(image, [image_size, image_size, 3])

    monkeypatch.setattr(preprocessing, "random_resized_crop", whole)
    start(
        mode="teach", crop=crop, flip=flip, crop_padding=2, eval_dir=None,
        labeled_noise="crop", batch_size=36,
    )  # fmt: skip
    (shown,) = seen("pixels_seen")
    padding = 2 if crop == "padded" else 0
    sides = ((0, 0), (padding,) * 2, (padding,) * 2, (0, 0))
    padded = np.pad(images.labeled[0], sides, "reflect")
    counts = {}
    for y, x in np.ndindex(2 * padding + 1, 2 * padding + 1):
        window = padded[:, y : y + 8, x : x + 8]
        for mirrored in (False, True):
            own = window[:, :, ::-1] if mirrored else window
            found = (find(shown, own) >= 0).sum()
            counts[y - padding, x - padding, mirrored] = found
    assert sum(counts.values()) == 36, "a view that is none of these"
    mirrored = sum(count for key, count in counts.items() if key[2])
    assert 8 < mirrored < 28 if flip else mirrored == 0
    if padding:  # up to 2 pixels either way
        far = [count for key, count in counts.items() if 2 in map(abs, key[:2])]
        assert sum(far) > 8


def test_a_noised_teacher_draws_anew(images, tmp_path, monkeypatch):
    tiny_run.install(monkeypatch, tiny_run.TinyNetworks())
    monkeypatch.setattr(sources, "IMAGES_PER_SHARD", 13)
    given = tiny_run.save_given(tmp_path / "given.keras")
    run = open_run(
        tiny_run.config(
            images, tmp_path / "run", students="b0,b0", init_from=given,
            train_teacher=False, teacher_noise="dropout", dropout_rate=0.5,
            confidence_threshold=0.0, eval_dir=None, force=True, **SHORT,
        )
    )  # fmt: skip
    phases.teach(run)
    phases.label(run, 1)
    # As if the student had become its teacher.
    model, student = (
        run.workdir.path / f"iteration_{k}" / "model.keras" for k in (0, 1)
    )
    shutil.copy(model, student)
    phases.label(run)  # the next one
    dropped = [batch == 0 for batch in seen("top_seen", training=False)]
    assert [len(batch) for batch in dropped] == [13] * 4
    draws = {batch[:12].tobytes() for batch in dropped}
    assert len(draws) == 4, "shards or iterations draw alike"


# Streams and seeds


def test_the_seed_decides_weights_and_order(start, images):
    drawn, orders = [], []
    for settings in ({"seed": 1}, {"seed": 2}, {"seed": 2}):
        workdir = f"run {len(orders)}"
        if len(orders) == 2:
            settings["shuffle_buffer"] = 1
        networks = start(
            mode="teach", workdir=workdir, eval_dir=None, **settings
        )
        drawn.append(networks.drawn[0])
        orders.append(find(seen("pixels_seen")[0], images.labeled[0]).tolist())
    assert (drawn[0] != drawn[1]).all() and (drawn[1] == drawn[2]).all()
    assert sorted(orders[0]) == list(range(12))
    assert orders[0] != orders[1]
    # Images that are not shuffled come as they are listed.
    source = open_run(networks.config).labeled
    names = [source.example_name(0, row) for row in range(13)]
    listed = [int(name[-7:-4]) for name in names if "zzz" not in name]
    assert orders[2] == listed


def test_a_stopped_training_goes_on_where_it_was(tmp_path, monkeypatch):
    tiny_run.install(monkeypatch, tiny_run.TinyNetworks())
    images = tiny_run.Images(tmp_path)
    # Not trained on, for it is an evaluation image.
    shutil.copy(
        tmp_path / "eval/blue/001.png", tmp_path / "labeled/blue/copy.png"
    )
    config = tiny_run.config(
        images, tmp_path / "run", mode="teach", batch_size=4, train_steps=4,
        checkpoint_minutes=1e-9,
    )  # fmt: skip
    phases.run_mode(config)
    shown = [find(batch, images.labeled[0]) for batch in seen("pixels_seen")]
    # One pass, and the first step of another.
    assert sorted(np.concatenate(shown[:3])) == list(range(12))
    assert (shown[3] >= 0).all()
    folder = tmp_path / "run" / "iteration_0"
    unbroken = tiny_run.load(folder / "model.keras")
    # As if it had been killed after three steps.
    (folder / "model.keras").unlink()
    (folder / "checkpoints" / "checkpoint-000000004.npz").unlink()
    tiny_run.SEEN.clear()
    phases.run_mode(config)
    again = [find(batch, images.labeled[0]) for batch in seen("pixels_seen")]
    assert [rows.tolist() for rows in again] == [shown[3].tolist()]
    resumed = tiny_run.load(folder / "model.keras")
    for name, weights in unbroken.items():
        np.testing.assert_array_equal(resumed[name], weights, err_msg=name)


# Selection


@pytest.fixture(scope="module")
def labeled_run(images, tmp_path_factory):
    """A `Config` of a run whose teacher has labeled, for two students."""
    with pytest.MonkeyPatch.context() as patched:
        weights = tiny_run.initial_weights()
        networks = tiny_run.TinyNetworks(weights)
        tiny_run.install(patched, networks)
        config = tiny_run.config(
            images,
            tmp_path_factory.mktemp("runs") / "run",
            **SHORT,
            students="b0",
            base_lr=1.0,
            warmup_epochs=0.0,
            confidence_threshold=0.3,
            images_per_class=None,
            force=True,
        )
        run = open_run(config)
        phases.teach(run)
        phases.label(run)
    return config


@pytest.mark.parametrize("kind", ["exact", "official_bins"])
def test_the_settings_of_a_selection(labeled_run, tmp_path, monkeypatch, kind):
    calls, runs = [], []
    name = {"exact": "select", "official_bins": "select_official_bins"}[kind]
    original = getattr(selection, name)

    def recorded(*arguments, **settings):
        calls.append(settings)
        return original(*arguments, **settings)

    monkeypatch.setattr(selection, name, recorded)

    def select(**settings):
        config = dataclasses.replace(
            labeled_run, **{"mode": "select", "selection": kind, **settings}
        )
        run = open_run(config)
        runs.append(run)
        phases.select(run)
        folder = run.workdir.labels(1)
        return (
            np.load(folder / "copies-00000-of-00001.npy"),
            json.loads((folder / "selection.json").read_text()),
        )

    copies, summary = select(
        confidence_threshold=0.35,
        confidence_ceiling=0.9,
        images_per_class=3,
        duplicate=False,
    )
    assert calls[0]["num_classes"] == 4
    assert calls[0]["threshold"] == 0.35 and calls[0]["ceiling"] == 0.9
    assert calls[0]["images_per_class"] == 3
    assert calls[0]["duplicate"] is False
    assert copies.max() == 1
    assert summary["confidence_ceiling"] == 0.9

    subsample, seeds = selection.subsample, []

    def drawn(copies, count, *, seed):
        seeds.append(seed)
        return subsample(copies, count, seed=seed)

    monkeypatch.setattr(selection, "subsample", drawn)
    copies, _ = select(max_unlabeled=4)
    assert seeds == [runs[-1].seed("max_unlabeled", 1)]
    assert np.count_nonzero(copies) == 4
    assert calls[1]["threshold"] == 0.3 and calls[1]["ceiling"] is None
    assert calls[1]["duplicate"] is True
    # The average of the classes that keep any.
    folder = pathlib.Path(labeled_run.workdir) / "iteration_1" / "labels"
    top = np.load(folder / "top-00000-of-00001.npy")
    kept = top["class"][top["confidence"] > 0.3]
    assert calls[1]["images_per_class"] == -(-len(kept) // len(set(kept)))

    copies, _ = select(balance=False)
    assert calls[2]["images_per_class"] is None
    assert copies.sum() == len(kept)

    again, _ = select(selection_from=str(folder), confidence_threshold=0.9)
    assert len(calls) == 3
    np.testing.assert_array_equal(again, copies)

    # The official code keeps what is at the threshold, for the average too.
    copied = tmp_path / "copied"
    shutil.copytree(labeled_run.workdir, copied)
    known = np.flatnonzero(~np.isnan(top["confidence"]))
    top["confidence"][known] = 0.5
    top["confidence"][known[:8]] = 0.75
    top["class"] = np.arange(len(top)) % 4
    np.save(copied / "iteration_1/labels/top-00000-of-00001.npy", top)
    select(workdir=str(copied), confidence_threshold=0.5)
    kept = known if kind == "official_bins" else known[:8]
    per_class = -(-len(kept) // len(set(kept % 4)))
    assert calls[-1]["images_per_class"] == per_class


@pytest.fixture
def other_selection(tmp_path, monkeypatch):
    """A run that is to label what another selection kept, with its teacher.

    Among what was kept are an image that cannot be decoded and one that is an
    evaluation image; of one shard nothing was kept.
    """
    monkeypatch.setattr(sources, "IMAGES_PER_SHARD", 7)
    images = tiny_run.Images(tmp_path)
    unlabeled = tmp_path / "unlabeled"
    (unlabeled / "not_kept.png").write_bytes(b"no image, either")
    shutil.copy(tmp_path / "eval/blue/001.png", unlabeled / "copy.png")
    networks = tiny_run.TinyNetworks(tiny_run.initial_weights())
    tiny_run.install(monkeypatch, networks)
    config = tiny_run.config(
        images,
        tmp_path / "run",
        **SHORT,
        students="b0",
        confidence_threshold=0.0,
        force=True,
    )
    run = open_run(config)
    sizes = run.unlabeled.shard_sizes
    assert len(sizes) == 4
    names = [
        [
            pathlib.Path(run.unlabeled.example_name(shard, row)).name
            for row in range(size)
        ]
        for shard, size in enumerate(sizes)
    ]
    special = {"zzz.png", "copy.png"}
    empty = next(k for k in range(4) if not special & {*names[k]})
    kept = {"zzz.png", "copy.png"}
    for shard in {*range(4)} - {empty}:
        good = [name for name in names[shard] if name[0] == "0"]
        kept |= {*good[1:3]}
    names = sum(names, [])
    other = LabelStore(tmp_path / "other", sizes, 4)
    other.begin(
        {
            "source": {
                "fingerprint": run.unlabeled.fingerprint,
                "shard_sizes": list(sizes),
            },
            "classes": list(run.class_names),
        }
    )
    copies = 3 * np.isin(names, list(kept)).astype(np.uint32)
    summary = {"num_images": len(names), "num_kept": len(kept)}
    summary |= {"num_selected": 3 * len(kept), "kept_per_class": [2] * 4}
    other.write_copies(copies, summary)
    config = dataclasses.replace(config, selection_from=str(other.directory))
    run = open_run(config)
    network = networks(num_classes=4, image_size=tiny_run.SIDE)
    run.workdir.save_model(network, run.workdir.trained_model(0))
    return run, images, np.array(names), copies, other


def test_what_another_selection_dropped_is_not_labeled(
    other_selection, monkeypatch, tmp_path, capsys
):
    run, images, names, copies, other = other_selection
    kept = copies > 0
    decoded = set()
    decode = decoding.decode

    def remember(encoded):
        decoded.add(encoded)
        return encoded

    monkeypatch.setattr(
        decoding,
        "decode",
        lambda encoded: decode(
            tf.ensure_shape(
                tf.numpy_function(remember, [encoded], tf.string), []
            )
        ),
    )
    tiny_run.SEEN.clear()
    phases.label(run)
    assert f"Label 1: {kept.sum()} images" in capsys.readouterr().out
    # The copy of an evaluation image too, to tell that it is an image.
    read = {
        (tmp_path / "unlabeled" / name).read_bytes() for name in names[kept]
    }
    assert decoded == read
    good = kept & ~np.isin(names, ["zzz.png", "copy.png"])
    views = seen("pixels_seen", training=False)
    assert len(views) == 3  # a batch for each shard of which some were kept
    found = find(np.concatenate(views), images.unlabeled)
    expected = sorted(int(name[:3]) for name in names[good])
    assert sorted(found[found >= 0]) == expected

    labels = run.label_store(1)
    confidence, _ = labels.confidences()
    np.testing.assert_array_equal(~np.isnan(confidence), good)
    np.testing.assert_array_equal(labels.copies(), copies * good)
    told = list(csv.reader((run.workdir.path / "skipped.csv").open()))
    told = {pathlib.Path(row[1]).name for row in told if row[0] == "unlabeled"}
    assert told == {"zzz.png", "copy.png"}
    record = run.workdir.find_result("label", 1)
    assert record["num_examples"] == kept.sum()
    assert record["num_kept"] == good.sum()
    manifest = labels.manifest()["selection_from"]
    assert manifest["name"] == str(tmp_path / "other")
    assert manifest["num_images"] == kept.sum()

    # Each label is at its image: the one that it has when all are labeled.
    whole = open_run(
        dataclasses.replace(
            run.config, workdir=str(tmp_path / "whole"), selection_from=None
        )
    )
    shutil.copytree(
        run.workdir.path / "iteration_0", tmp_path / "whole/iteration_0"
    )
    phases.label(whole)
    for shard in range(4):
        np.testing.assert_allclose(
            labels.read_probs(shard)[other.is_kept(shard)],
            whole.label_store(1).read_probs(shard)[other.is_kept(shard)],
            atol=1e-3,
        )
    assert "selection_from" not in (
        key for key, value in whole.label_store(1).manifest().items() if value
    )

    # Selected anew, the others do not count as images of low confidence.
    capsys.readouterr()
    select = dataclasses.replace(
        run.config, mode="select", selection_from=None, balance=False
    )
    phases.run_mode(select)
    assert f"{good.sum()} of {kept.sum()} images have a confidence" in (
        capsys.readouterr().out
    )
    summary = labels.read_selection()
    assert summary["num_images"] == kept.sum()
    assert summary["num_undecodable"] == 2
    # A finished labeling needs the other selection no more.
    shutil.move(other.directory, tmp_path / "away")
    since = dataclasses.replace(run.config, balance=False)
    phases.label(dataclasses.replace(run, config=since))
    assert "all labeled and selected already" in capsys.readouterr().out


def test_labels_are_of_one_selection(other_selection, tmp_path, monkeypatch):
    run, _, _, copies, other = other_selection

    class Killed(Exception):
        pass

    def killed(self, shard, probs):
        if shard == 2:
            raise Killed
        write(self, shard, probs)

    write = LabelStore.write_probs
    monkeypatch.setattr(LabelStore, "write_probs", killed)
    with pytest.raises(Killed):
        phases.label(run)
    monkeypatch.setattr(LabelStore, "write_probs", write)
    summary = other.read_selection()
    other.write_copies(np.ones_like(copies), summary)
    with pytest.raises(UserError, match="8 images kept in .*, now 27"):
        phases.label(run)
    alone = dataclasses.replace(run.config, selection_from=None)
    with pytest.raises(UserError, match="8 images kept in .*, now null"):
        phases.label(dataclasses.replace(run, config=alone))
    other.write_copies(copies, summary)
    phases.label(run)

    # With the bytes of a labeling that was not stopped.
    unbroken = dataclasses.replace(run.config, workdir=str(tmp_path / "again"))
    shutil.copytree(
        run.workdir.path / "iteration_0", tmp_path / "again/iteration_0"
    )
    phases.label(open_run(unbroken))
    for path in run.label_store(1).directory.iterdir():
        again = tmp_path / "again/iteration_1/labels" / path.name
        assert path.read_bytes() == again.read_bytes(), path

    other.write_copies(np.ones_like(copies), summary)
    with pytest.raises(UserError, match="those images alone"):
        phases.select(run)
    other.write_copies(np.zeros_like(copies), summary)
    with pytest.raises(UserError, match="keeps no image"):
        phases.select(run)


# Sources


def test_splits_and_folders_of_data_sets(monkeypatch, tmp_path):
    calls = []
    digits = sources.digits("labeled")

    def tfds_split(name, split, **options):
        calls.append((name, split, options))
        return digits

    monkeypatch.setattr(tfds_source, "tfds_split", tfds_split)
    settings = {"workdir": str(tmp_path / "run"), "image_size": 8}
    open_run(
        Config(
            dataset="flowers",
            labeled_split="train[:10%]",
            unlabeled_split="train[10%:]",
            eval_split="validation",
            data_dir=str(tmp_path),
            download=True,
            **settings,
        )
    )
    common = {"data_dir": str(tmp_path), "download": True}
    expected = [
        ("flowers", "train[:10%]", {"labeled": True, **common}),
        ("flowers", "train[10%:]", {"labeled": False, **common}),
        ("flowers", "validation", {"labeled": True, **common}),
    ]
    assert sorted(calls, key=str) == sorted(expected, key=str)

    first, second, other = (
        open_run(
            Config(dataset="digits", seed=seed, eval_split=split, **settings)
        )
        for seed, split in ((0, "test"), (1, "test"), (0, "validation"))
    )
    assert first.evaluation.num_examples == 500
    assert other.evaluation.num_examples == 300
    # The seed decides which of the digits have labels.
    assert first.labeled.fingerprint != second.labeled.fingerprint

    with tf.io.TFRecordWriter(str(tmp_path / "a.tfrecord")) as writer:
        for label in (0, 1):
            image = tf.io.encode_png(np.full((8, 8, 3), 99, np.uint8)).numpy()
            features = {
                "image/encoded": tf.train.Feature(
                    bytes_list=tf.train.BytesList(value=[image])
                ),
                "image/class/label": tf.train.Feature(
                    int64_list=tf.train.Int64List(value=[label])
                ),
            }
            features = tf.train.Features(feature=features)
            writer.write(
                tf.train.Example(features=features).SerializeToString()
            )
    run = open_run(
        Config(
            labeled_tfrecords=str(tmp_path / "a.tfrecord"),
            num_classes=7,
            **settings,
        )
    )
    assert run.num_classes == 7
