# SPDX-License-Identifier: Apache-2.0
"""Ask a finished model about any images: its surest classes, its features."""

import keras
import numpy as np

from noisy_student import batches
from noisy_student import finished
from noisy_student import predicting
from noisy_student.data import decoding
from noisy_student.data import folder_sources
from noisy_student.data import undecodable
from noisy_student.errors import UserError
from noisy_student.outputs import features
from noisy_student.outputs import predictions
from noisy_student.reporting import console
from noisy_student.reporting.report import words

# The decodable images that a network has no finite answer to.
NO_ANSWER = "the model has no finite answer"


def predict(config):
    """Write a table of the surest classes of the images at `--input`.

    Args:
        config: A `Config`.
    """
    run, iteration = finished.open_finished(config)
    path = finished.check_output(
        config, run.workdir.path / "predictions.csv", predictions.ENDINGS
    )
    predictions.check_tools(path)
    source = _images(config)
    network, run = finished.load_finished(run, iteration)
    images = words.plural(source.num_examples, "image")
    model = finished.title(run, iteration, network)
    print(f"Predict: {images} of {source.name} with {model}")
    parts = _Parts(run, network, source, softmax=True)
    predictions.write_predictions(path, parts, run.class_names)
    parts.print_summary(path)


def embed(config):
    """Write the pooled features of the images at `--input`.

    They are what the last layer classifies: the average of the last feature
    map over its pixels, before dropout, as float32.

    Args:
        config: A `Config`.
    """
    run, iteration = finished.open_finished(config)
    path = finished.check_output(
        config, run.workdir.path / "features.npy", (".npy",)
    )
    listed = features.list_path(path)
    if config.output and listed.exists() and not config.force:
        raise UserError(
            f"{listed} exists: give another --output, or --force to replace it"
        )
    source = _images(config)
    network, run = finished.load_finished(run, iteration)
    images = words.plural(source.num_examples, "image")
    model = finished.title(run, iteration, network)
    print(f"Embed: {images} of {source.name} with {model}")
    with run.strategy.scope():
        pooled = keras.Model(
            network.input, network.get_layer("avg_pool").output
        )
    parts = _Parts(run, pooled, source, softmax=False)
    width = pooled.output_shape[-1]
    features.write_features(
        path, parts, num_images=source.num_examples, width=width
    )
    parts.print_summary(f"{path}, {width} features each, and {listed}")


def _images(config):
    if not config.input:
        raise UserError(
            f"--mode={config.mode} needs images: give --input=PATH, a file, a "
            "folder or a glob in quotes"
        )
    source = folder_sources.images_at(config.input)
    for name, reason in source.left_out[: console.NAMES_SHOWN]:
        console.warn_skipped(name, reason)
    if source.left_out:
        count = words.plural(len(source.left_out), "file")
        print(f"Left out: {count} that cannot be read as images")
    return source


class _Parts:
    """What a network says to the images of a source, shard by shard.

    Iterating gives triples: names of N images, list of str; rows, float32
    `(N, D)`; and the reason for each row that is none, or None.
    """

    def __init__(self, run, network, source, *, softmax):
        self.source = source
        self.num_failed = 0
        image_size = network.input_shape[1]
        clean = batches.make_augment(run, image_size, noise=())
        shards = range(len(source.shard_sizes))
        self._answers = predicting.answers_of(
            run, network, clean, source, shards, softmax=softmax
        )

    def __iter__(self):
        source = self.source
        for shard, rows, _ in self._answers:
            files = [source.example_name(shard, k) for k in range(len(rows))]
            failed = ~np.isfinite(rows).all(axis=1)
            errors = [None] * len(rows)
            if failed.any():
                positions = [(shard, int(k)) for k in np.flatnonzero(failed)]
                reasons = undecodable.reasons(
                    source, positions, decoding.decode
                )
                for position in positions:
                    row = position[1]
                    errors[row] = reasons.get(position, NO_ANSWER)
                    if self.num_failed < console.NAMES_SHOWN:
                        console.warn_skipped(files[row], errors[row])
                    self.num_failed += 1
            yield files, rows, errors

    def print_summary(self, where):
        """Say where the rows are."""
        without = f", {self.num_failed} of them without an answer"
        count = self.source.num_examples
        print(
            f"  {count} row{'' if count == 1 else 's'}"
            f"{without if self.num_failed else ''}: {where}"
        )
