# SPDX-License-Identifier: Apache-2.0
"""What a run says of itself while it works: on the terminal, to TensorBoard.

Nothing here changes what is learned, and nothing that fails here ends a run.
"""

import collections

import numpy as np

from noisy_student.data.sources import printable
from noisy_student.evaluation import predictions
from noisy_student.reporting import console
from noisy_student.reporting import contact_sheet
from noisy_student.reporting import event_files
from noisy_student.reporting import progress
from noisy_student.reporting.report import mistakes
from noisy_student.training import curves

IMAGES_SHOWN = 2 * contact_sheet.COLUMNS  # of each kind
CLASSES_DRAWN = 1000  # in a matrix of a pixel for each pair
NAME_LENGTH = 16  # characters that fit below an image


def event_folder(directory):
    """Where TensorBoard finds what happens in a folder of the workdir."""
    return directory / "tensorboard"


class TrainingWatcher(curves.Watcher):
    """Shows a training on the terminal and in TensorBoard.

    Args:
        run: The `Run`.
        directory: Of the training, where `metrics.jsonl` stands too.
        sizes: (B, U), labeled and pseudo-labeled images of a step.
        steps: Training steps in all.
    """

    def __init__(self, run, directory, sizes, steps):
        self.run = run
        self.directory = event_folder(directory)
        self.sizes = sizes
        self.steps = steps
        self.progress = self.curves = None
        # As many as there are from one line on the terminal to the next.
        self.recent = collections.deque(maxlen=curves.LINES // progress.LINES)

    def begin(self, first_step, rows, batches):
        self.progress = progress.Progress(
            self.steps, done=first_step, images=sum(self.sizes)
        )
        self.progress.begin("preparing the first step ...")
        if not first_step:
            self._log_images(batches)
        self.curves = event_files.Curves(self.directory, rows)

    def row(self, row):
        self.curves.add(row)
        self.recent.append(row)

    def step(self, step, figures):
        self.progress.update(
            step,
            live=lambda: console.figures_text(figures()),
            settled=lambda: console.figures_text(
                _means(self.recent or [figures()])
            ),
        )

    def close(self):
        for shown in (self.progress, self.curves):
            if shown:
                shown.close()

    def _log_images(self, batches):
        """What the network is shown first, once a training."""
        try:
            sheet = contact_sheet.draw_batch(self._shown(next(iter(batches))))
            picture = event_files.image("what the network is shown", sheet)
        except Exception as error:  # a picture is not worth a run
            reason = str(error).partition("\n")[0][:200]
            print(
                f"  warning: the first images could not be drawn "
                f"({type(error).__name__}: {reason})"
            )
            return
        event_files.write(self.directory, "images", 0, [picture])

    def _shown(self, batch):
        """Pairs of a heading and some images, of the labeled and the others."""
        inputs, targets = batch
        pixels = inputs["pixels"] if isinstance(inputs, dict) else inputs
        # On each device the labeled images come first.
        labeled, per_device = (
            size // self.run.num_replicas
            for size in (self.sizes[0], sum(self.sizes))
        )
        rows = {
            "Labeled images and their classes": [],
            "Pseudo-labeled images and what the teacher sees": [],
        }
        kinds = list(rows.values())
        for row, target in enumerate(targets.numpy()):
            is_other = row % per_device >= labeled
            if len(kinds[is_other]) < IMAGES_SHOWN:
                words = self._words(target, not is_other)
                kinds[is_other].append((words, pixels[row].numpy()))
        return [(heading, tiles) for heading, tiles in rows.items() if tiles]

    def _words(self, target, is_labeled):
        """Name of the class, and how sure a teacher is of it."""
        if not target.any():  # an on-line teacher has not looked yet
            return ""
        best = int(target.argmax())
        name = printable(self.run.class_names[best])[:NAME_LENGTH]
        soft = self.run.config.pseudo_label_kind == "soft"
        return name if is_labeled or not soft else f"{name} {target[best]:.0%}"


def _means(rows):
    """Of each figure of some rows."""
    return {name: np.mean([row[name] for row in rows]) for name in rows[0]}


def log_selection(run, iteration, confidence, summary):
    """Tell TensorBoard what becomes of a teacher's labels.

    Args:
        run: The `Run`.
        iteration: Of the student.
        confidence: float `(N,)`, NaN where there is none.
        summary: Of `selection_summary.summarize`.
    """
    counts, edges = np.histogram(confidence, event_files.BUCKETS, (0, 1))
    names = ("num_above_threshold", "num_kept", "num_selected")
    kept = summary["kept_per_class"]
    event_files.write(
        event_folder(run.workdir.iteration(iteration)),
        "selection",
        0,
        [
            event_files.histogram("confidence", counts, edges),
            event_files.histogram(
                "kept_per_class", *np.histogram(kept, event_files.BUCKETS)
            ),
            *(event_files.scalar(name, summary[name]) for name in names),
        ],
    )


def log_accuracy(run, directory, record):
    """Tell TensorBoard how good a trained model is, and what it confuses.

    Args:
        run: The `Run`.
        directory: Of the training, with the model's answers.
        record: Of `results.json`.
    """
    if record["top1"] is None:
        return
    values = [event_files.scalar(k, record[k]) for k in ("top1", "top5")]
    if run.num_classes <= CLASSES_DRAWN:
        path = predictions.path_of(directory, run.evaluation.fingerprint)
        counts = mistakes.confusion(predictions.load(path), run.num_classes)
        values.append(event_files.matrix("confusion", counts))
    event_files.write(
        event_folder(directory), "evaluation", record["steps"], values
    )
