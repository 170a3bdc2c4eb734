# SPDX-License-Identifier: Apache-2.0
"""How a model came about, as plain values: data, recipe, teachers, accuracy.

Everything is read from the workdir; what is not there any more is None.
"""

import dataclasses
import math
import pathlib

from noisy_student.evaluation.accuracy import interval
from noisy_student.files import read_json
from noisy_student.knobs import spell
from noisy_student.prerequisites import FINETUNED_OF

# Of images on the machine of the training, which `data` describes.
PLACES = ("_dir", "_tfrecords", "workdir", "init_from", "selection_from")


def facts(run, iteration, network):
    """What a model card says of a model.

    Args:
        run: The `Run`.
        iteration: Of the model; None for weights of others.
        network: The `keras.Model`.

    Returns:
        Dict that JSON can hold.
    """
    config = run.config
    return {
        "model": {
            "iteration": iteration,
            "variant": config.variant_of(iteration or 0),
            "image_size": network.input_shape[1],
            "crop": config.crop,
            # Those that are trained, as papers count them.
            "parameters": sum(
                math.prod(weight.shape) for weight in network.trainable_weights
            ),
            "trained_in": config.dtype,
            "init_from": config.init_from and _base_name(config.init_from),
        },
        "classes": list(run.class_names),
        "data": _data(run.workdir, iteration),
        **_training(run, iteration),
    }


def _training(run, iteration):
    """The recipe, and every model from the first teacher on."""
    if iteration is None:
        return {"recipe": {}, "finetuning": None, "chain": []}
    finetuning = None
    if run.workdir.finetuned_model(iteration).exists():
        path = run.workdir.finetuning(iteration) / "settings.json"
        finetuning = _read(path) or {}
        finetuning.pop(FINETUNED_OF, None)
    return {
        "recipe": _recipe(run.config),
        "finetuning": finetuning,
        "chain": [_link(run, number) for number in range(iteration + 1)],
    }


def _recipe(config):
    """Settings that differ from the paper's and decide what is learned."""
    return {
        field.name: spell(field, getattr(config, field.name))
        for field in dataclasses.fields(config)
        if not field.metadata["free"]
        and not field.name.endswith(PLACES)
        and getattr(config, field.name) != field.default
    }


def _data(workdir, iteration):
    """`data.json` without the classes, and how many images are broken."""
    data = workdir.data()
    manifest = _read(workdir.labels(iteration or 0) / "manifest.json")
    if manifest:  # more images may have come since a student learned
        source = manifest["source"]
        data["unlabeled"] = {
            "name": source["name"],
            "num_images": sum(source["shard_sizes"]),
            "fingerprint": source["fingerprint"],
        }
    described = {}
    for role in ("labeled", "unlabeled", "evaluation"):
        known = data.get(role)
        described[role] = known and {
            **known,
            # A card travels, and says nothing of somebody's disk.
            "name": _base_name(known["name"]),
            "num_undecodable": _num_undecodable(workdir, role),
        }
    return described


def _num_undecodable(workdir, role):
    """Broken images of a role; None if nobody counted them."""
    skipped = _read(workdir.path / f"skipped_{role}.json")
    if skipped:
        return len(skipped["skipped"])
    if role == "unlabeled":
        selection = _read(workdir.labels(1) / "selection.json")
        return selection and selection["num_undecodable"]
    return None


def _link(run, number):
    """One model of the chain of teachers."""
    workdir = run.workdir
    is_finetuned = workdir.finetuned_model(number).exists()
    labels = workdir.labels(number)
    manifest, selection = (
        _read(labels / name) for name in ("manifest.json", "selection.json")
    )
    return {
        "iteration": number,
        "variant": run.config.variant_of(number),
        "finetuned": is_finetuned,
        "sha256": workdir.model_hash(number)
        if workdir.has_model(number)
        else None,
        "teacher_sha256": manifest and manifest["teacher"]["sha256"],
        "selection": selection
        and {
            name: selection[name]
            for name in (
                "num_images",
                "num_undecodable",
                "num_kept",
                "num_selected",
                "confidence_threshold",
                "images_per_class",
            )
        },
        "accuracy": _accuracy(workdir, number, is_finetuned),
    }


def _accuracy(workdir, number, is_finetuned):
    phase = "distill" if number else "teach"
    record = workdir.find_result("finetune" if is_finetuned else phase, number)
    if not record or record["top1"] is None:
        return None
    count = record["num_examples"]
    low, high = interval(round(record["top1"] * count), count)
    return {
        "image_size": record["image_size"],
        "steps": record["steps"],
        "top1": record["top1"],
        "top1_low": low,
        "top1_high": high,
        "top5": record["top5"],
        "num_images": record["num_examples"],
    }


def _base_name(name):
    """The last part of an absolute path; other names as they are."""
    return pathlib.Path(name).name if pathlib.Path(name).is_absolute() else name


def _read(path):
    if not path.exists():
        return None
    return read_json(path, lambda value: isinstance(value, dict), "delete it")
