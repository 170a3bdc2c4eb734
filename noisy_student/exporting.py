# SPDX-License-Identifier: Apache-2.0
"""Exports a finished model: files that load elsewhere, and a model card."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import platform
import re
import shutil

import jinja2
import keras
import numpy as np
import tensorflow as tf

import noisy_student
from noisy_student import batches
from noisy_student import finished
from noisy_student import history
from noisy_student.data.sources import printable
from noisy_student.errors import UserError
from noisy_student.files import replacing_folder
from noisy_student.files import write_json
from noisy_student.files import write_text
from noisy_student.outputs import formats
from noisy_student.outputs.formats import FORMATS

CARD = "MODEL_CARD.md"
RECORD = "export.json"
# What an exported folder may contain; any other folder is not replaced.
OURS = {CARD, RECORD, *(spec.file for spec in FORMATS.values())}
TEMPLATE = pathlib.Path(formats.__file__).with_name("model_card.md")


def export(config):
    """Writes a model in all formats, checks each, and describes it in a card.

    Args:
        config: A `Config`.

    Raises:
        UserError: If there is no model, a format was requested whose tools
            are missing, or an exported file does not return the model's
            logits: that file is not kept.
    """
    # The results of accelerators differ in more digits.
    config = dataclasses.replace(config, distribution="cpu")
    run, iteration = finished.open_finished(config)
    names = _formats(config)
    folder = _folder(config, run, iteration)
    network, run = finished.load_finished(run, iteration)
    print(f"Export: {finished.title(run, iteration, network)} to {folder}")
    # A folder that the user named may hold the model of another run.
    replaces = config.output is None or config.force
    failures = _write(run, iteration, network, names, folder, replaces)
    if failures:
        raise UserError(f"{failures}; the other files in {folder} are intact")


def _write(run, iteration, network, names, folder, replaces):
    """Fills the folder and returns what failed, as text.

    Files of the same model from an earlier export stay. Those of another
    model would be taken for this one's and go.
    """
    view = batches.make_augment(run, network.input_shape[1], noise=())
    facts = history.facts(run, iteration, network)
    sha256 = facts["model"]["sha256"] = _digest(network, run)
    records, failures = {}, []
    with replacing_folder(folder) as temporary:
        standing = _standing(folder, sha256)
        others = _names_in(folder) - {CARD, RECORD}
        others -= {record["file"] for record in standing.values()}
        stale = f"{', '.join(sorted(others))}, not known to be of this model"
        if others and not replaces:
            raise UserError(
                f"{folder} holds {stale}: give another --output, or --force to "
                "replace it"
            )
        with _quiet():
            network, inputs, logits, as_trained = _portable(network, view)
        for name in names:
            spec = FORMATS[name]
            path = temporary / spec.file
            try:
                with _quiet():
                    spec.write(
                        network, path, view=view, class_names=run.class_names
                    )
                    worst = formats.check(spec, path, inputs, logits)
            # Converters raise exceptions of any class.
            except Exception as error:
                why = (str(error).strip() or type(error).__name__).splitlines()
                failures.append(f"{name} could not be exported: {why[0]}")
                _remove(path)
                continue
            print(
                f"  {spec.file}: loaded again, logits differ by {worst:.1g} of "
                "the largest"
            )
            records[name] = {
                "file": spec.file,
                "deviation": worst,
                "versions": _versions(),
            }
        if not records:
            raise UserError("; ".join(failures))
        for name in standing.keys() - records.keys():
            records[name] = standing[name]
            _copy(folder / records[name]["file"], temporary)
        if others:
            print(f"  removed: {stale}")
        facts |= {
            "formats": {n: records[n] for n in FORMATS if n in records},
            "as_trained": as_trained,
            "tolerance": formats.TOLERANCE,
        }
        write_json(temporary / RECORD, facts)
        write_text(temporary / CARD, render_card(facts))
    return "; ".join(failures)


def render_card(facts):
    """Renders the model card.

    Args:
        facts: Dict with the contents of `export.json`.

    Returns:
        Markdown with the metadata of the Hugging Face Hub as YAML.
    """
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["plain"] = plain
    # YAML has no pairs of surrogates, by which JSON escapes emoji.
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    titles = {name: spec.title for name, spec in FORMATS.items()}
    return template.render(facts, titles=titles) + "\n"


def plain(text):
    """Escapes any text as plain text on one line of Markdown."""
    text = " ".join(str(text).split())
    return re.sub(r"([\\`*_\[\]<>|&~#$])", r"\\\1", text)


def _portable(network, view):
    """Prepares the network for the export, in float32.

    Returns:
        The `keras.Model`; the inputs of `formats.check`; the logits, float32
        `(N, C)`; and their deviation from those of the network as trained.
    """
    images = formats.example_images(network.input_shape[1])
    no_seed = tf.zeros([2], tf.int64)  # evaluation draws nothing
    pixels = np.stack(
        [np.asarray(view(image, no_seed), np.float32) for image in images]
    )

    def logits_of(model):
        with tf.device(formats.DEVICE):
            return np.asarray(model(pixels, training=False))

    trained = logits_of(network)
    # In the precision of the training, the copy is the same network.
    formats.compare(logits_of(formats.portable(network)), trained)
    network = formats.portable(network, "float32")
    logits = logits_of(network)
    as_trained = formats.compare(logits, trained, tolerance=np.inf)
    return (
        network,
        {"pixels": pixels, "image_bytes": images},
        logits,
        as_trained,
    )


@contextlib.contextmanager
def _quiet():
    """Discards what converters and runtimes write to stderr, also from C++."""
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stderr(nowhere),
    ):
        own = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(own, 2)
            os.close(own)


def _digest(network, run):
    """SHA-256 of all that determines the output of a model's files."""
    digest = hashlib.sha256()
    view = [network.input_shape[1:], run.config.crop, list(run.class_names)]
    digest.update(json.dumps(view).encode())
    for weight in network.weights:
        digest.update(np.ascontiguousarray(weight))
    return digest.hexdigest()


