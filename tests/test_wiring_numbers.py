# SPDX-License-Identifier: Apache-2.0
"""Whole runs against NumPy: what each setting does to the weights.

Every batch is one or more whole passes over its images, so their order does
not matter, and a run of a few steps can be computed here from the settings
alone: labels, selection, loss, L2, schedule, RMSProp, averages. A setting that
does not arrive, or arrives in another phase or for another student, shows in
the weights that are saved.
"""

import dataclasses
import json

import keras
import numpy as np
import pytest
import tiny_run
from tiny_run import EPSILON
from tiny_run import MOMENTUM

from noisy_student import phases
from noisy_student.config import Config
from noisy_student.pseudo_labels import selection
from noisy_student.run import open_run

TRAINED = (
    "stem_conv/kernel",
    "stem_bn/gamma",
    "stem_bn/beta",
    "block1a_project_conv/kernel",
    "block2a_project_conv/kernel",
    "predictions/kernel",
    "predictions/bias",
)


# The network


def forward(weights, pixels, training=False):
    """Logits `(N, C)`, and mean and variance of the batch."""
    x = (pixels / 64 - 2).mean(axis=(1, 2)) @ weights["stem_conv/kernel"]
    mean, variance = x.mean(axis=0), ((x - x.mean(axis=0)) ** 2).mean(axis=0)
    if not training:
        shift, scale = (
            weights["stem_bn/moving_mean"],
            weights["stem_bn/moving_variance"],
        )
    else:
        shift, scale = mean, variance
    x = (x - shift) / np.sqrt(scale + EPSILON)
    x = x * weights["stem_bn/gamma"] + weights["stem_bn/beta"]
    x = x + np.tanh(x @ weights["block1a_project_conv/kernel"])
    x = x + np.tanh(x @ weights["block2a_project_conv/kernel"])
    logits = x @ weights["predictions/kernel"] + weights["predictions/bias"]
    return logits, mean, variance


def log_softmax(logits):
    logits = logits - logits.real.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def softmax(logits):
    return np.exp(log_softmax(logits))


def smooth(labels, smoothing, num_classes=4):
    return np.eye(num_classes)[labels] * (1 - smoothing) + (
        smoothing / num_classes
    )


# Training


def rate_at(step, *, peak, per_epoch, settings, total):
    """The official schedule: decay steps from 0 on, below a warm-up."""
    decay_epochs = settings["lr_decay_epochs"]
    if settings.get("final_base_lr"):
        fall = np.log(settings["final_base_lr"] / settings["base_lr"])
        count = fall / np.log(settings["lr_decay_factor"])
        decay_epochs = (total / per_epoch - settings["warmup_epochs"]) / count
    warmup = int(settings["warmup_epochs"] * per_epoch)
    if step < warmup:
        return peak * step / warmup
    passed = step // (decay_epochs * per_epoch)
    return peak * settings["lr_decay_factor"] ** passed


def gradients(loss, weights, names):
    """By complex steps: exact to the last digits, with no formula to share."""
    found = {}
    for name in names:
        found[name] = np.zeros(weights[name].shape)
        for index in np.ndindex(weights[name].shape):
            moved = weights[name].astype(complex)
            moved[index] += 1e-20j
            value = loss({**weights, name: moved})
            found[name][index] = value.imag / 1e-20
    return found


