# SPDX-License-Identifier: Apache-2.0
"""The folder of a run: where each thing stands, and what is already there.

run.flags          the settings in force
data.json          names of the classes; which images, and how many
data_index.json    record files: how many records each holds
skipped.csv        images that are left out, and why; skipped_*.json, the same
                   for the next command; evaluation_digests.npz, hashes of
                   the evaluation images
results.json       a record for each phase that ended
times.json         seconds of the commands that ended them
.lock              of the process that works here
report.html        all of it, to look at
iteration_0/       the teacher: checkpoints, model.keras; finetuned.keras;
                   metrics.jsonl, its curves, and tensorboard/ with the same;
                   predictions-*.npz, its answers to the evaluation images
iteration_1/       labels/ that the teacher gave, then the first student
"""

import contextlib
import hashlib
import json
import pathlib
import shutil
import zipfile

import keras

from noisy_student.contradictions import made_anything
from noisy_student.errors import UserError
from noisy_student.files import LOCK
from noisy_student.files import is_damage
from noisy_student.files import owned
from noisy_student.files import read_json
from noisy_student.files import replacing
from noisy_student.files import write_json
from noisy_student.files import write_text


class Workdir:
    """Paths and records of a run.

    Args:
        path: The folder; it need not exist yet.
    """

    def __init__(self, path):
        self.path = pathlib.Path(path)

    def __str__(self):
        return str(self.path)

    @contextlib.contextmanager
    def owned(self):
        """Keep other processes out; a folder that stays empty goes again."""
        self.path.mkdir(parents=True, exist_ok=True)
        with owned(self.path):
            try:
                yield
            finally:
                # Only by its owner: whoever is refused leaves it as it is.
                if [path.name for path in self.path.glob("*")] == [LOCK]:
                    # Windows deletes no file that is open: it stays there.
                    with contextlib.suppress(PermissionError):
                        (self.path / LOCK).unlink()
                        self.path.rmdir()

    def iteration(self, number):
        return self.path / f"iteration_{number}"

    def labels(self, number):
        return self.iteration(number) / "labels"

    def trained_model(self, number):
        """Where training leaves the model of an iteration."""
        return self.iteration(number) / "model.keras"

    def finetuned_model(self, number):
        """Where finetuning leaves it."""
        return self.iteration(number) / "finetuned.keras"

    def finetuning(self, number):
        """Where finetuning keeps its checkpoints and curves."""
        return self.iteration(number) / "finetune"

    def model(self, number):
        """What evaluates and labels: the finetuned model, if there is one."""
        finetuned = self.finetuned_model(number)
        return finetuned if finetuned.exists() else self.trained_model(number)

    def model_folder(self, number):
        """Where the answers of that model are kept."""
        finetuned = self.finetuned_model(number).exists()
        return self.finetuning(number) if finetuned else self.iteration(number)

    def has_model(self, number):
        return self.model(number).exists()

    def image_size(self, number):
        """Pixels at which the model of an iteration sees images."""
        path = self.model(number)
        with _reading(path), zipfile.ZipFile(path) as file:
            network = json.loads(file.read("config.json"))["config"]
            return network["layers"][0]["config"]["batch_shape"][1]

    def load_model(self, number):
        """The saved model of an iteration, a `keras.Model`, not compiled."""
        path = self.model(number)
        with _reading(path):
            network = keras.saving.load_model(
                path, compile=False, safe_mode=True
            )
        names = self.data().get("classes")
        count = network.output_shape[-1]
        if names and len(names) != count:
            raise UserError(
                f"{path} has {count} classes, but data.json beside it names "
                f"{len(names)}: copy the folder of the run again"
            )
        return network

    def newest_model(self):
        """Number of the last iteration with a model, or None."""
        number = None
        while self.has_model(0 if number is None else number + 1):
            number = 0 if number is None else number + 1
        return number

    def save_model(self, network, path):
        """Save a network.

        Args:
            network: A `keras.Model`, holding the averaged weights.
            path: Of `trained_model` or `finetuned_model`.
        """
        # Keras chooses the format by the ending.
        dated = path.with_name(f".{path.stem}.dated.keras")
        with replacing(path) as temporary:
            try:
                network.save(dated)
                _copy_without_dates(dated, temporary)
            finally:
                dated.unlink(missing_ok=True)

    def model_hash(self, number):
        """sha256 of an iteration's model, to tie labels to it."""
        return _hash(self.model(number))

    def trained_hash(self, number):
        """sha256 of the model before it was finetuned, if it is there."""
        path = self.trained_model(number)
        return _hash(path) if path.exists() else None

    def write_flags(self, text):
        """Record the settings in force."""
        write_text(self.path / "run.flags", text)

    def data(self):
        """The dict of `data.json`; empty if no phase has begun."""
        path = self.path / "data.json"
        if not path.exists():
            return {}
        roles = ("labeled", "unlabeled", "evaluation")
        return read_json(
            path,
            lambda data: (
                all(isinstance(n, str) for n in data["classes"])
                and all(data[role]["name"] for role in roles if data.get(role))
            ),
            "delete it; the next phase makes it again, if the images are there",
        )

    def class_names(self):
        """Names of the classes of what was made here; () before that."""
        if not made_anything(self.path):
            return ()
        return tuple(self.data().get("classes", ()))

    def write_data(self, data):
        """Record what the run learns from, so that models explain themselves.

        Args:
            data: Dict of `classes`, a list of names, and for `labeled`,
                `unlabeled` and `evaluation` what is known of them, or None.

        Raises:
            UserError: If the run has other classes so far.
        """
        before = self.data()
        if before == data:
            return
        made = made_anything(self.path)
        if made and before.get("classes", data["classes"]) != data["classes"]:
            raise UserError(
                f"{self} was made with {_some(before['classes'])} as classes, "
                f"and now they are {_some(data['classes'])}: give the images "
                "that it was made with, or use another --workdir"
            )
        write_json(self.path / "data.json", data)

    def results(self):
        """The records so far, in order."""
        path = self.path / "results.json"
        if not path.exists():
            return []
        return read_json(
            path,
            lambda records: (
                isinstance(records, list) and all(map(_is_record, records))
            ),
            "move it away, and phases that are done are recorded anew",
        )

    def find_result(self, phase, iteration):
        """The last record of a phase in an iteration, or None."""
        for record in reversed(self.results()):
            if (record["phase"], record["iteration"]) == (phase, iteration):
                return record
        return None

    def is_done(self, phase, number):
        """Whether a phase has ended, and what it makes is there."""
        made = {
            "label": self.labels(number) / "selection.json",
            "finetune": self.finetuned_model(number),
        }.get(phase, self.trained_model(number))
        return made.exists() and self.find_result(phase, number) is not None

    def append_result(self, record, seconds):
        """Add a record to `results.json`, and its time to `times.json`.

        The results of a run that was stopped are those of one that was not; how
        long it took is another matter, and so in another file.

        Args:
            record: Dict with `phase`, `iteration` and what came of it.
            seconds: Of the command that ended the phase.
        """
        times = self.times()
        times[_time_key(record)] = round(seconds, 1)
        write_json(self.path / "times.json", times)
        write_json(self.path / "results.json", [*self.results(), record])

    def update_result(self, phase, iteration, **values):
        """Change values in the last record of a phase, if there is one."""
        record = self.find_result(phase, iteration)
        records = self.results()
        if record and record | values != record:
            last = len(records) - 1 - records[::-1].index(record)
            records[last] |= values
            write_json(self.path / "results.json", records)

    def times(self):
        """Seconds of each phase, by its name and iteration."""
        path = self.path / "times.json"
        if not path.exists():
            return {}
        return read_json(
            path,
            lambda times: all(
                isinstance(seconds, int | float) for seconds in times.values()
            ),
            "delete it; nothing depends on it",
        )

    def seconds(self, record):
        """How long the command took that ended the phase of a record."""
        return self.times().get(_time_key(record))