def _standing(folder, sha256):
    """Records of the files in a folder that are of this model."""
    try:
        facts = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if facts["model"]["sha256"] != sha256:
            return {}
        return {
            name: record
            for name, record in facts["formats"].items()
            if record["file"] == FORMATS[name].file
            and "deviation" in record
            and record["versions"].keys() == _versions().keys()
            and (folder / record["file"]).exists()
        }
    # No record, a damaged one, or one of an earlier version.
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def _names_in(folder):
    return set(os.listdir(folder)) if folder.exists() else set()


def _copy(path, folder):
    if path.is_dir():
        shutil.copytree(path, folder / path.name)
    else:
        shutil.copy2(path, folder)


def _formats(config):
    """Names of the formats to write, without those whose tools are missing."""
    asked = config.formats()
    names = []
    for name in asked or FORMATS:
        missing = FORMATS[name].missing_tools()
        if not missing:
            names.append(name)
            continue
        sentence = (
            f"{FORMATS[name].title} needs {', '.join(missing)}: "
            f"pip install {' '.join(missing)}"
        )
        if asked:
            raise UserError(sentence)
        print(f"  left out: {sentence}")
    return names


def _folder(config, run, iteration):
    """The folder to write, after checking that it may be replaced."""
    default = run.workdir.iteration(iteration or 0) / "export"
    # Whether it holds another model is checked once this one is loaded.
    may_exist = dataclasses.replace(config, force=True)
    folder = finished.check_output(may_exist, default)
    if folder.exists():
        if not folder.is_dir():
            raise UserError(f"{folder} is a file: give a folder")
        others = _names_in(folder) - OURS
        if others:
            raise UserError(
                f"{folder} holds {printable(sorted(others)[0])}, which is not "
                "part of an export and would be lost: give another --output"
            )
    return folder


def _versions():
    return {
        "noisy_student": noisy_student.__version__,
        "python": platform.python_version(),
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
        "numpy": np.__version__,
    }


def _remove(path):
    """Deletes the incomplete or wrong file of a format."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
