# SPDX-License-Identifier: Apache-2.0
"""The folder of a run: where each thing stands, and what is already there.

run.flags          the settings in force
results.json       a record for each phase that ended
iteration_0/       the teacher: checkpoints, model.keras; finetuned.keras
iteration_1/       labels/ that the teacher gave, then the first student
"""

import hashlib
import json
import os
import pathlib
import zipfile

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
        path.parent.mkdir(parents=True, exist_ok=True)
        # Keras chooses the format by the ending.
        temporary = path.with_name(".saving.keras")
        network.save(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)

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

    def append_result(self, record):
        """Add a record to `results.json`."""
        write_json(self.path / "results.json", [*self.results(), record])
