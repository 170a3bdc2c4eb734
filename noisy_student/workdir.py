# SPDX-License-Identifier: Apache-2.0
"""The folder of a run: where each thing stands, and what is already there.

run.flags          the settings in force
results.json       a record for each phase that ended
times.json         seconds of the commands that ended them
.lock              of the process that works here
report.html        all of it, to look at
iteration_0/       the teacher: checkpoints, model.keras; finetuned.keras;
                   predictions-*.npz, its answers to the evaluation images
iteration_1/       labels/ that the teacher gave, then the first student
"""

import contextlib
import hashlib
import json
import pathlib
import shutil
import zipfile

from noisy_student.files import LOCK
from noisy_student.files import owned
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
        try:
            with owned(self.path):
                yield
        finally:
            if [path.name for path in self.path.iterdir()] == [LOCK]:
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
        with zipfile.ZipFile(self.model(number)) as file:
            network = json.loads(file.read("config.json"))["config"]
        return network["layers"][0]["config"]["batch_shape"][1]

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
        with open(self.model(number), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def write_flags(self, text):
        """Record the settings in force."""
        write_text(self.path / "run.flags", text)

    def results(self):
        """The records so far, in order."""
        path = self.path / "results.json"
        return json.loads(path.read_text()) if path.exists() else []

    def find_result(self, phase, iteration):
        """The last record of a phase in an iteration, or None."""
        for record in reversed(self.results()):
            if (record["phase"], record["iteration"]) == (phase, iteration):
                return record
        return None

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

    def times(self):
        """Seconds of each phase, by its name and iteration."""
        path = self.path / "times.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def seconds(self, record):
        """How long the command took that ended the phase of a record."""
        return self.times().get(_time_key(record))


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


def _time_key(record):
    return f"{record['phase']} {record['iteration']}"
