# SPDX-License-Identifier: Apache-2.0
"""Whether a student loses by labels that keep k classes of each image.

    python -m benchmarks.label_top_k
    python -m benchmarks.label_top_k --k=1,3 --seeds=0 \
        --labeled_dir=DIR --unlabeled_dir=DIR --eval_dir=DIR

For each seed one teacher is trained and labels all classes; from these labels
one student learns with all of them, and one each with the k surest
(`--label_top_k`). All labels are soft, and all students of a seed see the same
images with the same noise. Flags that are not of this script are those of
`main.py`; without any it is the digits, on the validation images.

Besides accuracies it says how far the labels themselves are from the whole
ones: half the sum of absolute differences, the mean over all images.

Everything stays in --workdir; the same command goes on where it was stopped.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import shutil

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from noisy_student import command_line
from noisy_student import phases
from noisy_student import prerequisites
from noisy_student.pseudo_labels import rows
from noisy_student.run import open_run

DIGITS = ("--flagfile=flags/digits.flags", "--eval_split=validation")


def main():
    """Train, then a table and its content as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--k", default="1,2,3,5", help="A list.")
    parser.add_argument("--seeds", default="10,11,12", help="A list.")
    parser.add_argument("--workdir", default="runs/label_top_k")
    arguments, flags = parser.parse_known_args()
    config = command_line.parse(["main.py", *(flags or DIGITS)])
    config = dataclasses.replace(
        config,
        mode="iterate",
        pseudo_label_kind="soft",
        students=config.student_variants()[0],
    )
    kept = [int(k) for k in arguments.k.split(",")]
    records = []
    for seed in map(int, arguments.seeds.split(",")):
        directory = pathlib.Path(arguments.workdir) / f"seed_{seed}"
        records.append(
            of_seed(dataclasses.replace(config, seed=seed), directory, kept)
        )
    print_table(records, kept)
    print(json.dumps(records))


def of_seed(config, directory, kept):
    """A teacher, its labels, and a student for each k.

    Args:
        config: A `Config`.
        directory: Where all of it is kept.
        kept: The k that are tried.

    Returns:
        Dict of `seed`, `teacher` (top-1) and `students`: for `all` and each k
        a dict of `top1`, `distance` and `bytes_per_image`.
    """
    run = run_in(config, directory / "all")
    phases.teach(run)
    phases.label(run)
    phases.distill(run, 1)
    whole = run.label_store(1)
    found = {"all": result(run, 0.0)}
    for k in kept:
        other = run_in(config, directory / f"top_{k}", label_top_k=k)
        if not other.workdir.has_model(0):
            to = other.workdir.trained_model(0)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(run.workdir.model(0), to)
        labels = other.label_store(1)
        labels.begin(prerequisites.manifest(other, 1))
        distances = []
        for shard in range(len(whole.shard_sizes)):
            probs = whole.read_probs(shard)
            labels.write_probs(shard, probs)
            distances.append(distance(probs, labels.read_probs(shard)))
        if labels.read_selection() is None:
            phases.select(other, 1)
        phases.distill(other, 1)
        found[str(k)] = result(other, float(np.nanmean(np.hstack(distances))))
    teacher = run.workdir.find_result("teach", 0)["top1"]
    return {"seed": config.seed, "teacher": teacher, "students": found}


def run_in(config, directory, **changes):
    """The `Run` of a workdir."""
    changes["workdir"] = str(directory)
    return open_run(dataclasses.replace(config, **changes))


def result(run, distance):
    """What came out for one kind of labels."""
    return {
        "top1": run.workdir.find_result("distill", 1)["top1"],
        "distance": round(distance, 4),
        "bytes_per_image": rows.bytes_per_image(
            run.num_classes, run.config.label_top_k
        ),
    }


def distance(probs, packed):
    """Half the sum of absolute differences, `(N,)`, from what is stored."""
    probs = np.asarray(probs, np.float64)
    if not packed.dtype.names:  # k is all classes
        return np.zeros(len(probs))
    highest = packed["probs"].astype(np.float64)
    num_others = probs.shape[1] - highest.shape[1]
    rest = (1 - highest.sum(axis=1, keepdims=True)) / num_others
    whole = np.tile(np.clip(rest, 0, highest[:, -1:]), probs.shape[1])
    np.put_along_axis(whole, packed["classes"].astype(int), highest, axis=1)
    return np.abs(whole - probs).sum(axis=1) / 2


def print_table(records, kept):
    """Top-1 in percent of each seed, their mean, and what the labels are."""
    names = ["all", *map(str, kept)]
    print("\ntop-1 in percent")
    print("seed     teacher" + "".join(f"{'k=' + n:>9}" for n in names))
    for record in records:
        line = [record["teacher"]]
        line += [record["students"][name]["top1"] for name in names]
        print(
            f"{record['seed']:<7}" + "".join(f"{100 * x:>9.1f}" for x in line)
        )
    columns = {
        name: [record["students"][name] for record in records] for name in names
    }
    means = [np.mean([record["teacher"] for record in records])]
    means += [np.mean([s["top1"] for s in columns[name]]) for name in names]
    print("mean   " + "".join(f"{100 * x:>9.1f}" for x in means))
    for label, key, digits in (
        ("distance", "distance", 3),
        ("bytes an image", "bytes_per_image", 0),
    ):
        values = [np.mean([s[key] for s in columns[name]]) for name in names]
        print(f"{label:<16}" + "".join(f"{x:>9.{digits}f}" for x in values))


if __name__ == "__main__":
    main()
