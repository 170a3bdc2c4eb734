# SPDX-License-Identifier: Apache-2.0
"""Images that a run cannot use: which, and why.

`skipped.csv` in the workdir is for people: a line for each, of all kinds of
images. Beside it, `skipped_<role>.json` remembers what was found out, so that
it is found out once.
"""

import contextlib
import csv
import dataclasses
import io
from zipfile import BadZipFile

import numpy as np

from noisy_student.data import decoding
from noisy_student.data import duplicates
from noisy_student.data import sources
from noisy_student.data import undecodable as broken
from noisy_student.errors import UserError
from noisy_student.files import csv_cell
from noisy_student.files import read_json
from noisy_student.files import write_atomically
from noisy_student.files import write_json
from noisy_student.files import write_text
from noisy_student.reporting import console
from noisy_student.reporting.progress import Progress

ROLES = ("labeled", "unlabeled", "evaluation")


def unusable(run, role):
    """Which images of a training set are left out.

    Those that cannot be decoded, and those that are evaluation images as well.
    Each is decoded once, less work than one epoch.

    Args:
        run: The `Run`.
        role: `labeled` or `unlabeled`.

    Returns:
        List of pairs (shard, row).

    Raises:
        UserError: If that is all of them, or all of a class. Labeled images
            that are all evaluation images stay, with a warning.
    """
    source = getattr(run, role)
    known = _known(run, role)
    lost = ()
    if known is None:
        known, labels, hashes = _survey(without_evaluation(run, source))
        known = _name_originals(run, source, known)
        same = [p for p, why in known.items() if _is_evaluated(why)]
        if role == "labeled" and same and len(known) == source.num_examples:
            # Whoever evaluates on what is trained on has nothing else.
            console.print_all_evaluated(len(same), source.name)
            known, labels, hashes = _survey(source)
            same = []
        if len(known) == source.num_examples:
            first = min(known)
            raise UserError(
                f"none of the {len(known)} {role} images of {source.name} can "
                f"be {'used' if same else 'decoded'}; the first is "
                f"{source.example_name(*first)}: {known[first]}"
            )
        if role == "labeled":
            console.print_copies(*duplicates.copies(hashes, labels))
            there = set(np.unique(labels).tolist())
            lost = _lost_classes(source, known, there)
            names = source.class_names
            console.print_untrained(
                [
                    name
                    for number, name in enumerate(names)
                    if number not in there and name not in lost
                ]
            )
        _remember(run, role, known, whole=not lost)
    _write_csv(run)
    if lost:
        raise UserError(
            f"no image of class {sources.some(lost)} in {source.name} can be "
            f"used, see {run.workdir.path / 'skipped.csv'}: replace these "
            "images, or remove the class"
        )
    return list(known)


def _survey(source):
    """What cannot be used of a source, and labels and hashes of the rest."""
    labels, hashes = [np.empty(0, np.int64)], [np.empty(0, np.int64)]

    def on_batch(shards, rows, some_labels, some_hashes):
        labels.append(some_labels)
        hashes.append(some_hashes)

    found = broken.find(source, decoding.decode, on_batch=on_batch)
    for position, reason in found.items():
        if reason == broken.NO_SUCH_FILE:
            raise UserError(
                f"{source.example_name(*position)} has vanished: bring it "
                "back, and the same command goes on"
            )
    return found, np.concatenate(labels), np.concatenate(hashes)


def _is_evaluated(reason):
    return reason.startswith(duplicates.REASON)


def _lost_classes(source, left_out, there):
    """Names of the classes that had images, and have none left.

    Args:
        source: A `Source` with labels.
        left_out: Pairs (shard, row).
        there: Set of the labels of all other images.
    """
    lost = {label for *_, label in broken.examples_at(source, left_out)} - there
    return [source.class_names[label] for label in sorted(lost)]


def without_evaluation(run, source):
    """A source whose images fail to load if they are evaluation images too.

    Args:
        run: The `Run`.
        source: A `Source` of images to train on.
    """
    if run.evaluation is None:
        return source
    return duplicates.without(source, _digests(run))


