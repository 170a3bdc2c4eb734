# SPDX-License-Identifier: Apache-2.0
"""The paper's method switches do what they say, and nothing else."""

import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import REPOSITORY

import main
from noisy_student import assembly
from noisy_student import batches
from noisy_student import command_line
from noisy_student import learning
from noisy_student import phases
from noisy_student import prerequisites
from noisy_student.config import Config
from noisy_student.data import randaugment
from noisy_student.errors import UserError
from noisy_student.models import efficientnet
from noisy_student.models import stochastic_depth
from noisy_student.pseudo_labels import selection
from noisy_student.reporting import selection_summary
from noisy_student.reporting.report import collect
from noisy_student.run import open_run
from noisy_student.settings import NOISE
from noisy_student.training import distribution
from noisy_student.training import online_teacher
from noisy_student.training import trainer
from noisy_student.training.checkpointing import Checkpoints
from noisy_student.workdir import Workdir

pytestmark = pytest.mark.usefixtures("one_block", "no_report")

STAGES = efficientnet.STAGES
SMOKE = REPOSITORY / "flags" / "smoke.flags"
SETTINGS = {
    **command_line.read_flagfile(SMOKE),
    "batch_size": 4,
    "unlabeled_ratio": "2",
    "train_steps": 2,
}
ALL = ",".join(NOISE)


def digits_run(tmp_path, **changes):
    return open_run(
        Config(**{**SETTINGS, "workdir": str(tmp_path / "run"), **changes})
    )


def run_main(*arguments):
    return main.main(
        [
            "main.py",
            f"--flagfile={SMOKE}",
            "--randaugment_num_ops=0",
            *arguments,
        ]
    )


@pytest.fixture(scope="module")
def teacher(one_block, no_report, tmp_path_factory):
    """The `model.keras` of a teacher, for what begins with one."""
    workdir = tmp_path_factory.mktemp("teacher") / "run"
    code = run_main(
        "--mode=teach", "--train_steps=3", "--students=", f"--workdir={workdir}"
    )
    assert code == 0
    return workdir / "iteration_0" / "model.keras"


def results(workdir):
    return json.loads((workdir / "results.json").read_text())


# Noise, by kind of image


@pytest.mark.parametrize(
    "kind", [stochastic_depth.Dropout, stochastic_depth.StochasticDepth]
)
def test_noise_meets_only_the_rows_it_is_directed_at(kind):
    inputs = keras.Input((4, 4, 8))
    network = keras.Model(inputs, kind(0.5, seed=1)(inputs))
    images = np.ones((12, 4, 4, 8), np.float32)

    def noised(rows, at_inference=False, training=True):
        stochastic_depth.direct_noise(
            network, kind, rows, at_inference=at_inference
        )
        outputs = np.asarray(network(images, training=training))
        return {k for k in range(12) if (outputs[k] != 1).any()}

    everyone = set(range(12))
    assert noised(slice(None)) == everyone
    assert noised(slice(0, 5)) == set(range(5))
    assert noised(slice(5, None)) == set(range(5, 12))
    assert noised(stochastic_depth.NO_ROWS) == set()
    assert noised(slice(None), training=False) == set()
    assert noised(slice(None), True, training=False) == everyone
    # The other kind of noise is left alone.
    other = {
        stochastic_depth.Dropout: stochastic_depth.StochasticDepth,
        stochastic_depth.StochasticDepth: stochastic_depth.Dropout,
    }[kind]
    stochastic_depth.direct_noise(network, other, stochastic_depth.NO_ROWS)
    assert network.layers[-1].rows == slice(None)


def test_reseeded_noise_is_a_function_of_the_seed():
    inputs = keras.Input((64,))
    outputs = stochastic_depth.Dropout(0.5)(inputs)
    network = keras.Model(inputs, stochastic_depth.Dropout(0.5)(outputs))
    ones = np.ones((1, 64), np.float32)

    def draw(seed):
        stochastic_depth.reseed_noise(network, seed)
        return [np.asarray(network(ones, training=True)) for _ in range(2)]

    first, second = draw(7), draw(7)
    np.testing.assert_array_equal(first, second)
    assert (first[0] != first[1]).any()
    assert (first[0] != draw(8)[0]).any()


def test_layers_and_replicas_draw_apart_from_each_other():
    """Replica 1 of a layer must not draw what replica 0 of the next draws."""
    inputs = keras.Input((8,))
    outputs = inputs
    for _ in range(3):
        outputs = stochastic_depth.Dropout(0.5)(outputs)
    network = keras.Model(inputs, outputs)
    stochastic_depth.reseed_noise(network, 2**31 - 1)
    numbers = sorted(
        int(layer.seed_generator.state.numpy()[0])
        for layer in network.layers[1:]
    )
    assert min(np.diff(numbers)) > 4096


