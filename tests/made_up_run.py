# SPDX-License-Identifier: Apache-2.0
"""A workdir as a run leaves it, of any number of classes, without training."""

import os

import numpy as np
from PIL import Image

from noisy_student import command_line
from noisy_student.config import Config
from noisy_student.data import folder_sources
from noisy_student.evaluation import predictions
from noisy_student.files import write_json
from noisy_student.files import write_text
from noisy_student.pseudo_labels import selection
from noisy_student.pseudo_labels.store import LabelStore
from noisy_student.reporting import selection_summary

PICTURES = 24  # different ones; the files are links to them


def save_pictures(root, side, rng):
    """Pictures of plain noise: nothing is harder to compress."""
    root.mkdir(parents=True)
    paths = [root / f"{number}.jpg" for number in range(PICTURES)]
    for path in paths:
        pixels = rng.integers(0, 256, (side, side, 3), np.uint8)
        Image.fromarray(pixels).save(path, quality=90)
    return paths


def link(pictures, folder, count, first=0):
    os.makedirs(folder, exist_ok=True)
    for number in range(first, first + count):
        source = pictures[number % len(pictures)]
        name = os.path.join(os.fsencode(folder), b"%06d.jpg" % number)
        os.link(source, name)


def make(root, names, *, side=64, unlabeled=200, students="b0", **settings):
    """Make folders of images and the workdir of a run on them.

    Args:
        root: Folder for all of it.
        names: Of the classes, str or bytes: what a folder may be called.
        side: Pixels of the images.
        unlabeled: Number of images.
        students: As `--students`.
        **settings: Others of `Config`.

    Returns:
        Pair of the workdir's path and its `Config`.
    """
    rng = np.random.default_rng(0)
    pictures = save_pictures(root / "pictures", side, rng)
    for number, name in enumerate(names):
        for part, count in (("labeled", 1), ("eval", 2)):
            folder = os.path.join(os.fsencode(root / part), os.fsencode(name))
            link(pictures, folder, count, number * count)
    link(pictures, root / "unlabeled", unlabeled)
    workdir = root / "run"
    config = Config(
        workdir=str(workdir),
        labeled_dir=str(root / "labeled"),
        unlabeled_dir=str(root / "unlabeled"),
        eval_dir=str(root / "eval"),
        students=students,
        image_size=32,
        images_per_class=None,
        **settings,
    )
    path = workdir / "run.flags"
    write_text(path, command_line.write_run_flags(config, path))
    records = _fill(workdir, config, rng)
    write_json(workdir / "results.json", records)
    times = {f"{r['phase']} {r['iteration']}": 61.5 for r in records}
    write_json(workdir / "times.json", times)
    return workdir, config


def _fill(workdir, config, rng):
    evaluation = folder_sources.class_folders(config.eval_dir)
    unlabeled = folder_sources.image_folder(config.unlabeled_dir)
    images = {"unlabeled": unlabeled, "evaluation": evaluation}
    known = {
        role: {
            "name": source.name,
            "num_images": source.num_examples,
            "fingerprint": source.fingerprint,
        }
        for role, source in images.items()
    }
    classes = list(evaluation.class_names)
    write_json(workdir / "data.json", {"classes": classes, **known})
    records = []
    for k in range(len(config.student_variants()) + 1):
        folder = workdir / f"iteration_{k}"
        if k:
            kept = _label(folder / "labels", unlabeled, evaluation, k, rng)
            records.append(
                {
                    "phase": "label",
                    "iteration": k,
                    "variant": "b0",
                    "num_examples": unlabeled.num_examples,
                    "num_kept": kept,
                }
            )
        top1 = answer(folder, evaluation, 0.6 + 0.2 * (k > 0), rng)
        records.append(
            {
                "phase": "distill" if k else "teach",
                "iteration": k,
                "variant": "b0",
                "top1": top1,
                "top5": 0.95,
                "num_examples": evaluation.num_examples,
                "image_size": 32,
                "steps": 40,
            }
        )
        lines = [
            f'{{"step": {step}, "labeled_loss": {3 / step}, "loss": 1.0'
            + (f', "unlabeled_loss": {4 / step}' if k else "")
            + "}\n"
            for step in (10, 20, 30, 40)
        ]
        write_text(folder / "metrics.jsonl", "".join(lines))
    return records


def answer(folder, source, share, rng):
    """Answers to the evaluation images; a share of them is right."""
    num_classes = len(source.class_names)
    labels = np.arange(source.num_examples) // 2
    shards, first, right = [], 0, 0
    for size in source.shard_sizes:
        label = labels[first : first + size]
        guess = np.where(
            rng.random(size) < share,
            label,
            (label + rng.integers(1, num_classes, size)) % num_classes,
        )
        probs = np.full((size, num_classes), 0.4 / num_classes, np.float32)
        probs[np.arange(size), guess] = 0.6
        shards.append((label, *predictions.surest(probs)))
        right += int((guess == label).sum())
        first += size
    about = {
        "name": source.name,
        "fingerprint": source.fingerprint,
        "classes": list(source.class_names),
        "shard_sizes": list(source.shard_sizes),
    }
    predictions.save(
        predictions.path_of(folder, source.fingerprint), shards, about
    )
    return right / source.num_examples


def _label(directory, source, evaluation, iteration, rng):
    names = evaluation.class_names
    store = LabelStore(directory, source.shard_sizes, len(names))
    store.begin(
        {
            "source": {
                "name": source.name,
                "fingerprint": source.fingerprint,
                "shard_sizes": list(source.shard_sizes),
            },
            "teacher": {"iteration": iteration - 1, "variant": "b0"},
            "classes": list(names),
            "label_top_k": None,
        }
    )
    for shard, size in enumerate(source.shard_sizes):
        probs = rng.dirichlet(np.full(len(names), 2 / len(names)), size)
        store.write_probs(shard, probs)
    confidence, predicted_class = store.confidences()
    rows = {"num_classes": len(names), "threshold": 0.3}
    per_class = selection.average_per_class(confidence, predicted_class, **rows)
    copies = selection.select(
        confidence, predicted_class, **rows, images_per_class=per_class, seed=1
    )
    summary = selection_summary.summarize(
        confidence,
        predicted_class,
        copies,
        threshold=0.3,
        images_per_class=per_class,
        class_names=names,
    )
    store.write_copies(copies, summary)
    return summary["num_kept"]
