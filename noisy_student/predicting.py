# SPDX-License-Identifier: Apache-2.0
"""What a network says to the images of a run, and what cannot be asked.

Predictions are for labeling and for accuracy alike: of every image, in order,
however many devices share the work.
"""

import functools
import json

import keras
import numpy as np

from noisy_student import assembly
from noisy_student import batches
from noisy_student.data import preprocessing
from noisy_student.data import sources
from noisy_student.errors import UserError
from noisy_student.evaluation import predictions
from noisy_student.evaluation.accuracy import Accuracy
from noisy_student.files import write_json
from noisy_student.models import import_weights
from noisy_student.models import stochastic_depth
from noisy_student.pseudo_labels import predict
from noisy_student.reporting import console
from noisy_student.training import distribution


def labels_of(run, iteration, source, shards):
    """Let the model of an iteration label shards, as a teacher.

    Args:
        run: The `Run`.
        iteration: Of the model.
        source: The `Source` to label.
        shards: Their numbers.

    Yields:
        Triples (shard, probs, labels) as `predict.predict_shards` gives them.
    """
    if not shards:
        return
    keras.backend.clear_session()
    with run.strategy.scope():
        network = assembly.load_teacher(run, iteration)
    augment = batches.make_teacher_augment(run, iteration)
    yield from _predict(run, network, augment, source, shards)


def accuracy_of(run, iteration):
    """Top-1 and top-5 of the saved model of an iteration.

    Args:
        run: The `Run`.
        iteration: Of the model.

    Returns:
        Dict, as `Accuracy.result` gives it.
    """
    if run.evaluation is None:
        return Accuracy().result()
    keras.backend.clear_session()
    with run.strategy.scope():
        network = keras.saving.load_model(
            run.workdir.model(iteration), compile=False
        )
    return _accuracy(run, network, run.workdir.model_folder(iteration))


def accuracy_of_weights(run, path):
    """Top-1 and top-5 of weights from elsewhere, as `--variant`.

    Args:
        run: The `Run`.
        path: As in `import_weights.load`.

    Returns:
        Dict, as `Accuracy.result` gives it.
    """
    keras.backend.clear_session()
    with run.strategy.scope():
        network = assembly.build_network(run, 0, run.finetuning_size(0))
        loaded = import_weights.load(network, path)
    console.print_loaded(loaded)
    return _accuracy(run, network, run.workdir.path)


def _accuracy(run, network, directory):
    """Count what is right, and keep every answer in a folder."""
    accuracy, answers = Accuracy(), []
    source = run.evaluation
    shards = range(len(source.shard_sizes))
    clean = batches.make_augment(run, network.input_shape[1], noise=())
    for _, probs, labels in _predict(run, network, clean, source, shards):
        accuracy.update(probs, labels)
        answers.append((labels, *predictions.surest(probs)))
    about = {
        "name": source.name,
        "fingerprint": source.fingerprint,
        "classes": list(run.class_names),
        "shard_sizes": list(source.shard_sizes),
    }
    path = predictions.path_of(directory, source.fingerprint)
    predictions.save(path, answers, about)
    return accuracy.result()


def _predict(run, network, augment, source, shards):
    with run.strategy.scope():
        predictor = predict.make_predictor(network)
    num_skipped = 0
    predictions = predict.predict_shards(
        predictor,
        source,
        shards,
        num_classes=run.num_classes,
        image_size=network.input_shape[1],
        augment=augment,
        batch_size=_batch_size(run, source),
        # A noised teacher's draws depend on the shard, not on those before.
        seed_of=lambda shard: run.seed(6, shard),
        reseed=functools.partial(stochastic_depth.reseed_noise, network),
        jit_compile=distribution.uses_xla(run.strategy),
    )
    for count, (shard, probs, labels) in enumerate(predictions, start=1):
        for row in np.flatnonzero(np.isnan(probs).any(axis=1)):
            console.warn_skipped(source.example_name(shard, int(row)))
            num_skipped += 1
        yield shard, probs, labels
        if len(shards) >= 10 and count % (len(shards) // 10) == 0:
            print(f"  {count} of {len(shards)} shards", flush=True)
    console.print_skipped(num_skipped, source.name)


def _batch_size(run, source):
    """Images in a batch: no more than the largest shard can fill."""
    replicas = run.num_replicas
    largest = -(-max(source.shard_sizes) // replicas) * replicas
    return min(run.config.eval_batch_size, largest)


def undecodable(run, role):
    """Which images of a training set cannot be decoded.

    Each is decoded once, less work than one epoch; the answer is kept beside
    the run.

    Args:
        run: The `Run`.
        role: `labeled` or `unlabeled`.

    Returns:
        List of pairs (shard, row).
    """
    source = getattr(run, role)
    path = run.workdir.path / f"skipped_{role}.json"
    if path.exists():
        known = json.loads(path.read_text())
        if known["fingerprint"] == source.fingerprint:
            return [(item["shard"], item["row"]) for item in known["skipped"]]
    found = sources.undecodable(source, preprocessing.decode)
    skipped = [
        {
            "shard": shard,
            "row": row,
            "name": source.example_name(shard, row),
            "reason": reason,
        }
        for (shard, row), reason in sorted(found.items())
    ]
    for item in skipped:
        console.warn_skipped(item["name"], item["reason"])
    console.print_skipped(len(skipped), source.name)
    if len(skipped) == source.num_examples:
        raise UserError(
            f"none of the {len(skipped)} {role} images of {source.name} "
            f"can be decoded; the first is {skipped[0]['name']}"
        )
    write_json(path, {"fingerprint": source.fingerprint, "skipped": skipped})
    return [(item["shard"], item["row"]) for item in skipped]