def test_every_purpose_has_a_seed_of_its_own(tmp_path):
    run = digits_run(tmp_path)
    other = digits_run(tmp_path, seed=1)
    # As iteration, as shard, as both, and none at all.
    numbers = [(), *((k,) for k in range(40)), *((1, k) for k in range(40))]
    names = ("selection", "max_unlabeled", "noise of the teacher", "preview")
    names += ("labeled images", "unlabeled images", "network of teach")
    seeds = [
        r.seed(name, *of)
        for r in (run, other)
        for name in names
        for of in numbers
    ]
    assert len(set(seeds)) == len(seeds) and 0 <= min(seeds)
    assert max(seeds) < 2**31
    # The same in every process and for numbers of any type.
    assert run.seed("selection", np.int64(1)) == run.seed("selection", 1)
    assert run.seed("selection", 1) == 1164040577


@pytest.mark.parametrize(
    ("labeled", "unlabeled", "dropout", "depth"),
    [
        (ALL, ALL, slice(None), slice(None)),
        (ALL, "crop", slice(0, 2), slice(0, 2)),
        ("dropout", "stochastic_depth", slice(0, 2), slice(2, None)),
        (None, "dropout", slice(2, None), slice(0, 0)),
    ],
)
def test_a_student_is_noised_by_kind_of_image(
    labeled, unlabeled, dropout, depth
):
    config = Config(labeled_noise=labeled, unlabeled_noise=unlabeled)
    pixels = keras.Input((2, 2, 4))
    x = stochastic_depth.StochasticDepth(0.1)(pixels)
    network = keras.Model(pixels, stochastic_depth.Dropout(0.1)(x))
    assembly.direct_noise(config, "distill", network, 2, 4)
    rows = [layer.rows for layer in network.layers[1:]]
    assert rows == [depth, dropout]
    # A teacher's batches are all labeled.
    assembly.direct_noise(config, "teach", network, 4, 0)
    for layer, name in zip(network.layers[1:], NOISE[:1:-1], strict=True):
        meant = name in (labeled or "")
        assert layer.rows == (
            slice(None) if meant else stochastic_depth.NO_ROWS
        )


def test_a_noiseless_image_is_the_one_that_is_evaluated(tmp_path):
    run = digits_run(tmp_path, image_size=24)
    image = run.labeled.load(next(iter(run.labeled.open_shard(0)))[0])
    seeds = [np.array([1, k]) for k in range(6)]

    def views(*noise):
        augment = batches.make_augment(run, 24, set(noise))
        return [np.asarray(augment(image, seed)) for seed in seeds]

    clean = views()[0]
    assert clean.dtype == np.float32
    assert all((view == clean).all() for view in views("dropout"))
    cropped, disturbed = views("crop"), views("randaugment")
    for noised in (cropped, disturbed):
        assert noised[0].dtype == np.uint8
        assert any((view != clean).any() for view in noised)
    # A crop of a digit is a shift: it leaves its brightest pixel in.
    assert {view.max() for view in cropped} == {clean.max()}


def test_batches_of_two_noises_hold_both(tmp_path):
    run = digits_run(tmp_path, online_teacher=True, unlabeled_noise=None)
    write_model(run, 0)
    student = batches.make_batches(run, "distill", 1)(0)
    images, targets = next(iter(student))
    pixels = images["pixels"].numpy()
    assert pixels.dtype == np.float32 and pixels.shape == (12, 8, 8, 3)
    teacher_pixels = images["teacher_pixels"].numpy()
    assert teacher_pixels.shape == (12, 8, 8, 3)
    # Un-noised, the student sees what the teacher sees.
    np.testing.assert_array_equal(pixels[4:], teacher_pixels[4:])
    # Nothing is asked about labeled images.
    assert pixels[:4].any() and not teacher_pixels[:4].any()
    np.testing.assert_allclose(targets.numpy()[:4].sum(axis=1), 1, rtol=1e-6)
    assert (targets.numpy()[4:] == 0).all()


def write_model(run, iteration):
    network = assembly.build_network(run, iteration)
    run.workdir.save_model(network, run.workdir.trained_model(iteration))
    return network


def store_probs(run, iteration, probs):
    """Write the labels of all shards; the `LabelStore`."""
    labels = run.label_store(iteration)
    bounds = np.cumsum((0, *run.unlabeled.shard_sizes))
    for shard in range(len(run.unlabeled.shard_sizes)):
        labels.write_probs(shard, probs[bounds[shard] : bounds[shard + 1]])
    return labels