def train(
    weights, parts, *, settings, batch_size, steps, total, first=0, frozen=()
):
    """Train and average.

    Args:
        weights: Where it begins.
        parts: Triples of a weight in the loss, images and targets, as they
            stand in a batch.
        settings: Of `Config`.
        batch_size: Labeled images of a batch.
        steps: How many.
        total: Steps of the whole schedule.
        first: Where in the schedule.
        frozen: Beginnings of the names of weights that stay.

    Returns:
        The averages, by name.
    """
    weights = dict(weights)
    averages = dict(weights)
    names = [n for n in TRAINED if not n.startswith(tuple(frozen) or ("-",))]
    normalizes = "stem_bn/gamma" in names
    squares = {n: np.ones(weights[n].shape) for n in names}
    buffers = {n: np.zeros(weights[n].shape) for n in names}
    pixels = np.concatenate([images for _, images, _ in parts])
    per_epoch = 12 / batch_size

    def loss_of(weights):
        logits, _, _ = forward(weights, pixels, training=normalizes)
        rows, first, loss = log_softmax(logits), 0, 0
        for weight, images, targets in parts:
            own = rows[first : first + len(images)]
            loss -= weight * (own * targets).sum(axis=1).mean()
            first += len(images)
        return loss

    for step in range(steps):
        _, mean, variance = forward(weights, pixels, training=True)
        found = gradients(loss_of, weights, names)
        rate = rate_at(
            first + step,
            peak=settings["base_lr"] * batch_size / 256,
            per_epoch=per_epoch,
            settings=settings,
            total=total,
        )
        for name in names:
            gradient = found[name]
            if "bn/" not in name:
                gradient = gradient + settings["weight_decay"] * weights[name]
            squares[name] = 0.9 * squares[name] + 0.1 * gradient**2
            buffers[name] = MOMENTUM * buffers[name] + (
                rate * gradient / np.sqrt(squares[name] + EPSILON)
            )
            weights[name] = weights[name] - buffers[name]
        if normalizes:
            keep = settings["batch_norm_momentum"]
            for name, value in (("mean", mean), ("variance", variance)):
                name = f"stem_bn/moving_{name}"
                weights[name] = keep * weights[name] + (1 - keep) * value
        decay = min(settings["ema_decay"], (2 + step) / (11 + step))
        averages = {
            n: decay * averages[n] + (1 - decay) * weights[n] for n in weights
        }
    moved = max(np.abs(averages[n] - weights[n]).max() for n in weights)
    assert steps == 0 or moved > 0.002, "the averages are the weights"
    return averages


def total_steps(settings, iteration):
    if settings.get("train_steps"):
        return settings["train_steps"]
    epochs = listed(settings["epochs"], iteration)
    return round(epochs * 12 / settings["batch_size"])


def listed(setting, number):
    """The value for one of several, where a setting may be a list."""
    values = [float(value) for value in str(setting).split(",")]
    return values[number] if len(values) > 1 else values[0]


# Labels


def stored(probs, settings):
    """What a student reads of the labels that are stored as float16."""
    num_classes = probs.shape[1]
    top_k = settings.get("label_top_k")
    probs = probs.astype(np.float16).astype(np.float64)
    if settings.get("pseudo_label_kind") == "hard":
        top = probs.argmax(axis=1)
        return smooth(top, settings["label_smoothing"], num_classes)
    if top_k:
        order = np.argsort(-probs, axis=1, kind="stable")
        for row, others in zip(probs, order[:, top_k:], strict=True):
            row[others] = 0
            row[others] = (1 - row.sum()) / len(others)
    probs = probs ** (1 / settings.get("temperature", 1.0))
    return probs / probs.sum(axis=1, keepdims=True)