def _digests(run):
    """The `Digests` of the evaluation images; read once for each run."""
    source = run.evaluation
    path = run.workdir.path / "evaluation_digests.npz"
    with contextlib.suppress(OSError, ValueError, LookupError, BadZipFile):
        with np.load(path, allow_pickle=False) as file:
            if str(file["fingerprint"]) == source.fingerprint:
                return duplicates.Digests(file["hashes"], file["digests"])
    progress = Progress(source.num_examples, unit="images", patience=15)
    progress.begin("reading the evaluation images ...")
    try:
        digests = duplicates.digests_of(source, progress.add)
    finally:
        progress.close()
    arrays = dataclasses.asdict(digests) | {"fingerprint": source.fingerprint}
    write_atomically(path, lambda file: np.savez(file, **arrays))
    return digests


def _name_originals(run, source, found):
    """Reasons that name the evaluation image that an image is a copy of."""
    same = [p for p, reason in found.items() if reason == duplicates.REASON]
    if not same:
        return found
    names = duplicates.originals(source, same, run.evaluation, _digests(run))
    # An image of the same short hash that is another one stays.
    named = {
        position: f"{reason}, {names[position]}"
        if position in names
        else reason
        for position, reason in found.items()
        if reason != duplicates.REASON or position in names
    }
    # Empty files are all alike, and no images at all.
    return named | broken.reasons(source, names, decoding.decode)


def record(run, role, positions):
    """Write down images that a network could not be asked about.

    Args:
        run: The `Run`.
        role: `unlabeled` or `evaluation`.
        positions: List of pairs (shard, row).
    """
    source, known = getattr(run, role), _known(run, role)
    nothing = not (positions or source.left_out)
    # What was found in other images before is not to stay.
    if known is None and nothing and not _path(run, role).exists():
        return
    if known is None or list(known) != sorted(positions):
        # What can be decoded was asked about: the network's fault.
        found = dict.fromkeys(sorted(positions), "the answer is not finite")
        without = source
        if role == "unlabeled":
            without = without_evaluation(run, source)
        found |= broken.reasons(without, positions, decoding.decode)
        found |= _name_originals(run, source, found)
        _remember(run, role, found)
    _write_csv(run)


def _path(run, role):
    return run.workdir.path / f"skipped_{role}.json"


def _read(path):
    def is_whole(known):
        items = (*known["skipped"], *known["left_out"])
        positions = [(i["shard"], i["row"]) for i in known["skipped"]]
        return (
            all(isinstance(n, int) for pair in positions for n in pair)
            and all(isinstance(i["file"], str) for i in items)
            and all(isinstance(i["reason"], str) for i in items)
            and isinstance(known["fingerprint"], str)
        )

    return read_json(path, is_whole, "delete it, and it is made again")


def _known(run, role):
    """Dict of (shard, row) -> reason, or None if it is not known yet."""
    path = _path(run, role)
    if path.exists():
        known = _read(path)
        same = known["fingerprint"] == getattr(run, role).fingerprint
        if run.evaluation:
            same &= known.get("evaluation") == run.evaluation.fingerprint
        if same:
            return {
                (item["shard"], item["row"]): item["reason"]
                for item in known["skipped"]
            }
    return None


def _remember(run, role, found, whole=True):
    """Print and write what was found; not for good, unless it is the whole."""
    source = getattr(run, role)
    skipped = [
        {
            "shard": shard,
            "row": row,
            "file": source.example_name(shard, row),
            "reason": reason,
        }
        for (shard, row), reason in sorted(found.items())
    ]
    left_out = [
        {"file": name, "reason": reason} for name, reason in source.left_out
    ]
    for item in (*skipped, *left_out)[: console.NAMES_SHOWN]:
        console.warn_skipped(item["file"], item["reason"])
    same = sum(_is_evaluated(item["reason"]) for item in skipped)
    console.print_skipped(len(skipped) - same + len(left_out), source.name)
    console.print_evaluated(same, source.name)
    content = {
        "fingerprint": source.fingerprint if whole else "",
        "evaluation": run.evaluation and run.evaluation.fingerprint,
        "skipped": skipped,
        "left_out": left_out,
    }
    write_json(_path(run, role), content)


def _write_csv(run):
    """All that is known, as a table; no file if there is nothing to tell."""
    rows = []
    for role in ROLES:
        if _path(run, role).exists():
            known = _read(_path(run, role))
            for item in (*known["skipped"], *known["left_out"]):
                row = (role, item["file"], item["reason"])
                rows.append(tuple(map(csv_cell, row)))
    path = run.workdir.path / "skipped.csv"
    if rows or path.exists():
        text = io.StringIO()
        csv.writer(text).writerows([("images", "file", "reason"), *rows])
        write_text(path, text.getvalue())