@pytest.mark.slow
def test_a_noised_teacher_labels_otherwise_but_repeatably(teacher, tmp_path):
    probs = {}
    for name, noise in (
        ("clean", ""),
        ("noised", "dropout,stochastic_depth"),
        ("again", "dropout,stochastic_depth"),
    ):
        run = digits_run(
            tmp_path / name, teacher_noise=noise, eval_batch_size=256
        )
        path = run.workdir.trained_model(0)
        path.parent.mkdir(parents=True)
        shutil.copy(teacher, path)
        phases.label(run)
        labels = run.label_store(1)
        probs[name] = labels.read_probs(0)
        manifest = json.loads(labels.manifest_path.read_text())
        expected = sorted(filter(None, noise.split(",")))
        assert manifest["teacher_noise"] == expected
    np.testing.assert_array_equal(probs["noised"], probs["again"])
    changed = (probs["noised"] != probs["clean"]).any(axis=1).mean()
    assert changed > 0.9, changed


def test_a_noised_teacher_sees_noise(teacher, tmp_path):
    for noise, disturbed in (("dropout", False), ("randaugment", True)):
        run = digits_run(tmp_path / noise, teacher_noise=noise)
        path = run.workdir.trained_model(0)
        path.parent.mkdir(parents=True)
        shutil.copy(teacher, path)
        image = run.labeled.load(next(iter(run.labeled.open_shard(0)))[0])
        augment = batches.make_teacher_augment(run, 0)
        views = [np.asarray(augment(image, [1, k])) for k in range(8)]
        assert any((view != views[0]).any() for view in views) == disturbed


# Weights from elsewhere


def test_weights_are_evaluated_without_training(teacher, tmp_path, capsys):
    flags = [
        "main.py",
        f"--flagfile={SMOKE}",
        "--mode=evaluate",
        f"--init_from={teacher}",
        f"--workdir={tmp_path / 'run'}",
    ]
    assert main.main(flags) == 0
    out = capsys.readouterr().out
    assert "Weights (b0 at 8 pixels) on all 500 images" in out
    record = results(tmp_path / "run")[0]
    taught = results(teacher.parent.parent)[0]
    assert record["init_from"] == str(teacher)
    assert (record["top1"], record["top5"]) == (taught["top1"], taught["top5"])
    # Other classes cannot be evaluated with that head.
    (tmp_path / "eval" / "a").mkdir(parents=True)
    (tmp_path / "eval" / "b").mkdir()
    for name in "ab":
        image = np.zeros((8, 8, 3), np.uint8)
        path = tmp_path / "eval" / name / "x.png"
        keras.utils.save_img(path, image)
    code = main.main([*flags, "--dataset=", f"--eval_dir={tmp_path / 'eval'}"])
    assert code == 2
    assert "the model's classes are 0, 1, 2 and 7" in capsys.readouterr().err