def check_copies(copies, probs, settings, iteration):
    """Filter by confidence; each class gets K, the most confident ones."""
    per_class = settings["images_per_class"]
    confidence, predicted = probs.max(axis=1), probs.argmax(axis=1)
    kept = confidence > listed(settings["confidence_threshold"], iteration - 1)
    assert 0 < kept.sum() < len(kept), "the threshold decides nothing"
    assert (copies[~kept] == 0).all()
    sizes = []
    for number in range(probs.shape[1]):
        rows = np.flatnonzero(kept & (predicted == number))
        rows = rows[np.argsort(-confidence[rows], kind="stable")]
        sizes.append(len(rows))
        assert len(rows), "a class without images: other colors, please"
        assert copies[rows].sum() == per_class
        # Who is shown once more than others is drawn.
        each = max(1, per_class // len(rows))
        extra = copies[rows[:per_class]].astype(int) - each
        assert set(extra) <= ({0, 1} if each * len(rows) < per_class else {0})
        assert (copies[rows[per_class:]] == 0).all()
    return sizes


def accuracy(weights, images):
    pixels, labels = images.evaluation
    logits, _, _ = forward(weights, pixels)
    return (logits.argmax(axis=1) == labels).mean()


class Numbers:
    """A run of the phases beside the same run in NumPy."""

    def __init__(self, images, workdir, monkeypatch, **settings):
        self.images, self.workdir = images, workdir
        self.config = tiny_run.config(images, workdir, **settings)
        defaults = Config()
        self.settings = {
            name: settings.get(name, getattr(defaults, name))
            for name in Config.__dataclass_fields__
        }
        self.initial = tiny_run.initial_weights()
        self.networks = tiny_run.install(
            monkeypatch, tiny_run.TinyNetworks(self.initial)
        )

    @property
    def labeled(self):
        """(weight, images, targets) of the labeled part of a batch."""
        pixels, labels = self.images.labeled
        times = self.settings["batch_size"] // len(labels)
        targets = smooth(labels, self.settings["label_smoothing"])
        return (
            1,
            np.tile(pixels, (times, 1, 1, 1)),
            np.tile(targets, (times, 1)),
        )

    def results(self):
        return tiny_run.results(self.workdir)

    def train_teacher(self):
        return self.train([self.labeled])

    def train(self, parts, start=None, iteration=0, **how):
        total = total_steps(self.settings, iteration)
        return train(
            start or self.initial,
            parts,
            settings=self.settings,
            batch_size=self.settings["batch_size"],
            total=total,
            **{"steps": total, **how},
        )

    def check_labels(self, iteration, teacher):
        """Compare what is stored; copies and targets of the student."""
        folder = self.workdir / f"iteration_{iteration}" / "labels"
        # Row of each image; the last one is broken.
        rows = tiny_run.rows_of(self.config, 25)
        copies = np.load(folder / "copies-00000-of-00001.npy")[rows]
        assert copies[-1] == 0
        probs = softmax(forward(teacher, self.images.unlabeled)[0])
        if not self.settings["label_top_k"]:
            found = np.load(folder / "probs-00000-of-00001.npy")
            np.testing.assert_allclose(found[rows][:-1], probs, atol=2e-3)
        check_copies(copies[:-1], probs, self.settings, iteration)
        return copies[:-1], stored(probs, self.settings)

    def distill(self, iteration, teacher, ratio, start=None):
        """Check the labels, then the student; its averages."""
        copies, targets = self.check_labels(iteration, teacher)
        part = self.unlabeled(iteration, copies, targets, ratio)
        student = self.train([self.labeled, part], start, iteration)
        self.check_model(f"iteration_{iteration}/model.keras", student)
        return student

    def unlabeled(self, iteration, copies, targets, weight):
        size = int(self.settings["batch_size"] * weight)
        times = size / copies.sum()
        assert times == int(times), "a batch is no whole pass"
        rows = np.tile(np.repeat(np.arange(len(copies)), copies), int(times))
        return weight, self.images.unlabeled[rows], targets[rows]

    def check_model(self, name, expected):
        found = tiny_run.load(self.workdir / name)
        for key, value in expected.items():
            np.testing.assert_allclose(
                found[key], value, rtol=5e-4, atol=5e-4, err_msg=f"{name} {key}"
            )


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny_run.Images(tmp_path_factory.mktemp("images"))


COMMON = {
    "seed": 5,
    "batch_size": 24,
    "epochs": 12.0,
    "base_lr": 1.5,
    "lr_decay_factor": 0.8,
    "lr_decay_epochs": 5.0,
    "warmup_epochs": 4.5,
    "weight_decay": 0.02,
    "label_smoothing": 0.2,
    "ema_decay": 0.35,
    "batch_norm_momentum": 0.7,
    "confidence_threshold": 0.4,
    "images_per_class": 3,
}


@pytest.fixture
def numbers(images, tmp_path, monkeypatch):
    """Function from settings that are not `COMMON` to `Numbers`."""
    return lambda workdir="run", **settings: Numbers(
        images, tmp_path / workdir, monkeypatch, **{**COMMON, **settings}
    )


def test_soft_labels_and_a_ratio_for_each_student(numbers, monkeypatch):
    seeds = []
    select = selection.select

    def recorded(*arguments, seed, **settings):
        seeds.append(seed)
        return select(*arguments, seed=seed, **settings)

    monkeypatch.setattr(selection, "select", recorded)
    run = numbers(
        students="b0,b1",
        unlabeled_ratio="2,3",
        epochs="12,13.5,10.5",  # rounded to steps, up and down
        confidence_threshold="0.4,0.5",
        temperature=2.0,
    )
    phases.run_mode(run.config)
    assert len(set(seeds)) == 2, "both students draw alike"
    assert [call["variant"] for call in run.networks.calls] == [
        "b0",
        "b0",
        "b1",
    ]
    fresh = {kernel.tobytes() for kernel in run.networks.drawn}
    assert len(fresh) == 3, "networks begin alike"
    models = [run.train_teacher()]
    run.check_model("iteration_0/model.keras", models[0])
    for iteration, ratio in ((1, 2), (2, 3)):
        models.append(run.distill(iteration, models[-1], ratio))
    records = [r for r in run.results() if r["phase"] != "label"]
    assert [r["phase"] for r in records] == ["teach", "distill", "distill"]
    assert [r["steps"] for r in records] == [6, 7, 5]
    for record, model in zip(records, models, strict=True):
        assert record["top1"] == accuracy(model, run.images)
        assert record["num_examples"] == 16
    # An older model, when it is asked for.
    phases.run_mode(
        dataclasses.replace(run.config, mode="evaluate", iteration=1)
    )
    record = run.results()[-1]
    assert (record["phase"], record["iteration"]) == ("evaluate", 1)
    assert record["top1"] == accuracy(models[1], run.images)


def check_orders(images, steps):
    """Each training draws an order of its own, and another one each epoch."""
    batches = tiny_run.seen("pixels_seen")
    assert len(batches) == sum(steps)
    labeled, unlabeled = [], []
    for first in np.cumsum([0, *steps[:-1]]):
        found = tiny_run.find(batches[first][:24], images.labeled[0])
        for epoch in (found[:12], found[12:]):
            assert sorted(epoch) == list(range(12)), "no pass over the images"
            labeled.append(tuple(epoch))
        rows = tiny_run.find(batches[first][24:], images.unlabeled)
        assert (rows >= 0).all()
        if len(rows):
            unlabeled.append(tuple(rows))
    assert len(set(labeled)) == 2 * len(steps)
    assert len(set(unlabeled)) == len(unlabeled) == 2


def check_export(run):
    """An older, finetuned model is exported: its averages, and their story."""
    phases.run_mode(
        dataclasses.replace(
            run.config, mode="export", iteration=1, export_formats="keras"
        )
    )
    folder = run.workdir / "iteration_1"
    exported = keras.saving.load_model(
        folder / "export" / "model.keras", compile=False
    )
    paths = sorted((folder / "finetune" / "checkpoints").glob("*.npz"))
    with np.load(paths[-1]) as file:
        names = [name for name in sorted(file.files) if "average" in name]
        averages = [file[n] for n in names if n.endswith("average")]
    assert len(averages) == len(exported.weights) == 9
    for average, weight in zip(averages, exported.weights, strict=True):
        np.testing.assert_array_equal(weight, average, err_msg=weight.path)
    facts = json.loads((folder / "export" / "export.json").read_text())
    link = facts["chain"][1]
    (record,) = (
        r
        for r in run.results()
        if (r["phase"], r["iteration"]) == ("finetune", 1)
    )
    assert link["finetuned"] and facts["finetuning"]["finetune_epochs"] == 3.6
    assert link["accuracy"]["steps"] == record["steps"] == 2
    assert link["accuracy"]["top1"] == record["top1"]


def test_hard_labels_of_finetuned_students(numbers):
    run = numbers(
        students="b0,b0",
        epochs="12,12,16",
        unlabeled_ratio="2",
        pseudo_label_kind="hard",
        label_top_k=2,
        warm_start=True,
        finetune=True,
        finetune_epochs=3.6,  # rounded to two steps
    )
    phases.run_mode(run.config)
    check_orders(run.images, steps=(6, 6, 2, 8, 2))
    teacher = run.train_teacher()
    for iteration, steps in ((1, 6), (2, 8)):
        student = run.distill(iteration, teacher, 2, start=teacher)
        # Two steps, the last ones of the schedule, on the averages; the stem
        # and half of the two blocks stay as they are.
        teacher = run.train(
            [run.labeled],
            student,
            iteration,
            steps=2,
            first=steps - 2,
            frozen=("stem", "block1a"),
        )
        run.check_model(f"iteration_{iteration}/finetuned.keras", teacher)
        finetuned = [r for r in run.results() if r["phase"] == "finetune"]
        assert finetuned[iteration - 1]["top1"] == accuracy(teacher, run.images)
    # What is evaluated is the newest model, finetuned.
    phases.evaluate(open_run(run.config))
    assert run.results()[-1]["top1"] == accuracy(teacher, run.images)
    check_export(run)


def test_pseudo_labels_alone_and_a_last_rate(numbers):
    run = numbers(
        students="b0",
        unlabeled_ratio="2",
        label_top_k=2,
        temperature=0.5,
        joint_training=False,
        train_steps=8,
        final_base_lr=0.3,
        warmup_epochs=4.0,
        eval_dir=None,
    )
    opened = open_run(run.config)
    phases.teach(opened)
    teacher = run.train_teacher()
    run.check_model("iteration_0/model.keras", teacher)
    phases.label(opened)
    copies, targets = run.check_labels(1, teacher)
    phases.distill(opened)
    _, images, targets = run.unlabeled(1, copies, targets, 2)
    student = run.train([(1, images, targets)])
    run.check_model("iteration_1/model.keras", student)


def test_two_devices_compute_what_one_does(numbers, two_replicas):
    run = numbers(
        students="b0", unlabeled_ratio="2", distribution="mirrored",
        cpu_devices=2, eval_dir=None,
    )  # fmt: skip
    phases.run_mode(run.config)
    # Equal shares, and both kinds in each of them.
    shares = [
        (replica, len(x))
        for name, training, replica, x in tiny_run.SEEN
        if training and name == "pixels_seen"
    ]
    assert set(shares) == {(0, 12), (1, 12), (0, 36), (1, 36)}
    teacher = run.train_teacher()
    run.check_model("iteration_0/model.keras", teacher)
    run.distill(1, teacher, 2)


@pytest.mark.parametrize(
    ("kind", "weight", "weights"),
    # A batch holds twice as many pseudo-labeled images as labeled ones.
    [("soft", "equal", (1, 1)), ("hard", "mean", (1 / 3, 2 / 3))],
)
def test_an_online_teacher_in_parts(numbers, tmp_path, kind, weight, weights):
    given = {}
    if kind == "hard":  # where the teacher begins, no student does
        learned = numbers(students=None).train_teacher()
        path = tiny_run.save_given(tmp_path / "given.keras", learned)
        given = {"init_from": path, "train_teacher": False}
    run = numbers(
        students="b0",
        eval_dir=None,
        **given,
        unlabeled_ratio="2",
        online_teacher=True,
        accumulation_steps=2,
        pseudo_label_kind=kind,
        unlabeled_weight=weight,
        temperature=2.0,
    )
    phases.run_mode(run.config)
    teacher = run.train_teacher()
    run.check_model("iteration_0/model.keras", teacher)
    logits = forward(teacher, run.images.unlabeled)[0]
    targets = softmax(logits / 2)
    if kind == "hard":
        targets = smooth(logits.argmax(axis=1), run.settings["label_smoothing"])
    parts = [run.labeled, run.unlabeled(1, np.ones(24, int), targets, 2)]
    student = run.train(
        [
            (weight, images, targets)
            for weight, (_, images, targets) in zip(weights, parts, strict=True)
        ]
    )
    run.check_model("iteration_1/model.keras", student)


def test_weights_from_elsewhere(numbers, tmp_path):
    given = numbers(students=None).train_teacher()
    other = {name: 0.8 * weight for name, weight in given.items()}
    path = tiny_run.save_given(tmp_path / "given.keras", given)
    other_path = tiny_run.save_given(tmp_path / "other.keras", other)
    # Of a run that calls as many classes something else.
    foreign = tiny_run.save_given(
        tmp_path / "foreign" / "iteration_0" / "model.keras", given
    )
    names = {"classes": ["ant", "bee", "cat", "dog"]}
    (tmp_path / "foreign" / "data.json").write_text(json.dumps(names))

    # A teacher that is trained begins there, but for a head of other classes.
    run = numbers(
        workdir="taught",
        students=None,
        init_from=foreign,
        warmup_epochs=2.0,  # one step; by default it would be two
        eval_dir=None,
    )
    phases.run_mode(run.config)
    head = {n: w for n, w in run.initial.items() if n.startswith("predictions")}
    run.check_model(
        "iteration_0/model.keras", run.train([run.labeled], given | head)
    )
    # One that is taken as it is labels; its student begins elsewhere.
    run = numbers(
        workdir="taken",
        students="b0",
        init_from=path,
        student_init_from=other_path,
        train_teacher=False,
        unlabeled_ratio="2",
        eval_dir=None,
    )
    phases.run_mode(run.config)
    run.check_model("iteration_0/model.keras", given)
    assert run.results()[0]["steps"] == 0
    run.distill(1, given, 2, start=other)
    # Weights can be finetuned without training: here the stem alone is left as
    # it is, with a rate of its own.
    run = numbers(
        workdir="finetuned",
        mode="finetune",
        students=None,
        init_from=path,
        frozen_blocks=0,
        finetune_epochs=6.0,
        base_lr=3.0,
        eval_dir=None,
    )
    phases.run_mode(run.config)
    finetuned = run.train(
        [run.labeled], given, steps=3, first=3, frozen=("stem",)
    )
    run.check_model("iteration_0/finetuned.keras", finetuned)
