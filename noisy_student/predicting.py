# SPDX-License-Identifier: Apache-2.0
"""What a network says to the images of a run.

Predictions are for labeling and for accuracy alike: of every image, in order,
however many devices share the work.
"""

import functools

import keras
import numpy as np

from noisy_student import assembly
from noisy_student import batches
from noisy_student import skipping
from noisy_student.data import decoding
from noisy_student.data import sources
from noisy_student.data import undecodable
from noisy_student.errors import UserError
from noisy_student.evaluation import predictions
from noisy_student.evaluation.accuracy import Accuracy
from noisy_student.models import import_weights
from noisy_student.models import stochastic_depth
from noisy_student.pseudo_labels import predict
from noisy_student.reporting import console
from noisy_student.reporting.progress import Progress
from noisy_student.training import distribution

# Seconds that a labeling or an evaluation may take before it says more.
PATIENCE = 15


def labels_of(run, iteration, source, shards, is_wanted=None):
    """Let the model of an iteration label shards, as a teacher.

    Evaluation images that are among them get no label.

    Args:
        run: The `Run`.
        iteration: Of the model.
        source: The `Source` to label.
        shards: Their numbers.
        is_wanted: Function from a shard's number to bool `(N_i,)`: the images
            to label; None for all. The others are not read.

    Yields:
        Pairs of a shard and float32 `(N_i, C)` probabilities, NaN where an
        image has no label.
    """
    if not shards:
        return
    source = skipping.without_evaluation(run, source)
    if is_wanted:
        source = sources.subset(source, is_wanted)
    keras.backend.clear_session()
    with run.strategy.scope():
        network = assembly.load_teacher(run, iteration)
    augment = batches.make_teacher_augment(run, iteration)
    for shard, probs, _ in _predict(
        run,
        network,
        augment,
        source,
        shards,
        # A noised teacher's draws depend on itself and the shard alone.
        seed_of=lambda shard: run.seed(
            "noise of the teacher", iteration, shard
        ),
    ):
        if is_wanted:
            wanted, answers = is_wanted(shard), probs
            probs = np.full((len(wanted), answers.shape[1]), np.nan, np.float32)
            probs[wanted] = answers
        yield shard, probs


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
        network = run.workdir.load_model(iteration)
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
    accuracy, answers, positions = Accuracy(), [], []
    source = run.evaluation
    shards = range(len(source.shard_sizes))
    clean = batches.make_augment(run, network.input_shape[1], noise=())
    for shard, probs, labels in _predict(run, network, clean, source, shards):
        accuracy.update(probs, labels)
        answers.append((labels, *predictions.surest(probs)))
        rows = np.flatnonzero(np.isnan(probs).any(axis=1))
        positions += [(shard, int(row)) for row in rows]
    skipping.record(run, "evaluation", positions)
    about = {
        "name": source.name,
        "fingerprint": source.fingerprint,
        "classes": list(run.class_names),
        "shard_sizes": list(source.shard_sizes),
    }
    path = predictions.path_of(directory, source.fingerprint)
    predictions.save(path, answers, about)
    _tell_absent(run, predictions.load(path))
    return accuracy.result()


def _tell_absent(run, found):
    """Say which classes the accuracy leaves out, unless it is known already."""
    seen = set(found.label[found.decoded].tolist())
    names = run.class_names
    absent = [name for k, name in enumerate(names) if k not in seen]
    if not seen and run.config.mode != "evaluate":  # which is refused
        print(
            f"  warning: none of the images of {run.evaluation.name} can be "
            "decoded, so no accuracy is measured"
        )
    elif seen and absent and set(absent) != set(run.evaluation.absent):
        print(console.absent_text(absent))


def _predict(run, network, augment, source, shards, **options):
    for shard, probs, labels in answers_of(
        run, network, augment, source, shards, **options
    ):
        _check_there(source, shard, probs)
        yield shard, probs, labels


def answers_of(
    run,
    network,
    augment,
    source,
    shards,
    *,
    softmax=True,
    seed_of=lambda shard: 0,
):
    """What a network says to the images of some shards.

    Args:
        run: The `Run`.
        network: A `keras.Model` from pixels to rows `(N, C)`, made under the
            run's strategy.
        augment: Of `batches.make_augment`.
        source: The `Source`.
        shards: Their numbers.
        softmax: Whether the rows are logits that become probabilities.
        seed_of: Function from a shard's number to the seed of what is random,
            if anything is.

    Yields:
        Triples (shard, rows, labels) as `predict.predict_shards` gives them.
    """
    with run.strategy.scope():
        predictor = predict.make_predictor(network, softmax=softmax)
    total = sum(source.shard_sizes)
    left = sum(source.shard_sizes[shard] for shard in shards)
    progress = Progress(
        total, unit="images", done=total - left, patience=PATIENCE
    )
    progress.begin("preparing the first images ...")
    try:
        yield from predict.predict_shards(
            predictor,
            source,
            shards,
            num_classes=network.output_shape[-1],
            image_size=network.input_shape[1],
            augment=augment,
            batch_size=_batch_size(run, source),
            seed_of=seed_of,
            reseed=functools.partial(stochastic_depth.reseed_noise, network),
            jit_compile=distribution.uses_xla(run.strategy),
            on_images=progress.add,
        )
    finally:
        progress.close()


def _check_there(source, shard, probs):
    """Tell images that have vanished from those that cannot be decoded.

    A drive that was unmounted would leave the rest without labels for good.
    """
    rows = np.flatnonzero(np.isnan(probs).any(axis=1))
    positions = [(shard, int(row)) for row in rows]
    found = undecodable.reasons(source, positions, decoding.decode)
    for position, reason in found.items():
        if reason == undecodable.NO_SUCH_FILE:
            raise UserError(
                f"{source.example_name(*position)} has vanished: bring it "
                "back, and the same command goes on"
            )


def _batch_size(run, source):
    """Images in a batch: no more than the largest shard can fill."""
    replicas = run.num_replicas
    largest = -(-max(source.shard_sizes) // replicas) * replicas
    return min(run.config.eval_batch_size, largest)
