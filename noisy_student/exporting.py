# SPDX-License-Identifier: Apache-2.0
"""Export a finished model: files that others can load, checked, and a card."""

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
import shutil
import tempfile

import numpy as np

import noisy_student
from noisy_student import batches
from noisy_student import finished
from noisy_student import history
from noisy_student.data.sources import printable
from noisy_student.errors import UserError
from noisy_student.files import replacing_folder
from noisy_student.files import write_json
from noisy_student.files import write_text
from noisy_student.outputs import checking
from noisy_student.outputs import model_card
from noisy_student.outputs.formats import FORMATS
from noisy_student.outputs.stock import computes_in_float32
from noisy_student.outputs.stock import stock_network

CARD = "MODEL_CARD.md"
RECORD = "export.json"
# What an exported folder may hold; another is not replaced.
OURS = {CARD, RECORD, *(spec.file for spec in FORMATS.values())}


def export(config):
    """Write a model in all formats, load each again, and describe it.

    Args:
        config: A `Config`.

    Raises:
        UserError: If there is no model, a tool is missing that was asked for,
            or a format does not say what the model says: that one is left out.
    """
    # Files need no accelerator, whose answers differ in more digits.
    config = dataclasses.replace(config, distribution="cpu")
    run, iteration = finished.open_finished(config)
    names = _formats(config)
    folder = _folder(config, run, iteration)
    network, run = finished.load_finished(run, iteration)
    print(f"Export: {finished.title(run, iteration, network)} to {folder}")
    # A folder that somebody chose may hold the model of another run.
    replaces = config.output is None or config.force
    failures = _write(run, iteration, network, names, folder, replaces)
    if failures:
        raise UserError(
            "; ".join(f"no new {name}: {why}" for name, why in failures.items())
            + f"; what can be relied on is in {folder}"
        )


def _write(run, iteration, network, names, folder, replaces):
    """Fill the folder; returns dict of format -> why it was not written.

    Formats of the same model that stand there already, and are not written
    anew, stay. Those of another model would pass for this one's.
    """
    view = batches.make_augment(run, network.input_shape[1], noise=())
    facts = history.facts(run, iteration, network)
    facts["model"]["sha256"] = _digest(network, run)
    versions = _versions()
    records, failures = {}, {}
    with (
        replacing_folder(folder) as temporary,
        tempfile.TemporaryDirectory(dir=temporary) as scratch,
    ):
        standing = _standing(folder, facts["model"]["sha256"])
        others = _names_in(folder) - {CARD, RECORD}
        others -= {record["file"] for record in standing.values()}
        stale = f"{', '.join(sorted(others))}, not known to be of this model"
        if others and not replaces:
            raise UserError(
                f"{folder} holds {stale}: give another --output, or --force to "
                "replace it"
            )
        probe = f"{scratch}/probe.npz"
        images = checking.probe_images(network.input_shape[1])
        pixels = checking.write_probe(probe, images, view)
        network, logits, as_trained = _portable(network, pixels)
        for name in names:
            path = temporary / FORMATS[name].file
            try:
                FORMATS[name].write(network, path, view, run.class_names)
                worst = checking.reloaded_deviation(name, path, probe, logits)
            # Converters raise whatever they like.
            except Exception as error:
                failures[name] = _one_line(error)
                _remove(path)
                continue
            print(
                f"  {path.name}: loaded in a new process, logits differ by "
                f"{worst:.1g} of the largest"
            )
            records[name] = {
                "file": path.name,
                "deviation": worst,
                "versions": versions,
            }
        if not records:
            raise UserError(
                "nothing could be exported: "
                + "; ".join(f"no {n}: {why}" for n, why in failures.items())
            )
        for name in standing.keys() - records.keys():
            records[name] = standing[name]
            _copy(folder / records[name]["file"], temporary)
        if others:
            print(f"  removed: {stale}")
        facts |= {
            "formats": {n: records[n] for n in FORMATS if n in records},
            "as_trained": as_trained,
            "tolerance": checking.TOLERANCE,
            "versions": versions,
        }
        write_json(temporary / RECORD, facts)
        write_text(temporary / CARD, model_card.render(facts))
    return failures


def _portable(network, pixels):
    """The network to export, in float32, and its logits.

    Returns:
        Triple of a `keras.Model`; its logits of the pixels, float32 `(N, C)`;
        and how far they are from those of the network as it was trained, of
        the largest.
    """
    trained = np.asarray(network(pixels, training=False))
    portable = stock_network(network)
    logits = np.asarray(portable(pixels, training=False))
    checking.check(checking.deviation(logits, trained))
    if not computes_in_float32(portable):
        portable = stock_network(network, "float32")
        logits = np.asarray(portable(pixels, training=False))
    return portable, logits, checking.deviation(logits, trained)


def _digest(network, run):
    """SHA-256 of all that decides what the files of a model answer."""
    digest = hashlib.sha256()
    seen = [network.input_shape[1:], run.config.crop, list(run.class_names)]
    digest.update(json.dumps(seen).encode())
    for weight in network.weights:
        digest.update(np.ascontiguousarray(weight))
    return digest.hexdigest()


def _standing(folder, sha256):
    """Records of the formats that stand in a folder and are of a model."""
    try:
        facts = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if facts["model"]["sha256"] != sha256:
            return {}
        return {
            name: record
            for name, record in facts["formats"].items()
            if record["file"] == FORMATS[name].file
            and {"deviation", "versions"} <= record.keys()
            and (folder / record["file"]).exists()
        }
    # No record, a damaged one, or one of an earlier version.
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def _names_in(folder):
    return (
        {path.name for path in folder.iterdir()} if folder.exists() else set()
    )


def _copy(path, folder):
    if path.is_dir():
        shutil.copytree(path, folder / path.name)
    else:
        shutil.copy2(path, folder)


def _formats(config):
    """Names of the formats to write, those whose tools are here."""
    asked = config.formats()
    names = []
    for name in asked or FORMATS:
        missing = FORMATS[name].missing_tools()
        if not missing:
            names.append(name)
            continue
        sentence = (
            f"{FORMATS[name].title} needs {' and '.join(missing)}: "
            f"pip install {' '.join(missing)}"
        )
        if asked:
            raise UserError(sentence)
        print(f"  left out: {sentence}")
    return names


def _folder(config, run, iteration):
    """Where the export shall stand."""
    default = run.workdir.iteration(iteration or 0) / "export"
    # Whose model stands there shows when this one is loaded.
    may_exist = dataclasses.replace(config, force=True)
    folder = finished.check_output(may_exist, default)
    if folder.exists():
        if not folder.is_dir():
            raise UserError(f"{folder} is a file: give a folder")
        others = _names_in(folder) - OURS
        if others:
            raise UserError(
                f"{folder} holds {printable(sorted(others)[0])}, which is no "
                "part of an export, and would be lost: give another --output"
            )
    return folder


def _versions():
    packages = ("keras", "tensorflow", "tensorflow-cpu", "numpy", "tf2onnx")
    versions = {
        "noisy_student": noisy_student.__version__,
        "python": platform.python_version(),
    }
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _remove(path):
    """Take away what a format left that cannot be relied on."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _one_line(error):
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0]
