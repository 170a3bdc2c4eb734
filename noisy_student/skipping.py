# SPDX-License-Identifier: Apache-2.0
"""Images that a run cannot use: which, and why.

`skipped.csv` in the workdir is for people: a line for each, of all kinds of
images. Beside it, `skipped_<role>.json` remembers what was found out, so that
it is found out once.
"""

import csv
import io

from noisy_student.data import decoding
from noisy_student.data import undecodable as broken
from noisy_student.errors import UserError
from noisy_student.files import csv_cell
from noisy_student.files import read_json
from noisy_student.files import write_json
from noisy_student.files import write_text
from noisy_student.reporting import console

ROLES = ("labeled", "unlabeled", "evaluation")


def undecodable(run, role):
    """Which images of a training set cannot be decoded.

    Each is decoded once, less work than one epoch.

    Args:
        run: The `Run`.
        role: `labeled` or `unlabeled`.

    Returns:
        List of pairs (shard, row).

    Raises:
        UserError: If that is all of them.
    """
    source = getattr(run, role)
    known = _known(run, role)
    if known is None:
        known = broken.find(source, decoding.decode)
        if len(known) == source.num_examples:
            first = min(known)
            raise UserError(
                f"none of the {len(known)} {role} images of {source.name} can "
                f"be decoded; the first is {source.example_name(*first)}: "
                f"{known[first]}"
            )
        _remember(run, role, known)
    _write_csv(run)
    return list(known)


def record(run, role, positions):
    """Write down images that a network could not be asked about.

    Args:
        run: The `Run`.
        role: `unlabeled` or `evaluation`.
        positions: List of pairs (shard, row).
    """
    source, known = getattr(run, role), _known(run, role)
    if known is None and not (positions or source.left_out):
        return
    if known is None or list(known) != sorted(positions):
        # What can be decoded was asked about: the network's fault.
        found = dict.fromkeys(sorted(positions), "the answer is not finite")
        found |= broken.reasons(source, positions, decoding.decode)
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
        if known["fingerprint"] == getattr(run, role).fingerprint:
            return {
                (item["shard"], item["row"]): item["reason"]
                for item in known["skipped"]
            }
    return None


def _remember(run, role, found):
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
    console.print_skipped(len(skipped) + len(left_out), source.name)
    content = {
        "fingerprint": source.fingerprint,
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
