# SPDX-License-Identifier: Apache-2.0
"""Flip bits of real files and read them: a clean answer or a clean refusal.

    python tests/fuzzing.py images --count=10000
    python tests/fuzzing.py files --count=2000 --seed=1

`images` reads mutated images as evaluation and training do; `--folder` adds
photographs of one's own. `files` does so with everything that a run reads back:
checkpoints, models, labels, manifests, records, flagfiles. The k-th input is a
function of the seed and k, and the last k is printed as it goes, so that a
crash can be repeated with `--first=k --count=1`.
"""

import argparse
import contextlib
import os
import pathlib
import random
import resource
import sys
import tempfile
import time
import traceback

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import hostile_images
import keras
import numpy as np
import tensorflow as tf

from noisy_student import command_line
from noisy_student.data import decoding
from noisy_student.data import preprocessing
from noisy_student.data import tfrecord_source
from noisy_student.data import undecodable
from noisy_student.errors import UserError
from noisy_student.files import write_json
from noisy_student.models import import_weights
from noisy_student.pseudo_labels.dataset import pseudo_labeled_examples
from noisy_student.pseudo_labels.store import LabelStore
from noisy_student.training.checkpointing import Checkpoints
from noisy_student.workdir import Workdir


def main():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=("images", "files"))
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="Of photographs to begin with.")
    arguments = parser.parse_args()
    started, slowest, answers = time.monotonic(), (0.0, 0), {}
    with tempfile.TemporaryDirectory() as folder:
        if arguments.what == "images":
            read, originals = images(arguments.folder)
        else:
            read, originals = files(pathlib.Path(folder))
        for number in range(arguments.first, arguments.first + arguments.count):
            if number % 100 == 0:
                print(number, file=sys.stderr, flush=True)
            rng = random.Random(f"{arguments.seed} {number}")
            name = rng.choice(sorted(originals))
            others = sorted(originals.values())
            content = mutate(originals[name], rng, others)
            before = time.process_time()
            try:
                answer = read(name, content)
            except Exception:
                print(f"--first={number} --count=1: {name}", file=sys.stderr)
                traceback.print_exc()
                answer = "FAILED"
            slowest = max(slowest, (time.process_time() - before, number))
            answers[answer] = answers.get(answer, 0) + 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{arguments.count} inputs made of {len(originals)} files: "
        f"{', '.join(f'{n} {answer}' for answer, n in sorted(answers.items()))}"
        f"; slowest {slowest[0]:.1f} CPU s (number {slowest[1]}), "
        f"peak {peak:.1f} GB, "
        f"{time.monotonic() - started:.0f} s"
    )
    sys.exit("FAILED" in answers)


