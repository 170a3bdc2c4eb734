# SPDX-License-Identifier: Apache-2.0
"""Memory of long runs: labeling a million images, training ten thousand steps.

    python -m benchmarks.long_runs
    python -m benchmarks.long_runs --images=100000 --steps=1000 --plot=a.svg

Both are commands as a user gives them, on the digits and the network of
`flags/smoke.flags`, watched from outside: what the process holds in memory
beside how far it is.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks import measuring

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
IMAGES_PER_FILE = 10_000
# The first tenth of a run fills buffers and caches.
WARM = 0.1


def main():
    """A line for each of both, and a line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--plot", help="Path of an SVG file.")
    arguments = parser.parse_args()
    measured = {}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        write_records(folder / "images", arguments.images)
        flags = [
            f"--flagfile={REPOSITORY / 'flags' / 'smoke.flags'}",
            f"--unlabeled_tfrecords={folder / 'images'}/*",
            f"--workdir={folder / 'run'}",
            f"--train_steps={arguments.steps}",
            "--eval_batch_size=500",
            "--checkpoint_minutes=1",
            "--force",
        ]
        metrics = folder / "run" / "iteration_0" / "metrics.jsonl"
        measured[f"{arguments.steps} steps"] = watch(
            [*flags, "--mode=teach"],
            lambda: metrics.exists() and metrics.stat().st_size,
        )
        labels = folder / "run" / "iteration_1" / "labels"
        measured[f"{arguments.images} images"] = watch(
            [*flags, "--mode=label"], lambda: any(labels.glob("probs-*"))
        )
    for name, points in measured.items():
        print(f"{name:<16}{summary(points)}")
    print(json.dumps(measured))
    if arguments.plot:
        plot(measured, arguments.plot)


def write_records(folder, count):
    """Digits again and again, as PNG in TFRecord files."""
    import tensorflow as tf

    from noisy_student.data import sources

    digits = sources.digits("unlabeled")
    records = []
    for image, _ in digits.open_shard(0).as_numpy_iterator():
        feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[image]))
        features = tf.train.Features(feature={"image/encoded": feature})
        example = tf.train.Example(features=features)
        records.append(example.SerializeToString())
    folder.mkdir()
    for first in range(0, count, IMAGES_PER_FILE):
        name = f"{first // IMAGES_PER_FILE:05d}"
        with tf.io.TFRecordWriter(str(folder / name)) as writer:
            for number in range(first, min(count, first + IMAGES_PER_FILE)):
                writer.write(records[number % len(records)])


def watch(flags, has_begun):
    """Run `main.py`, and look at its memory twice a second until it ends.

    Args:
        flags: List of strings.
        has_begun: Function that says whether there is a first result.

    Returns:
        List of (seconds, megabytes), from the first result on.
    """
    command = [sys.executable, str(REPOSITORY / "main.py"), *flags]
    points = []
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        started = time.monotonic()
        while process.poll() is None:
            if points or has_begun():
                try:
                    held = measuring.resident("VmRSS", process.pid) / 2**20
                except RuntimeError:
                    break  # it has just ended
                seconds = time.monotonic() - started
                points.append((round(seconds, 1), round(held, 1)))
            time.sleep(0.5)
    if process.wait():
        raise RuntimeError(f"{command} ended with {process.returncode}")
    return points[:: max(1, len(points) // 200)]


def summary(points):
    """How memory changes from the first tenth to the end."""
    warm = [held for _, held in points[int(WARM * len(points)) :]]
    third = len(warm) // 3
    before, after = (
        sum(part) / third for part in (warm[:third], warm[-third:])
    )
    return (
        f"{warm[0]:.0f} MB after a tenth of {points[-1][0]:.0f} s, "
        f"{max(warm):.0f} MB at most; mean of the last third less that of the "
        f"first: {after - before:+.1f} MB"
    )


def plot(measured, path):
    """Memory over what is done."""
    pyplot = measuring.pyplot_for_svg()
    figure, both = pyplot.subplots(1, len(measured), figsize=(9, 3))
    for axes, (name, points) in zip(both, measured.items(), strict=True):
        axes.plot(*zip(*points, strict=True))
        axes.set(title=name, xlabel="seconds", ylabel="MB")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
