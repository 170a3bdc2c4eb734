# SPDX-License-Identifier: Apache-2.0
"""Where pseudo-labels live: one plain `.npy` per shard, tied by a manifest.

    labels/
      manifest.json               source, teacher, classes: what the rows mean
      probs-00000-of-00002.npy    float16 (N_i, C), row k = k-th image; or
                                  records of the k surest classes (rows.py)
      top-00000-of-00002.npy      records (N_i,): confidence and class
      copies-00000-of-00002.npy   uint32 (N_i,), how often a pass shows each
      selection.json              threshold, images per class, what was kept

Every file is written under a temporary name and renamed, so that what exists
is whole, and a labeling that was stopped goes on at the first missing shard.
A shard is labeled when its `probs` are there, which are written last.
"""

import json
import pathlib

import numpy as np

from noisy_student.errors import UserError
from noisy_student.files import is_damage
from noisy_student.files import read_json
from noisy_student.files import write_atomically
from noisy_student.files import write_json
from noisy_student.pseudo_labels import rows


class LabelStore:
    """The pseudo-labels of one iteration.

    Args:
        directory: `iteration_<k>/labels`.
        shard_sizes: Images in each shard of the source.
        num_classes: C.
        top_k: k, to keep the k highest probabilities of each image; all by
            default.
    """

    def __init__(self, directory, shard_sizes, num_classes, top_k=None):
        self.directory = pathlib.Path(directory)
        self.shard_sizes = tuple(shard_sizes)
        self.num_classes = num_classes
        self.top_k = rows.effective_top_k(num_classes, top_k)

    def probs_path(self, shard):
        return self._path("probs", shard)

    def top_path(self, shard):
        return self._path("top", shard)

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

    def begin(self, manifest, way_out="bring it back"):
        """Tie the directory to a source and a teacher, or check that it is.

        Args:
            manifest: Dict of what the labels depend on.
            way_out: What to do if it is another one, for the error message.

        Raises:
            UserError: If labels are there that were made of something else.
        """
        labeled = len(self.missing_shards()) < len(self.shard_sizes)
        if not (labeled and self.manifest_path.exists()):
            write_json(self.manifest_path, manifest)
            return
        changed = self.difference(manifest)
        if changed:
            raise UserError(
                f"the labels in {self.directory} were made with another "
                f"{changed}: {way_out}, or use another --workdir"
            )

    def difference(self, manifest):
        """What the labels depend on that is another now, in words, or None."""
        existing = self.manifest()
        for key in manifest:
            if _identity(existing.get(key)) != _identity(manifest[key]):
                return (
                    f"{key} ({_short(existing.get(key))}, now "
                    f"{_short(manifest[key])})"
                )
        return None

    def manifest(self):
        """What the labels that are there depend on."""
        return _manifest(self.manifest_path)

    def labeled_subset(self):
        """Which images were to be labeled, as the manifest says.

        Returns:
            Dict with `name` of the selection, `num_images` and `sha256`; None
            if all were.
        """
        if not self.manifest_path.exists():
            return None
        return self.manifest().get("selection_from")

    def num_images(self):
        """Images that are labeled or were to be labeled."""
        subset = self.labeled_subset()
        return subset["num_images"] if subset else sum(self.shard_sizes)

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
        packed = rows.pack(probs, self.top_k)
        # First, for the other file is the mark that the shard is labeled.
        top = rows.top_of(packed, self.num_classes)
        self._write_array(self.top_path(shard), top)
        self._write_array(self.probs_path(shard), packed)

    def read_probs(self, shard):
        """The predictions of a shard, memory-mapped.

        Args:
            shard: Its number.

        Returns:
            float16 `(N_i, C)`, or records `(N_i,)` as in `rows.row_dtype`.

        Raises:
            UserError: If they are stored in another way than they should be.
        """
        path = self.probs_path(shard)
        row = rows.row_dtype(self.num_classes, self.top_k)
        packed = self._read_array(path, shard, row)
        if self.top_k and (packed["classes"] >= self.num_classes).any():
            raise _damaged(path, "label")
        return packed

    def read_copies(self, shard):
        """uint32 `(N_i,)`, how often each is shown, memory-mapped."""
        row = np.dtype(np.uint32)
        return self._read_array(self.copies_path(shard), shard, row, "select")

    def is_kept(self, shard):
        """Bool `(N_i,)`, which images are shown at all."""
        return np.asarray(self.read_copies(int(shard))) > 0

    def write_copies(self, copies, summary):
        """Store a selection over all shards; the summary comes last.

        Args:
            copies: uint32 `(N,)`, all shards one after the other.
            summary: Dict for `selection.json`.
        """
        # Killed on the way, a selection is not there, instead of half another.
        self.selection_path.unlink(missing_ok=True)
        for shard, part in self._parts():
            self._write_array(
                self.copies_path(shard), copies[part].astype(np.uint32)
            )
        write_json(self.selection_path, summary)

    def read_selection(self):
        """The dict of `selection.json`, or None before a selection."""
        if not self.selection_path.exists():
            return None
        return read_json(
            self.selection_path,
            lambda summary: all(
                isinstance(count, int)
                for count in (
                    summary["num_images"],
                    summary["num_kept"],
                    summary["num_selected"],
                    *summary["kept_per_class"],
                )
            ),
            "delete it, and --mode=select makes it again",
        )

    def copies(self):
        """uint32 `(N,)`, how often each is shown, over all shards."""
        copies = np.empty(sum(self.shard_sizes), np.uint32)
        for shard, part in self._parts():
            copies[part] = self.read_copies(shard)
        return copies

    def num_selected(self):
        """Images in a pass over the selection, duplicates counted."""
        return sum(
            int(self.read_copies(shard).sum())
            for shard in range(len(self.shard_sizes))
        )

    def confidences(self):
        """The highest probability of each row and its class, shard by shard.

        Returns:
            Pair of float32 `(N,)`, NaN where there is no prediction, and
            unsigned integers `(N,)`, over all shards one after the other.
        """
        num_rows = sum(self.shard_sizes)
        confidence = np.empty(num_rows, np.float32)
        predicted_class = np.empty(num_rows, rows.class_dtype(self.num_classes))
        for shard, part in self._parts():
            top = self.read_top(shard)
            confidence[part] = top["confidence"]
            predicted_class[part] = top["class"]
            inside = (confidence[part] >= 0) & (confidence[part] <= 1)
            inside |= np.isnan(confidence[part])
            known = predicted_class[part] < self.num_classes
            if not (inside.all() and known.all()):
                raise _damaged(self.top_path(shard), "label")
        return confidence, predicted_class

    def undecodable(self, is_wanted=None):
        """Pairs (shard, row) of the images without a prediction.

        Args:
            is_wanted: Function from a shard to bool `(N_i,)`, the images that
                were to have one; None for all.
        """
        found = []
        for shard in range(len(self.shard_sizes)):
            missing = np.isnan(self.read_top(shard)["confidence"])
            if is_wanted:
                missing &= is_wanted(shard)
            found += [(shard, int(row)) for row in np.flatnonzero(missing)]
        return found

    def read_top(self, shard):
        """Records `(N_i,)` of `rows.top_dtype`: confidence and class."""
        path, row = self.top_path(shard), rows.top_dtype(self.num_classes)
        if path.exists():
            return self._read_array(path, shard, row)
        # Labels from before there were such files.
        return rows.top_of(self.read_probs(shard), self.num_classes)

    def _parts(self):
        """Each shard and the slice of its rows among all."""
        first = 0
        for shard, size in enumerate(self.shard_sizes):
            yield shard, slice(first, first + size)
            first += size

    def _read_array(self, path, shard, row, mode="label"):
        """The rows of a shard, checked to be what they should be."""
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception as error:
            if not is_damage(error):
                raise
            raise _damaged(path, mode) from error
        shape = (self.shard_sizes[shard], *row.shape)
        if array.shape != shape or array.dtype != row.base:
            raise UserError(
                f"{path} holds {array.dtype} {array.shape}, expected "
                f"{row.base} {shape}: delete it and {mode} again"
            )
        if path.stat().st_size != array.offset + array.nbytes:
            raise _damaged(path, mode)
        return array

    def _write_array(self, path, array):
        write_atomically(
            path, lambda file: np.save(file, array, allow_pickle=False)
        )