def mutate(content, rng, others):
    """Bytes that a disk, a network or an attacker made of a file's."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        place = rng.randrange(len(content) + 1)
        # Headers decide what a reader does, and are a small part of a file.
        if rng.random() < 0.5:
            place = min(place, rng.randrange(64))
        length = rng.choice((1, 1, 2, 4, 64, 1024))
        kind = rng.randrange(7)
        if kind <= 2 and content:  # as often as the others together
            content[min(place, len(content) - 1)] ^= 1 << rng.randrange(8)
        elif kind == 3:
            value = rng.choice((b"\0", b"\xff", b"\x7f", b"\x80"))
            content[place : place + length] = value * length
        elif kind == 4:
            del content[place : place + length]
        elif kind == 5:
            content[place:place] = rng.randbytes(length)
        else:
            other = rng.choice(others)
            start = rng.randrange(len(other) + 1)
            content[place : place + length] = other[start : start + length]
    if rng.random() < 0.1:
        del content[rng.randrange(len(content) + 1) :]
    return bytes(content)


def images(folder):
    """How images are read, and those to begin with."""
    originals = {
        kind: content
        for kind, (content, _, size) in hostile_images.kinds().items()
        if size and len(content) < 20_000
    }
    if folder:
        paths = (p for p in pathlib.Path(folder).rglob("*") if p.is_file())
        originals |= {str(path): path.read_bytes() for path in paths}

    @tf.function(input_signature=[tf.TensorSpec([], tf.string)])
    def evaluate(content):
        return preprocessing.center_crop(content, 32)

    @tf.function(input_signature=[tf.TensorSpec([], tf.string)])
    def train(content):
        return preprocessing.random_resized_crop(content, 32, seed=[1, 2])

    def read(name, content):
        answer = "read"
        for reader in (evaluate, train):
            try:
                image = reader(content)
            except (tf.errors.OpError, UnicodeDecodeError):
                answer = "refused"
            else:
                assert image.shape == (32, 32, 3), image.shape
        return answer

    return read, originals


def files(folder):
    """How everything else is read, and what to begin with.

    Each of the readers gets a folder with all files, one of them mutated.
    """
    readers = _checkpoint(folder) | _labels(folder) | _workdir(folder)
    readers |= _records(folder) | _weights(folder) | _flags(folder)
    originals = {name: (folder / name).read_bytes() for name in readers}

    def read(name, content):
        path = folder / name
        path.write_bytes(content)
        try:
            readers[name](path)
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 600, error
            return "refused"
        else:
            return "read"
        finally:
            path.write_bytes(originals[name])

    return read, originals


def _network():
    return keras.Sequential(
        [
            keras.Input([4, 4, 3]),
            keras.layers.Conv2D(2, 3, name="stem_conv"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3, name="predictions"),
        ]
    )


def _checkpoint(folder):
    keras.utils.set_random_seed(0)
    model = _network()
    model.compile(keras.optimizers.SGD(momentum=0.9), "mse")
    model.optimizer.build(model.trainable_variables)
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(model, 7)
    variables = [*model.variables, *model.optimizer.variables]
    saved = [np.array(variable) for variable in variables]

    def read(path):
        for variable in variables:
            variable.assign(keras.ops.zeros_like(variable))
        with contextlib.redirect_stdout(None):
            step = checkpoints.restore(model)
        # Never weights that differ in a bit from those that were saved.
        assert step == 7
        for variable, expected in zip(variables, saved, strict=True):
            np.testing.assert_array_equal(variable, expected)

    return {"checkpoints/checkpoint-000000007.npz": read}


def _labels(folder):
    rng = np.random.default_rng(0)
    readers = {}
    for name, top_k in (("labels", None), ("labels_of_k", 2)):
        store = LabelStore(folder / name, [5, 4], 3, top_k)
        manifest = {"source": {"fingerprint": "0" * 64}, "classes": ["a", "b"]}
        store.begin(manifest)
        for shard, size in enumerate(store.shard_sizes):
            store.write_probs(shard, rng.dirichlet([1, 1, 1], size))
        summary = {"num_images": 9, "num_kept": 6, "num_selected": 9}
        summary["kept_per_class"] = [2, 2, 2]
        store.write_copies(np.arange(9) % 3, summary)

        def read(path, store=store, manifest=manifest):
            store.begin(manifest)
            store.confidences()
            if store.num_selected() != store.read_selection()["num_selected"]:
                raise UserError("as finished_labels does")
            source = _source_of(store.shard_sizes)
            examples = pseudo_labeled_examples(source, store)
            for shard in range(2):
                for _, row in examples.open_shard(tf.constant(shard, tf.int64)):
                    assert examples.target(row).shape == (3,)

        for path in (folder / name).iterdir():
            readers[f"{name}/{path.name}"] = read
    return readers


def _source_of(shard_sizes):
    from noisy_student.data import sources

    count = sum(shard_sizes)
    source = sources.source_in_memory(
        name="",
        class_names=(),
        fingerprint="",
        references=["x"] * count,
        labels=[-1] * count,
        load=tf.identity,
        row_name=str,
    )
    sizes = tf.constant(shard_sizes)
    import dataclasses

    return dataclasses.replace(
        source,
        shard_sizes=tuple(shard_sizes),
        open_shard=lambda shard: source.open_shard(0).take(
            tf.cast(sizes[shard], tf.int64)
        ),
    )


def _workdir(folder):
    workdir = Workdir(folder)
    record = {
        "phase": "teach",
        "iteration": 0,
        "variant": "b0",
        "num_examples": 3,
        "steps": 2,
        "top1": 0.5,
        "top5": None,
    }
    workdir.append_result(record, 3.0)
    workdir.append_result(record | {"phase": "label", "iteration": 1}, 3.0)
    workdir.save_model(_network(), workdir.trained_model(0))

    def results(path):
        from noisy_student.reporting import console

        records = workdir.results()
        workdir.find_result("teach", 0)
        seconds = [workdir.seconds(r) for r in records]
        console.results_table(records, seconds, 10)

    def model(path):
        workdir.image_size(0)
        workdir.load_model(0)

    return {
        "results.json": results,
        "times.json": results,
        "iteration_0/model.keras": model,
    }


def _records(folder):
    def example(label):
        image = hostile_images.encode(hostile_images.photo(8, 8), "PNG")
        features = {
            "image/encoded": tf.train.Feature(
                bytes_list=tf.train.BytesList(value=[image])
            ),
            "image/class/label": tf.train.Feature(
                int64_list=tf.train.Int64List(value=[label])
            ),
        }
        return tf.train.Example(features=tf.train.Features(feature=features))

    path = folder / "train.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for label in (0, 1, 1):
            writer.write(example(label).SerializeToString())

    def read(path):
        source = tfrecord_source.tfrecords(str(path), labeled=True)
        undecodable.find(source, decoding.decode)

    return {path.name: read}


def _weights(folder):
    network = _network()
    network.save_weights(folder / "some.weights.h5")
    network.save(folder / "some.keras")

    def read(path):
        import_weights.load(_network(), path, replace_head=True)

    return {"some.weights.h5": read, "some.keras": read}


def _flags(folder):
    recipe = folder / "recipe.flags"
    repository = pathlib.Path(__file__).resolve().parent.parent
    recipe.write_bytes((repository / "flags" / "smoke.flags").read_bytes())
    config = command_line.parse(["main.py", f"--flagfile={recipe}"])
    run = folder / "run"
    run.mkdir()
    flags = run / command_line.RUN_FLAGS
    flags.write_text(command_line.write_run_flags(config, flags))
    write_json(run / "iteration_0" / "nothing.json", {})
    return {
        "recipe.flags": lambda path: command_line.parse(
            ["main.py", f"--flagfile={path}"]
        ),
        f"run/{command_line.RUN_FLAGS}": lambda path: command_line.parse(
            ["main.py", f"--workdir={run}", "--seed=0"]
        ),
    }


if __name__ == "__main__":
    main()