def test_a_teacher_is_taken_as_it_is(teacher, tmp_path, capsys):
    workdir = tmp_path / "run"
    flags = [f"--workdir={workdir}", "--mode=teach", "--notrain_teacher"]
    assert run_main(*flags, f"--init_from={teacher}") == 0
    assert "taken as it is" in capsys.readouterr().out
    record = results(workdir)[0]
    assert record["steps"] == 0
    assert record["top1"] == results(teacher.parent.parent)[0]["top1"]
    taken = keras.saving.load_model(workdir / "iteration_0" / "model.keras")
    given = keras.saving.load_model(teacher)
    for a, b in zip(taken.weights, given.weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_training_begins_at_the_weights_it_is_given(teacher, tmp_path):
    run = digits_run(tmp_path, init_from=str(teacher), warm_start=True)
    expected = keras.saving.load_model(teacher).weights
    model, loaded = assembly.make_trainable(run, "teach", 0, num_labeled=50)
    assert loaded.num_tensors == len(expected) and not loaded.head_replaced
    for weight, average, given in zip(
        model.network.weights, model.averages, expected, strict=True
    ):
        np.testing.assert_array_equal(weight, given)
        np.testing.assert_array_equal(average, given)

    # A student does not begin at --init_from but, if asked, at its teacher.
    own = write_model(run, 0)
    model, loaded = assembly.make_trainable(run, "distill", 1, num_labeled=50)
    assert loaded.num_tensors == len(expected)
    for weight, given in zip(model.network.weights, own.weights, strict=True):
        np.testing.assert_array_equal(weight, given)


def test_every_student_can_start_from_weights_of_its_own(teacher, tmp_path):
    run = digits_run(tmp_path, student_init_from=str(teacher), students="b0,b0")
    expected = keras.saving.load_model(teacher).weights
    write_model(run, 0)
    write_model(run, 1)
    for student in (1, 2):
        model, loaded = assembly.make_trainable(
            run, "distill", student, num_labeled=50
        )
        assert loaded.num_tensors == len(expected)
        for weight, average, given in zip(
            model.network.weights, model.averages, expected, strict=True
        ):
            np.testing.assert_array_equal(weight, given)
            np.testing.assert_array_equal(average, given)
    # The teacher does not.
    _, loaded = assembly.make_trainable(run, "teach", 0, num_labeled=50)
    assert loaded is None


def test_the_operations_that_are_drawn_from_arrive(tmp_path, monkeypatch):
    drawn = []
    apply = randaugment.randaugment

    def tell(*arguments, ops, **options):
        drawn.append(ops)
        return apply(*arguments, ops=ops, **options)

    monkeypatch.setattr(randaugment, "randaugment", tell)
    run = digits_run(
        tmp_path, randaugment_ops="paper", randaugment_num_ops=1, students=None
    )
    next(iter(batches.make_batches(run, "teach", 0)(0)))
    assert drawn and all(len(ops) == 14 for ops in drawn)


@pytest.mark.slow
def test_each_model_gets_its_own_value_of_a_list(
    teacher, tmp_path, monkeypatch
):
    magnitudes, thresholds = [], []
    noise, choose = randaugment.randaugment, selection.select

    def tell_magnitude(image, num_ops, magnitude, **options):
        magnitudes.append(magnitude)
        return noise(image, num_ops, magnitude, **options)

    def tell_threshold(*arguments, threshold, **options):
        thresholds.append(threshold)
        return choose(*arguments, threshold=threshold, **options)

    def look_at_a_batch(model, make_batches, **options):
        next(iter(make_batches(0)))

    monkeypatch.setattr(randaugment, "randaugment", tell_magnitude)
    monkeypatch.setattr(selection, "select", tell_threshold)
    monkeypatch.setattr(trainer, "fit", look_at_a_batch)
    code = run_main(
        f"--workdir={tmp_path}", f"--init_from={teacher}",
        "--students=b0,b0", "--force", "--batch_size=25", "--unlabeled_ratio=1",
        "--epochs=1,0.5,1.5", "--randaugment_magnitude=3,4,5",
        "--randaugment_num_ops=1", "--confidence_threshold=0.1,0.05",
        "--eval_split=",
    )  # fmt: skip
    assert code == 0
    # In the order of training: 50 labeled images in batches of 25.
    steps = [r["steps"] for r in results(tmp_path) if r["phase"] != "label"]
    assert steps == [2, 1, 3]
    assert list(dict.fromkeys(magnitudes))[:3] == [3, 4, 5]
    assert thresholds == [0.1, 0.05]


def test_other_classes_get_a_new_head(tmp_path):
    run = digits_run(tmp_path, students=None)
    small = efficientnet.build_model(
        "b0", 3, image_size=8, width=0.1, depth=0.1, small_images=True
    )
    small.save_weights(tmp_path / "three.weights.h5")
    run = digits_run(tmp_path, init_from=str(tmp_path / "three.weights.h5"))
    model, loaded = assembly.make_trainable(run, "teach", 0, num_labeled=50)
    assert loaded.head_replaced
    np.testing.assert_array_equal(
        model.network.get_layer("stem_conv").kernel,
        small.get_layer("stem_conv").kernel,
    )
    assert model.network.output_shape == (None, 10)


# On-line teacher


@pytest.mark.parametrize("replicas", [1, 2])
def test_an_online_teacher_answers_in_the_step(two_replicas, replicas):
    strategy = (
        two_replicas if replicas == 2 else distribution.make_strategy("cpu")
    )
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (12, 2, 2, 3)).astype(np.float32)
    teacher_images = rng.uniform(-1, 1, (12, 3, 3, 3)).astype(np.float32)
    # Each replica has 4 (or 2) labeled rows first.
    labeled = np.arange(12).reshape(replicas, -1)[:, : 4 // replicas].ravel()
    targets = np.zeros((12, 5), np.float32)
    targets[labeled, 1] = 1

    def network(size, seed):
        keras.utils.set_random_seed(seed)
        pixels = keras.Input((size, size, 3))
        outputs = keras.layers.Dense(5)(keras.layers.Flatten()(pixels))
        return keras.Model(pixels, outputs)

    def trainable(online=None):
        return trainer.make_trainable(
            network(2, seed=2),
            learning_rate=0.1,
            num_labeled=4 // replicas,
            unlabeled_ratio=2.0,
            online_teacher=online,
        )

    with strategy.scope():
        answering = network(3, seed=1)
        before = [np.asarray(weight) for weight in answering.weights]
        model = trainable(
            online_teacher.OnlineTeacher(
                answering, num_labeled=4 // replicas, temperature=2.0
            )
        )
        reference = trainable()
    # Neither a checkpoint nor the optimizer knows the teacher.
    known = {id(variable) for variable in model.variables}
    assert not known & {id(weight) for weight in answering.weights}

    # The same steps with the teacher's answers written into the targets.
    logits = np.asarray(answering(teacher_images))
    answers = online_teacher.teacher_targets(logits, temperature=2.0)
    stored = np.where(targets.any(axis=1, keepdims=True), targets, answers)
    for trained, x, y in (
        (model, {"pixels": images, "teacher_pixels": teacher_images}, targets),
        (reference, images, stored),
    ):
        dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(12)
        trained.fit(dataset, epochs=3, verbose=0)
    for a, b in zip(
        model.network.weights, reference.network.weights, strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        assert (np.asarray(a) != 0).all()
    for weight, old in zip(answering.weights, before, strict=True):
        np.testing.assert_array_equal(weight, old)


@pytest.mark.slow
@pytest.mark.parametrize(
    "distribution",
    ["cpu", pytest.param("mirrored", marks=pytest.mark.two_devices)],
)
def test_the_loop_with_an_online_teacher(
    teacher, tmp_path, capsys, distribution
):
    workdir = tmp_path / "run"
    flags = [
        f"--workdir={workdir}",
        "--train_steps=2",
        "--online_teacher",
        f"--init_from={teacher}",
        "--notrain_teacher",
        f"--distribution={distribution}",
        "--eval_split=",
    ]
    assert run_main(*flags) == 0
    assert not (workdir / "iteration_1" / "labels").exists()
    phases = [record["phase"] for record in results(workdir)]
    assert phases == ["teach", "distill"]
    capsys.readouterr()
    assert main.main(["main.py", f"--workdir={workdir}", "--mode=label"]) == 2
    assert "--mode=distill" in capsys.readouterr().err


@pytest.mark.slow
def test_a_noised_online_teacher_goes_on_with_the_same_bits(tmp_path):
    run = digits_run(
        tmp_path,
        online_teacher=True,
        teacher_noise="dropout,stochastic_depth",
        unlabeled_noise=None,
        labeled_noise=None,
        dropout_rate=0.5,
    )
    write_model(run, 0)

    def train(steps, checkpoints):
        keras.backend.clear_session()
        model, _ = assembly.make_trainable(run, "distill", 1, num_labeled=50)
        trainer.fit(
            model,
            batches.make_batches(run, "distill", 1),
            steps=steps,
            checkpoints=Checkpoints(tmp_path / checkpoints),
            checkpoint_minutes=100,
            metrics_path=tmp_path / f"{checkpoints}.jsonl",
        )
        return [np.asarray(weight) for weight in model.network.weights]

    whole = train(4, "whole")
    train(2, "stopped")
    for a, b in zip(whole, train(4, "stopped"), strict=True):
        np.testing.assert_array_equal(a, b)


# Pretraining, ratios


def test_pretraining_shows_no_labeled_image(tmp_path):
    run = digits_run(tmp_path, joint_training=False, students="b0,b0")
    assert batches.batch_sizes(run, "distill", 1) == (0, 8)
    assert batches.batch_sizes(run, "teach", 0) == (4, 0)
    probs = np.zeros((run.unlabeled.num_examples, 10), np.float32)
    probs[:, 3] = 1
    labels = store_probs(run, 1, probs)
    labels.write_copies(np.ones(len(probs), np.uint32), {})
    student = batches.make_batches(run, "distill", 1)(0)
    for images, targets in student.take(3):
        assert images.shape == (8, 8, 8, 3)
        assert (targets.numpy().argmax(axis=1) == 3).all()
    model, _ = assembly.make_trainable(run, "distill", 1, num_labeled=50)
    logs = model.fit(student, steps_per_epoch=1, verbose=0).history
    assert set(logs) == {"loss", "unlabeled_loss", "unlabeled_agreement"}
    assert logs["loss"] == pytest.approx(logs["unlabeled_loss"], rel=1e-5)


def test_each_student_has_its_ratio(tmp_path):
    run = digits_run(tmp_path, students="b0,b0,b0", unlabeled_ratio="1,1,2.5")
    sizes = [run.unlabeled_batch_size(k) for k in range(4)]
    assert sizes == [0, 4, 4, 10]
    for iteration, ratio in ((1, 1.0), (3, 2.5)):
        assert run.config.unlabeled_ratio_of(iteration) == ratio
    with pytest.raises(UserError, match="or 3: one for each student"):
        Config(students="b0,b0,b0", unlabeled_ratio="1,2")
    for wrong in ("", "0", "3,", "many", "nan", "-1"):
        with pytest.raises(UserError, match="--unlabeled_ratio"):
            Config(unlabeled_ratio=wrong)


# Selection


def test_a_selection_can_be_taken_from_other_labels(tmp_path):
    run = digits_run(tmp_path, students="b0,b0")
    count = run.unlabeled.num_examples
    rng = np.random.default_rng(0)
    for iteration in (1, 2):
        probs = rng.dirichlet(np.full(10, 0.2), count).astype(np.float32)
        probs[iteration] = np.nan  # an image that cannot be decoded
        labels = store_probs(run, iteration, probs)
        write_model(run, iteration - 1)
        labels.begin(prerequisites.manifest(run, iteration))
        if iteration == 1:  # before its student is there
            phases.select(run, 1)
    with pytest.raises(UserError, match="student 1 .* has learned"):
        phases.select(run, 1)
    first = run.label_store(1).copies()
    assert first.any() and first[1] == 0

    taken = digits_run(
        tmp_path,
        students="b0,b0",
        selection_from=str(run.label_store(1).directory),
        mode="select",
    )
    phases.select(taken, 2)
    copies = taken.label_store(2).copies()
    assert copies[2] == 0  # without a label, whatever the first teacher said
    rest = np.arange(count) != 2
    np.testing.assert_array_equal(copies[rest], first[rest])

    manifest = run.label_store(1).manifest_path
    text = manifest.read_text()
    manifest.write_text(text.replace(run.unlabeled.fingerprint, "other"))
    with pytest.raises(UserError, match="a selection of other images"):
        phases.select(taken, 2)
    run.label_store(1).selection_path.unlink()
    with pytest.raises(UserError, match="holds no selection"):
        phases.select(taken, 2)


@pytest.mark.parametrize("kind", ["exact", "official_bins"])
def test_the_settings_of_a_selection_arrive(tmp_path, kind):
    settings = {
        "selection": kind,
        "confidence_threshold": 0.4,
        "confidence_ceiling": 0.8,
        "images_per_class": 30,
        "duplicate": False,
        "max_unlabeled": 100,
    }
    run = digits_run(tmp_path, **settings)
    rng = np.random.default_rng(0)
    count = run.unlabeled.num_examples
    labels = store_probs(run, 1, rng.dirichlet(np.full(10, 0.2), count))
    phases.select(run, 1)
    copies = labels.copies()
    confidence, _ = labels.confidences()
    chosen = confidence[copies > 0]
    assert 0.4 <= chosen.min() and chosen.max() <= 0.8
    assert copies.max() == 1 and copies.sum() == 100
    assert labels.read_selection()["confidence_ceiling"] == 0.8


def test_no_image_is_shown_more_often_than_max_copies(tmp_path, capsys):
    """Class 0 has 3 images, the others have hundreds."""
    settings = {"confidence_threshold": 0.5, "images_per_class": 400}
    run = digits_run(tmp_path, **settings)
    count = run.unlabeled.num_examples
    classes = np.where(np.arange(count) < 3, 0, np.arange(count) % 9 + 1)
    labels = store_probs(run, 1, 0.8 * np.eye(10)[classes] + 0.02)
    source = {
        "fingerprint": run.unlabeled.fingerprint,
        "shard_sizes": run.unlabeled.shard_sizes,
    }
    labels.begin({"source": source})
    phases.select(run, 1)
    free = labels.copies()
    assert free.max() == 134  # of 400 in 3
    told = capsys.readouterr().out
    assert "134 times" in told and "--max_copies=100" in told

    other = digits_run(
        tmp_path / "other",
        max_copies=100,
        selection_from=str(labels.directory),
    )
    store_probs(other, 1, 0.8 * np.eye(10)[classes] + 0.02).begin(
        labels.manifest()
    )
    again = digits_run(tmp_path, **settings, max_copies=100, mode="select")
    for capped in (other, again):
        phases.select(capped, 1)
        copies = capped.label_store(1).copies()
        np.testing.assert_array_equal(copies, np.minimum(free, 100))
        told = capsys.readouterr().out
        assert "warning: a pass" not in told
        summary = capped.label_store(1).read_selection()
        assert summary["num_selected"] == copies.sum()
        assert summary["num_kept"] == np.count_nonzero(free)
    assert "of 400 images a class there are 300 to 400" in told


@pytest.mark.parametrize("images_per_class", [None, 5])
@pytest.mark.parametrize(
    ("kind", "num_above"), [("exact", 3), ("official_bins", 5)]
)
def test_what_is_at_the_threshold_counts_where_it_is_kept(
    tmp_path, capsys, kind, num_above, images_per_class
):
    run = digits_run(
        tmp_path,
        selection=kind,
        confidence_threshold=0.5,
        images_per_class=images_per_class,
        balance=images_per_class is None,
    )
    probs = np.full((run.unlabeled.num_examples, 10), 0.1)
    probs[:5, 3] = 0.5, 0.5, 0.75, 0.75, 0.75
    labels = store_probs(run, 1, probs)
    source = {
        "fingerprint": run.unlabeled.fingerprint,
        "shard_sizes": run.unlabeled.shard_sizes,
    }
    teacher = {"iteration": 0}
    labels.begin(
        {"source": source, "teacher": teacher, "classes": run.class_names}
    )
    phases.select(run, 1)
    summary = labels.read_selection()
    assert summary["num_above_threshold"] == num_above
    assert summary["above_threshold_per_class"][3] == num_above
    assert summary["num_kept"] == num_above
    if images_per_class is None:  # the average of what was kept
        assert summary["images_per_class"] == num_above
    (shown,) = collect.rounds(run.workdir, [1])
    assert shown["counts"]["above"].sum() == num_above
    word = "of at least" if kind == "official_bins" else "above"
    assert f"{num_above} of" in capsys.readouterr().out
    assert word in selection_summary.text(summary)


def test_selecting_again_tells_the_results_so(tmp_path):
    run = digits_run(tmp_path, confidence_threshold=0.5)
    rng = np.random.default_rng(0)
    count = run.unlabeled.num_examples
    labels = store_probs(run, 1, rng.dirichlet(np.full(10, 0.2), count))
    source = {
        "fingerprint": run.unlabeled.fingerprint,
        "shard_sizes": run.unlabeled.shard_sizes,
    }
    labels.begin({"source": source})
    phases.select(run, 1)
    assert run.workdir.results() == []  # not labeled as a phase yet
    record = {
        "phase": "label",
        "iteration": 1,
        "variant": "b0",
        "num_examples": count,
        "num_kept": labels.read_selection()["num_kept"],
    }
    other = record | {"iteration": 2, "num_kept": 7}
    run.workdir.append_result(record, 1.0)
    run.workdir.append_result(other, 1.0)
    stricter = digits_run(tmp_path, confidence_threshold=0.9, mode="select")
    phases.select(stricter, 1)
    kept = labels.read_selection()["num_kept"]
    assert kept < record["num_kept"]
    assert run.workdir.results() == [record | {"num_kept": kept}, other]


# Finetuning


def test_finetuning_leaves_the_first_blocks_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(efficientnet, "STAGES", STAGES[:3])
    teacher = tmp_path / "teacher.keras"
    efficientnet.build_model(
        "b0", 10, image_size=8, width=0.1, depth=0.1, small_images=True
    ).save(teacher)
    workdir = tmp_path / "run"
    flags = [
        f"--workdir={workdir}",
        "--train_steps=50",
        "--final_base_lr=auto",
        "--base_lr=100",  # so that the end of the schedule moves the weights
    ]
    finetune = [
        *flags, "--mode=finetune", f"--init_from={teacher}", "--image_size=12",
        "--frozen_blocks=2", "--finetune_epochs=2", "--ema_decay=0",
        "--eval_split=",
    ]  # fmt: skip
    assert run_main(*finetune) == 0
    record = results(workdir)[0]
    assert (record["phase"], record["iteration"]) == ("finetune", 0)
    assert record["image_size"] == 12
    assert record["steps"] == 5  # 2 * 50 / 20
    before = keras.saving.load_model(teacher)
    after = keras.saving.load_model(workdir / "iteration_0" / "finetuned.keras")
    assert after.input_shape == (None, 12, 12, 3)
    assert all(layer.trainable for layer in after.layers)
    frozen = [
        layer.name
        for layers in (
            efficientnet.stem_of(after),
            *efficientnet.blocks_of(after)[:2],
        )
        for layer in layers
    ]
    assert "block2a_project_bn" in frozen and "block3a_bn" not in frozen
    for layer in before.layers:
        for old, new in zip(
            layer.weights, after.get_layer(layer.name).weights, strict=True
        ):
            same = (np.asarray(old) == np.asarray(new)).all()
            assert same == (layer.name in frozen), f"{layer.name} {new.name}"
    # The rates are the last ones of the schedule.
    lines = (workdir / "iteration_0" / "finetune" / "metrics.jsonl").read_text()
    rates = [json.loads(line)["lr"] for line in lines.splitlines()]
    # 50 images in batches of 20, so a decay step of 2.4 epochs is 6 steps.
    expected = [100 * 20 / 256 * 0.97 ** (step // 6) for step in range(45, 50)]
    # The rate is read after the step, where the next one applies.
    np.testing.assert_allclose(rates[:-1], expected[1:], rtol=1e-6)


@pytest.mark.slow
def test_a_finetuned_model_takes_the_place_of_the_trained(teacher, tmp_path):
    workdir = tmp_path / "run"
    flags = [f"--workdir={workdir}", f"--init_from={teacher}"]
    assert run_main(*flags, "--mode=teach", "--notrain_teacher") == 0
    finetune = ["main.py", f"--workdir={workdir}", "--mode=finetune"]
    bigger = [*finetune, "--image_size=10", "--batch_size=10"]
    assert main.main([*bigger, "--frozen_blocks=99"]) == 2  # may be mended
    assert main.main(bigger) == 0
    # The run itself goes on as it was set up.
    recorded = command_line.read_flagfile(workdir / "run.flags")
    assert (recorded["image_size"], recorded["batch_size"]) == (8, 20)
    arguments = ["main.py", f"--workdir={workdir}", "--mode=evaluate"]
    assert main.main(arguments) == 0
    assert results(workdir)[-1]["image_size"] == 10
    assert results(workdir)[-1]["top1"] == results(workdir)[-2]["top1"]
    assert main.main(bigger) == 0
    assert len(results(workdir)) == 3  # done already
    assert main.main([*finetune, "--image_size=16", "--batch_size=10"]) == 2
    assert main.main([*bigger, "--frozen_blocks=1"]) == 2


@pytest.mark.slow
def test_a_stopped_finetuning_ends_with_the_same_bits(
    teacher, tmp_path, monkeypatch, capsys
):
    def weights(workdir):
        path = workdir / "iteration_0" / "finetuned.keras"
        return [np.asarray(w) for w in keras.saving.load_model(path).weights]

    def finetune(workdir):
        return run_main(
            f"--workdir={workdir}", "--mode=finetune", "--image_size=10",
            f"--init_from={teacher}", "--finetune_epochs=2",
            "--checkpoint_minutes=0", "--eval_split=",
            "--finetune_noise=crop,dropout,stochastic_depth",
        )  # fmt: skip

    assert finetune(tmp_path / "whole") == 0

    class Stop(Exception):
        pass

    class StopAtThree(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 2:
                raise Stop

    fit = keras.Model.fit

    def stopped_fit(*arguments, callbacks, **options):
        # A list, or Keras's object that holds one.
        getattr(callbacks, "callbacks", callbacks).append(StopAtThree())
        return fit(*arguments, callbacks=callbacks, **options)

    with monkeypatch.context() as patched:
        patched.setattr(keras.Model, "fit", stopped_fit)
        with pytest.raises(Stop):
            finetune(tmp_path / "stopped")
    capsys.readouterr()
    assert finetune(tmp_path / "stopped") == 0
    assert "step 3" in capsys.readouterr().out  # where it resumes
    for a, b in zip(
        weights(tmp_path / "whole"), weights(tmp_path / "stopped"), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frozen_blocks": 99}, "--frozen_blocks=99, but the network has 1"),
        ({"finetune_epochs": 10.0}, "--finetune_epochs=10.0 is 125 steps"),
    ],
)
def test_finetuning_that_cannot_be(teacher, tmp_path, changes, message):
    run = digits_run(tmp_path, init_from=str(teacher), **changes)
    with pytest.raises(UserError, match=message):
        assembly.make_trainable(run, "finetune", 0, num_labeled=50)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labeled_noise": "crop,blur"}, "--labeled_noise holds 'blur'"),
        ({"train_teacher": False}, "--notrain_teacher needs"),
        (
            {"online_teacher": True, "max_copies": 7},
            "--max_copies selects from stored labels",
        ),
        (
            {"warm_start": True, "student_init_from": "x.keras"},
            "--warm_start and --student_init_from both",
        ),
        (
            {"students": "b0,b1", "student_init_from": "x.keras"},
            "--student_init_from needs students of one variant",
        ),
        (
            {"warm_start": True, "variant": "b0", "students": "b1"},
            "--warm_start needs teacher and students of one variant",
        ),
    ],
)
def test_switches_that_contradict_each_other(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        digits_run(tmp_path, **changes)


def test_settings_without_students_or_noise_are_read_back(tmp_path):
    config = Config(students=None, labeled_noise=None, finetune_noise=None)
    (tmp_path / "run.flags").write_text(
        command_line.write_run_flags(config, "run.flags")
    )
    again = command_line.parse(
        ["main.py", f"--flagfile={tmp_path / 'run.flags'}"]
    )
    assert again == config


def test_finetuning_that_does_harm_is_told(tmp_path, capsys):
    workdir = Workdir(tmp_path)
    record = {
        "phase": "teach",
        "iteration": 0,
        "variant": "b0",
        "top1": 0.61,
        "top5": 1.0,
        "num_examples": 100,
        "steps": 1,
    }
    workdir.append_result(record, 1)
    for top1, is_told in ((0.45, True), (0.7, False)):
        record |= {"phase": "finetune", "top1": top1}
        learning.warn_if_worse(workdir, record, "a.keras")
        assert ("61.00% before" in capsys.readouterr().out) == is_told