def _hash(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def classes_of(path):
    """Names of the classes of a model that a run made or exported.

    Args:
        path: Of any file of weights.

    Returns:
        Tuple of str; () if nothing beside it names them.
    """
    path = pathlib.Path(path).expanduser().absolute()
    exported = path.with_name("export.json")
    folder = path.parent.parent
    if path.suffix != ".keras":
        return ()
    if path.parent.name.startswith("iteration_"):
        return tuple(Workdir(folder).data().get("classes", ()))
    if exported.exists():
        facts = read_json(exported, lambda f: f["classes"], "export again")
        return tuple(facts["classes"])
    return ()


@contextlib.contextmanager
def _reading(model_path):
    """Name a model that is not what was written."""
    try:
        yield
    except Exception as error:
        if not is_damage(error):
            raise
        raise UserError(
            f"{model_path} {_why_not(model_path, error)}"
        ) from error


def _why_not(model_path, error):
    """Why a model cannot be read, and the way out."""
    with contextlib.suppress(Exception), zipfile.ZipFile(model_path) as file:
        version = json.loads(file.read("metadata.json"))["keras_version"]
        json.loads(file.read("config.json"))
        if file.testzip() is None and "model.weights.h5" in file.namelist():
            if version != keras.__version__:
                return (
                    f"was saved with Keras {version}, which Keras "
                    f"{keras.__version__} cannot read: install that one, or a "
                    "newer"
                )
            reason = " ".join(str(error).split()).partition(". ")[0][:150]
            return (
                f"is whole, but no model of this project ({reason}): put back "
                "the one that was there, or use another --workdir"
            )
    mode = "teach" if model_path.parent.name == "iteration_0" else "distill"
    if model_path.stem == "finetuned":
        mode = "finetune"
    return (
        f"is damaged ({type(error).__name__}): delete it, and --mode={mode} "
        "makes it again from the last checkpoint"
    )


def _is_record(record):
    """Whether a record of `results.json` has what its phase writes."""
    kinds = {
        "phase": str,
        "iteration": int,
        "variant": str,
        "num_examples": int,
    }
    if record["phase"] != "label":
        kinds |= {"top1": float | None, "top5": float | None}
    if record["phase"] in ("teach", "distill", "finetune"):
        kinds |= {"steps": int}
    return all(isinstance(record[key], kind) for key, kind in kinds.items())


def _copy_without_dates(source, target):
    """Copy a `.keras` file, so that the same model is the same bytes."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in sorted(old.namelist()):
            with (
                old.open(name) as content,
                new.open(
                    # Of the date that zip files begin with.
                    zipfile.ZipInfo(name),
                    "w",
                    force_zip64=True,
                ) as copy,
            ):
                if name == "metadata.json":
                    metadata = json.load(content)
                    metadata.pop("date_saved", None)
                    copy.write(json.dumps(metadata).encode())
                else:
                    shutil.copyfileobj(content, copy, 2**20)


def _some(names):
    """The first names of classes, and how many there are."""
    return f"{', '.join(names[:3])}, ... ({len(names)})"


def _time_key(record):
    return f"{record['phase']} {record['iteration']}"
