# SPDX-License-Identifier: Apache-2.0
"""From the files of a workdir to facts, whatever state it is in.

A run may be at work there, may have been stopped anywhere, or be of an older
version: a file that is missing or damaged is a fact that nobody knows.
"""

import json
import platform
import zipfile

import keras
import numpy as np
import tensorflow as tf

import noisy_student
from noisy_student.errors import UserError
from noisy_student.evaluation import predictions
from noisy_student.pseudo_labels.store import LabelStore
from noisy_student.reporting.report import facts
from noisy_student.reporting.report import labels

DAMAGED = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    zipfile.BadZipFile,
    UserError,
)


def answers(workdir, iterations, fingerprint=None):
    """What each model answered to the evaluation images.

    Args:
        workdir: A `Workdir`.
        iterations: Their numbers.
        fingerprint: Of the evaluation images; None for those that the newest
            model has answered to.

    Returns:
        Dict of (phase, iteration) -> `Predictions`.
    """
    folders = {("weights", 0): workdir.path}
    for k in iterations:
        folders["distill" if k else "teach", k] = workdir.iteration(k)
        folders["finetune", k] = workdir.finetuning(k)
    if fingerprint is None:
        found = (
            path
            for folder in reversed(folders.values())
            for path in sorted(folder.glob("predictions-*.npz"))
        )
        newest = _load(next(found, None))
        if newest is None:
            return {}
        fingerprint = newest.about["fingerprint"]
    loaded = {
        key: _load(predictions.path_of(folder, fingerprint))
        for key, folder in folders.items()
    }
    return {key: found for key, found in loaded.items() if found is not None}


def _load(path):
    if path is None or not path.exists():
        return None
    try:
        return predictions.load(path)
    except DAMAGED:
        return None


def curves(workdir, models, iterations):
    """Training curves of each model, those in progress too.

    Args:
        workdir: A `Workdir`.
        models: Of `facts.models`.
        iterations: Numbers of all models that there may be.

    Returns:
        Dict of a model's role -> `facts.curve`.
    """
    finetuned = {m["iteration"] for m in models if m["phase"] == "finetune"}
    found = {}
    for k in iterations:
        folders = {"": workdir.iteration(k), "finetune": workdir.finetuning(k)}
        for phase, folder in folders.items():
            path = folder / "metrics.jsonl"
            # The curves of a finetuning are a few steps: they need its end.
            if path.exists() and (not phase or k in finetuned):
                text = path.read_text(errors="replace")
                found[facts.role(k, phase)] = facts.curve(text)
    return found


def rounds(workdir, iterations):
    """What became of the unlabeled images, round by round.

    Args:
        workdir: A `Workdir`.
        iterations: Numbers of the students.

    Returns:
        List of dicts: `iteration`, `teacher` (its role), `class_names`,
        `selection` (of `selection.json`, or None), `threshold`, `ceiling`,
        `inclusive` (whether an image at the threshold passes),
        `counts` (of `labels.count`), `num_images`, `whole` (whether all is
        labeled), `store` and `manifest`.
    """
    found = [_round(workdir, k) for k in iterations]
    return [labeled for labeled in found if labeled]


def _round(workdir, iteration):
    directory = workdir.labels(iteration)
    try:
        manifest = json.loads((directory / "manifest.json").read_text())
        store = LabelStore(
            directory,
            manifest["source"]["shard_sizes"],
            len(manifest["classes"]),
            manifest.get("label_top_k"),
        )
        selection = store.read_selection()
        shards = range(len(store.shard_sizes))
        labeled = [s for s in shards if store.probs_path(s).exists()]
        if not labeled:
            return None
        threshold = selection["confidence_threshold"] if selection else 0.0
        ceiling = selection.get("confidence_ceiling") if selection else None
        inclusive = bool(selection) and selection.get("includes_threshold")
        counts = labels.count(
            (_shard(store, shard, selection) for shard in labeled),
            store.num_classes,
            threshold,
            ceiling,
            inclusive,
        )
    except DAMAGED:
        return None
    return {
        "iteration": iteration,
        "teacher": facts.the_role(manifest["teacher"]["iteration"]),
        "class_names": manifest["classes"],
        "selection": selection,
        "threshold": threshold,
        "ceiling": ceiling,
        "inclusive": inclusive,
        "counts": counts,
        "num_images": min(counts["num_images"], store.num_images()),
        "whole": len(labeled) == len(shards),
        "store": store,
        "manifest": manifest,
    }


def _shard(store, shard, selection):
    """Confidence, predicted class and copies of a shard's images."""
    top = store.read_top(shard)
    confidence = np.asarray(top["confidence"], np.float32)
    copies = np.asarray(store.read_copies(shard)) if selection else None
    return confidence, np.asarray(top["class"]), copies


def choose(labeled):
    """Add to a round which of its images to show.

    Args:
        labeled: Of `rounds`, with a selection.

    Returns:
        List of the pairs (shard, row).
    """
    store = labeled["store"]
    shards = labels.candidate_shards(store.shard_sizes)
    labeled["reasons"] = labels.choose_classes(labeled["counts"])
    labeled["chosen"] = labels.choose_images(
        ((shard, *_shard(store, shard, True)) for shard in shards),
        labeled["reasons"],
        labeled["threshold"],
        labeled["ceiling"],
        labeled["inclusive"],
    )
    labeled["part"] = None
    if len(shards) < len(store.shard_sizes):
        looked_at = sum(store.shard_sizes[shard] for shard in shards)
        labeled["part"] = f"{looked_at:,}"
    return [
        (image["shard"], image["row"])
        for groups in labeled["chosen"].values()
        for images in groups.values()
        for image in images
    ]


def settings(workdir):
    """List of (flag, value) of `run.flags`; empty without that file."""
    path = workdir.path / "run.flags"
    if not path.exists():
        return []
    lines = path.read_text(errors="replace").splitlines()
    pairs = (line[2:].partition("=") for line in lines if line[:2] == "--")
    return [(name, value) for name, _, value in pairs]


def times(seconds):
    """The times of a run as rows for the page.

    Args:
        seconds: Dict of `times.json`.

    Returns:
        List of dicts of `name`, `seconds` and `share`, in percent of the
        longest.
    """
    longest = max(seconds.values(), default=0) or 1
    rows = []
    for key, value in seconds.items():
        phase, _, iteration = key.rpartition(" ")
        name = {"teach": "teach", "label": f"label, round {iteration}"}.get(
            phase, f"{phase} {facts.role(int(iteration))}"
        )
        share = round(100 * value / longest, 1)
        rows.append({"name": name, "seconds": value, "share": share})
    return rows


def versions():
    """List of (name, version) of what is at work here."""
    return [
        ("noisy_student", noisy_student.__version__),
        ("Python", platform.python_version()),
        ("TensorFlow", tf.__version__),
        ("Keras", keras.__version__),
        ("NumPy", np.__version__),
        ("system", f"{platform.system()} {platform.machine()}"),
    ]