def recorded_sizes(directory):
    """Images in each shard of labels that may be there; () if they are not.

    Args:
        directory: As of `LabelStore`.
    """
    path = pathlib.Path(directory) / "manifest.json"
    if not path.exists():
        return ()
    return tuple(_manifest(path)["source"].get("shard_sizes", ()))


def _manifest(path):
    return read_json(
        path,
        lambda manifest: (
            isinstance(manifest["source"]["fingerprint"], str)
            and all(
                isinstance(size, int)
                for size in manifest["source"].get("shard_sizes", ())
            )
            and (
                manifest.get("selection_from") is None
                or isinstance(manifest["selection_from"]["num_images"], int)
            )
        ),
        f"delete {path.parent} to label again",
    )


def _damaged(path, mode):
    return UserError(f"{path} is damaged: delete it and {mode} again")


def _identity(value):
    """What must not change: folders may be moved, so their names may."""
    if isinstance(value, dict):
        return {key: value[key] for key in value if key != "name"}
    return value


def _short(value):
    """A value as an error message shows it."""
    if isinstance(value, dict) and "shard_sizes" in value:
        return f"{sum(value['shard_sizes'])} images of {value['name']}"
    if isinstance(value, dict) and "num_images" in value:
        return f"{value['num_images']} images kept in {value['name']}"
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
