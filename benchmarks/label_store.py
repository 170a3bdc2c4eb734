# SPDX-License-Identifier: Apache-2.0
"""What it costs to keep labels: bytes, and microseconds an image.

    python -m benchmarks.label_store
    python -m benchmarks.label_store --labeling

For labels of all classes, and of the k surest: to write them (with the file
of top classes beside them, and until the disk has both), to read what a
selection reads, from that file and from the probabilities, and to read them as
a student does, one row at a time through tf.data. Files are taken out of the
page cache before they are read.

`--labeling` labels more and more images with a small network, in a process
each, and prints the peak of their memory, and what a shard of few images costs
that are hardly any work.

Needs Linux. What is written goes to --directory and is deleted.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from benchmarks import measuring
from noisy_student.pseudo_labels.store import LabelStore

SHARD = 20_000  # images
NUM_SHARDS = 5
STUDENT_ROWS = 20_000


def main():
    """A line for each kind of labels, then all as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--num_classes", type=int, default=1000)
    parser.add_argument(
        "--top_k", default="1,5,10", help="A list of k, or none."
    )
    parser.add_argument("--directory", help="On the disk that is meant.")
    parser.add_argument("--labeling", action="store_true")
    parser.add_argument("--label", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.label:
        print(json.dumps(label(*arguments.label, arguments.num_classes)))
    elif arguments.labeling:
        labeling(arguments.num_classes)
    else:
        kinds = [None, *map(int, filter(None, arguments.top_k.split(",")))]
        storing(arguments.num_classes, kinds, arguments.directory)


def storing(num_classes, kinds, directory):
    """Measure every kind of labels."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(SHARD, num_classes)).astype(np.float32)
    # Peaked like the predictions of a trained network.
    logits[np.arange(SHARD), rng.integers(0, num_classes, SHARD)] += 8
    probs = np.exp(logits)
    probs /= probs.sum(axis=1, keepdims=True)
    print(f"{num_classes} classes; microseconds an image")
    print(
        f"{'k':<5}{'bytes':>7}{'write':>8}{'top':>8}{'probs':>8}{'student':>9}"
    )
    records = []
    for top_k in kinds:
        folder = tempfile.mkdtemp(dir=directory)
        try:
            records.append(measure(probs, top_k, folder))
        finally:
            shutil.rmtree(folder)
        costs = records[-1]
        print(
            f"{top_k or 'all':<5}{costs['bytes']:>7.0f}{costs['write']:>8.2f}"
            f"{costs['read_top']:>8.3f}{costs['read_probs']:>8.2f}"
            f"{costs['student']:>9.1f}",
            flush=True,
        )
    print(json.dumps(records))


def measure(probs, top_k, folder):
    """Bytes and microseconds an image, of one kind of labels."""
    labels = LabelStore(folder, (SHARD,) * NUM_SHARDS, probs.shape[1], top_k)
    count = SHARD * NUM_SHARDS
    costs = {"k": top_k}

    def took(name, function, rows=count):
        evict(folder)
        started = time.perf_counter()
        function()
        seconds = time.perf_counter() - started
        costs[name] = round(1e6 * seconds / rows, 4)

    def write():
        for shard in range(NUM_SHARDS):
            labels.write_probs(shard, probs)

    took("write", write)
    labels.write_copies(np.ones(count, np.uint32), {})
    size = sum(f.stat().st_size for f in pathlib.Path(folder).glob("*.npy"))
    costs["bytes"] = round(size / count, 2)
    took("read_top", labels.confidences)
    took("student", student(labels), STUDENT_ROWS)
    for shard in range(NUM_SHARDS):
        labels.top_path(shard).unlink()
    took("read_probs", labels.confidences)
    return costs


def student(labels):
    """Function that reads labels as the student's input pipeline does."""
    import tensorflow as tf

    from noisy_student.data import sources
    from noisy_student.pseudo_labels.dataset import pseudo_labeled_examples

    source = sources.Source(
        name="made up",
        shard_sizes=labels.shard_sizes,
        class_names=(),
        fingerprint="",
        open_shard=lambda shard: tf.data.Dataset.zip(
            (
                tf.data.Dataset.from_tensors("").repeat(),
                tf.data.Dataset.from_tensors(
                    tf.constant(-1, tf.int64)
                ).repeat(),
            )
        ),
        load=tf.identity,
        example_name=str,
    )
    examples = pseudo_labeled_examples(source, labels)
    targets = examples.open_shard(tf.constant(0, tf.int64)).map(
        lambda _, raw: examples.target(raw)
    )
    batches = targets.take(STUDENT_ROWS).batch(256)
    list(batches.take(1))  # built before it is timed
    return lambda: [None for _ in batches]


def evict(folder):
    """Ask the kernel to forget what it holds of the files."""
    for path in pathlib.Path(folder).iterdir():
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def labeling(num_classes):
    """Print the peak memory of labeling ever more images."""
    for num_shards, size in ((2, 512), (20, 512), (100, 512), (50, 8)):
        command = [sys.executable, "-m", "benchmarks.label_store"]
        command += [f"--num_classes={num_classes}"]
        command += ["--label", str(num_shards), str(size)]
        done = subprocess.run(
            command, check=True, capture_output=True, text=True
        )
        print(done.stdout.strip().splitlines()[-1], flush=True)


def label(num_shards, size, num_classes):
    """Label shards of small images in this process.

    Args:
        num_shards: How many.
        size: Images in each.
        num_classes: C.

    Returns:
        Dict of `shards`, `images`, `peak` and, after the first shard,
        `beyond` it, in bytes, and `cpu_seconds_a_shard`.
    """
    import keras
    import tensorflow as tf

    from noisy_student.data import augmentation
    from noisy_student.data import sources
    from noisy_student.pseudo_labels import predict

    pixels = keras.Input((32, 32, 3))
    mean = keras.layers.GlobalAveragePooling2D()(pixels)
    network = keras.Model(pixels, keras.layers.Dense(num_classes)(mean))
    predictor = predict.make_predictor(network)
    image = tf.io.encode_png(np.zeros((32, 32, 3), np.uint8)).numpy()
    sources.IMAGES_PER_SHARD = size
    count = num_shards * size
    source = sources.source_in_memory(
        name="made up",
        class_names=(),
        fingerprint="",
        references=[image] * count,
        labels=[sources.NO_LABEL] * count,
        load=tf.identity,
        row_name=str,
    )
    augment = augmentation.make_augment(
        image_size=32, crop="padded", random_crop=False, randaugment_num_ops=0
    )
    with tempfile.TemporaryDirectory() as folder:
        labels = LabelStore(folder, source.shard_sizes, num_classes)
        for shard, probs, _ in predict.predict_shards(
            predictor,
            source,
            range(num_shards),
            num_classes=num_classes,
            image_size=32,
            augment=augment,
            batch_size=256,
        ):
            labels.write_probs(shard, probs)
            if shard == 0:
                first, started = (
                    measuring.resident("VmHWM"),
                    time.process_time(),
                )
    seconds = time.process_time() - started
    peak = measuring.resident("VmHWM")
    return {
        "shards": num_shards,
        "images": count,
        "peak": peak,
        "beyond": peak - first,
        "cpu_seconds_a_shard": round(seconds / (num_shards - 1), 3),
    }


if __name__ == "__main__":
    main()
