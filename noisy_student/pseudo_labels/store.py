# SPDX-License-Identifier: Apache-2.0
"""Where pseudo-labels live: one plain `.npy` per shard, tied by a manifest.

    labels/
      manifest.json               source, teacher, classes: what the rows mean
      probs-00000-of-00002.npy    float16 (N_i, C), row k = k-th image
      copies-00000-of-00002.npy   uint32 (N_i,), how often a pass shows each
      selection.json              threshold, images per class, what was kept

Every file is written under a temporary name and renamed, so that what exists
is whole, and a labeling that was stopped goes on at the first missing shard.
"""

import json
import pathlib

import numpy as np

from noisy_student.errors import UserError
from noisy_student.files import write_atomically
from noisy_student.files import write_json


class LabelStore:
    """The pseudo-labels of one iteration.

    Args:
        directory: `iteration_<k>/labels`.
        shard_sizes: Images in each shard of the source.
        num_classes: C.
    """

    def __init__(self, directory, shard_sizes, num_classes):
        self.directory = pathlib.Path(directory)
        self.shard_sizes = tuple(shard_sizes)
        self.num_classes = num_classes

    def probs_path(self, shard):
        return self._path("probs", shard)

    def copies_path(self, shard):
        return self._path("copies", shard)

    def _path(self, kind, shard):
        count = len(self.shard_sizes)
        return self.directory / f"{kind}-{shard:05d}-of-{count:05d}.npy"

    @property
    def manifest_path(self):
        return self.directory / "manifest.json"

    @property
    def selection_path(self):
        return self.directory / "selection.json"

    def begin(self, manifest):
        """Tie the directory to a source and a teacher, or check that it is.

        Args:
            manifest: Dict of what the labels depend on.

        Raises:
            UserError: If labels are there that were made of something else.
        """
        if not self.manifest_path.exists():
            write_json(self.manifest_path, manifest)
            return
        existing = json.loads(self.manifest_path.read_text())
        for key in manifest:
            if _identity(existing.get(key)) != _identity(manifest[key]):
                raise UserError(
                    f"the labels in {self.directory} were made with another "
                    f"{key} ({_short(existing.get(key))}, now "
                    f"{_short(manifest[key])}): delete that folder to label "
                    "again, or use another --workdir"
                )

    def missing_shards(self):
        """Numbers of the shards that have no predictions yet."""
        shards = range(len(self.shard_sizes))
        return [s for s in shards if not self.probs_path(s).exists()]

    def write_probs(self, shard, probs):
        """Store the predictions of a shard.

        Args:
            shard: Its number.
            probs: float `(N_i, C)`; NaN rows for images without prediction.
        """
        expected = (self.shard_sizes[shard], self.num_classes)
        if probs.shape != expected:
            raise ValueError(f"probs are {probs.shape}, expected {expected}")
        self._write_array(self.probs_path(shard), probs.astype(np.float16))

    def read_probs(self, shard):
        """float16 `(N_i, C)`, memory-mapped."""
        probs = np.load(self.probs_path(shard), mmap_mode="r")
        expected = (self.shard_sizes[shard], self.num_classes)
        if probs.shape != expected or probs.dtype != np.float16:
            raise UserError(
                f"{self.probs_path(shard)} holds {probs.dtype} {probs.shape}, "
                f"expected float16 {expected}: delete it and label again"
            )
        return probs

    def write_copies(self, copies, summary):
        """Store a selection over all shards; the summary comes last.

        Args:
            copies: uint32 `(N,)`, all shards one after the other.
            summary: Dict for `selection.json`.
        """
        bounds = np.cumsum((0, *self.shard_sizes))
        for shard in range(len(self.shard_sizes)):
            part = copies[bounds[shard] : bounds[shard + 1]]
            self._write_array(self.copies_path(shard), part.astype(np.uint32))
        write_json(self.selection_path, summary)

    def read_selection(self):
        """The dict of `selection.json`, or None before a selection."""
        if not self.selection_path.exists():
            return None
        return json.loads(self.selection_path.read_text())

    def copies(self):
        """uint32 `(N,)`, how often each is shown, over all shards."""
        shards = range(len(self.shard_sizes))
        return np.concatenate([np.load(self.copies_path(s)) for s in shards])

    def num_selected(self):
        """Images in a pass over the selection, duplicates counted."""
        shards = range(len(self.shard_sizes))
        return sum(
            int(np.load(self.copies_path(s), mmap_mode="r").sum())
            for s in shards
        )

    def confidences(self):
        """The highest probability of each row and its class, shard by shard.

        Returns:
            Pair of float32 `(N,)`, NaN where there is no prediction, and int32
            `(N,)`, over all shards one after the other.
        """
        confidence, predicted_class = [], []
        for shard in range(len(self.shard_sizes)):
            probs = np.asarray(self.read_probs(shard), np.float32)
            predicted_class.append(probs.argmax(axis=1).astype(np.int32))
            confidence.append(probs.max(axis=1))
        return np.concatenate(confidence), np.concatenate(predicted_class)

    def _write_array(self, path, array):
        write_atomically(
            path, lambda file: np.save(file, array, allow_pickle=False)
        )


def _identity(value):
    """What must not change: folders may be moved, so their names may."""
    if isinstance(value, dict):
        return {key: value[key] for key in value if key != "name"}
    return value


def _short(value):
    """A value as an error message shows it."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
