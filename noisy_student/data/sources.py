# SPDX-License-Identifier: Apache-2.0
"""Where images come from: every kind of data set, seen as shards of bytes.

A `Source` is what the rest of the project knows of a data set: encoded images
in shards whose number, sizes and order never change, so that a pseudo-label
written next to position (shard, row) still belongs to the same image months
later. The embedded digits are the smallest example; `folder_sources.py` makes
sources of image files, `tfrecord_source.py` of record files and
`tfds_source.py` of what tensorflow-datasets has prepared. No source decodes,
shuffles or repeats.
"""

import dataclasses
import hashlib
import os
import re
import unicodedata
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from noisy_student.errors import UserError

# The smaller a shard, the less work a stopped labeling phase does again
# (assumption: 512 images are a few seconds on any accelerator).
IMAGES_PER_SHARD = 512
NO_LABEL = -1

# Digits are dealt like cards, 18 at a time in the order (class, position), so
# every class keeps its share, and 1797 images give exactly 500, 300 and 997.
_DIGITS_ROUND = 18
_DIGITS_TEST_TURNS = (1, 4, 7, 10, 13)
_DIGITS_VALIDATION_TURNS = (2, 8, 14)
_DIGITS_SPLITS = ("labeled", "unlabeled", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Source:
    """A set of encoded images, cut in shards, in an order that never changes.

    Attributes:
        name: what a person calls it: "digits (test)", "photos/cats".
        shard_sizes: number of examples in each shard, none of them 0.
        class_names: name of class 0, 1, ...; `()` if images have no labels.
        fingerprint: sha256 in hex. It changes with the files, their sizes and
            order, the split and the classes, and with nothing else: neither
            with the process nor with the place where the files lie.
        open_shard: int or int64 scalar tensor, symbolic ones included ->
            `tf.data.Dataset` of (reference, label): string scalar and int64
            scalar, `NO_LABEL` if there is none, always in the same order.
        load: reference -> string scalar, the encoded image. A file is read
            only here, so dropping an example before `load` costs no read.
        example_name: (shard, row) -> str for logs, one line, printable.
        left_out: (name, reason) of what was found beside them and cannot be an
            image, both printable.
        absent: names of the classes that have no image, as far as is known
            before the labels are read.
        positions: (shard, rows), int64 scalar and `(n,)`, symbolic -> `(n, 2)`
            references of these images, in any order; none of them holds an
            image yet. None where a shard can only be read from its beginning.
    """

    name: str
    shard_sizes: tuple[int, ...]
    class_names: tuple[str, ...]
    fingerprint: str
    open_shard: Callable
    load: Callable
    example_name: Callable
    left_out: tuple[tuple[str, str], ...] = ()
    absent: tuple[str, ...] = ()
    positions: Callable | None = None

    @property
    def num_examples(self):
        return sum(self.shard_sizes)


def subset(source, is_wanted):
    """Some images of a source, without reading the others.

    Args:
        source: a `Source`.
        is_wanted: number of a shard -> bool `(N_i,)`.

    Returns:
        A `Source` with the same number of shards, some of which may be empty.
    """

    def rows(shard):
        return np.flatnonzero(is_wanted(int(shard)))

    def open_shard(shard):
        wanted = tf.numpy_function(is_wanted, [shard], tf.bool)
        wanted = tf.data.Dataset.from_tensor_slices(
            tf.ensure_shape(wanted, [None])
        )
        examples = tf.data.Dataset.zip(wanted, source.open_shard(shard))
        # Before `load`: what is dropped costs no read.
        examples = examples.filter(lambda is_wanted, _: is_wanted)
        return examples.map(lambda _, example: example)

    return dataclasses.replace(
        source,
        shard_sizes=tuple(
            len(rows(shard)) for shard in range(len(source.shard_sizes))
        ),
        open_shard=open_shard,
        example_name=lambda shard, row: source.example_name(
            shard, rows(shard)[row]
        ),
        positions=None,
    )


def digits(split, *, labels_per_class=5, seed=0):
    """Scikit-learn's 1797 scans of handwritten digits: 8x8, gray, as PNG.

    The partition into 500 test images, 300 validation images and a pool of
    997 is fixed and balanced. `seed` decides which images of the pool have
    labels; the labeled images of a smaller `labels_per_class` are a subset of
    those of a larger one.

    Args:
        split: "labeled", "unlabeled" (the rest of the pool, labels hidden),
            "validation" or "test".
        labels_per_class: labeled images of each digit.
        seed: int in `[0, 2**32)`, for the draw of the labeled images.

    Returns:
        A `Source`; classes "0" .. "9", or none if `split` is "unlabeled".

    Raises:
        UserError: if `split` is unknown or the pool has too few images.
    """
    from sklearn.datasets import load_digits

    if split not in _DIGITS_SPLITS:
        raise UserError(
            f"digits has no split {printable(split)!r}: choose one of "
            f"{', '.join(_DIGITS_SPLITS)}"
        )
    bunch = load_digits()
    labels = bunch.target  # (1797,)
    pixels = np.rint(bunch.images * 255 / 16).astype(np.uint8)  # (1797, 8, 8)

    by_class = np.argsort(labels, kind="stable")
    turn = np.arange(len(labels)) % _DIGITS_ROUND
    test = np.isin(turn, _DIGITS_TEST_TURNS)
    validation = np.isin(turn, _DIGITS_VALIDATION_TURNS)
    pool = by_class[~test & ~validation]
    most = np.bincount(labels[pool]).min()
    if not 1 <= labels_per_class <= most:
        raise UserError(
            f"digits cannot give {labels_per_class} labeled images of each "
            f"class: choose labels_per_class from 1 to {most}"
        )
    # RandomState, because NumPy promises that its stream never changes.
    rng = np.random.RandomState(seed)
    drawn = [rng.permutation(pool[labels[pool] == k]) for k in range(10)]
    labeled = np.concatenate([images[:labels_per_class] for images in drawn])

    rows = np.sort(
        {
            "labeled": labeled,
            "unlabeled": np.setdiff1d(pool, labeled),
            "validation": by_class[validation],
            "test": by_class[test],
        }[split]
    )
    hidden = split == "unlabeled"
    row_labels = np.full(len(rows), NO_LABEL) if hidden else labels[rows]
    encoded = [
        tf.io.encode_png(pixels[row][:, :, np.newaxis]).numpy() for row in rows
    ]
    return source_in_memory(
        name=f"digits ({split})",
        class_names=() if hidden else tuple("0123456789"),
        # The pixels and not the PNG bytes, which depend on the encoder.
        fingerprint=fingerprint_of(
            ["digits", split, pixels[rows].tobytes(), *row_labels.tolist()]
        ),
        references=encoded,
        labels=row_labels,
        load=tf.identity,
        row_name=lambda row: f"digits image {rows[row]}",
    )


def images_per_class(source):
    """How many images of each class there are.

    Args:
        source: a `Source` whose images have labels.

    Returns:
        Dict of class name -> int, in the order of the classes.
    """
    counts = np.zeros(len(source.class_names), np.int64)
    for shard in range(len(source.shard_sizes)):
        labels = source.open_shard(shard).map(lambda _, label: label)
        for some in labels.batch(1024).as_numpy_iterator():
            counts += np.bincount(some, minlength=len(counts))
    return dict(zip(source.class_names, counts.tolist(), strict=True))


def with_classes(source, class_names):
    """The same images, with their labels numbered as a model numbers classes.

    A set of evaluation images may lack classes of the model, or have them in
    another order: classes are the same if their names are.

    Args:
        source: a `Source` whose images have labels.
        class_names: names of class 0, 1, ... of the model.

    Returns:
        A `Source` with these `class_names`, and in `absent` those that it has
        no image of, as far as its own names tell.

    Raises:
        UserError: if it has a class that is none of the model's.
    """
    class_names = tuple(class_names)
    if source.class_names == class_names:
        return source
    numbers = {name: number for number, name in enumerate(class_names)}
    there = [n for n in source.class_names if n not in source.absent]
    unknown = [name for name in there if name not in numbers]
    if unknown:
        raise UserError(
            f"{source.name} has images of {some(unknown)}, but the model's "
            f"classes are {some(class_names)}: evaluate on images of these "
            "classes alone, under the same names"
        )
    # Not a constant of this graph: shards are opened in several.
    table = np.array(
        [numbers.get(name, NO_LABEL) for name in source.class_names], np.int64
    )

    def open_shard(shard):
        return source.open_shard(shard).map(
            lambda reference, label: (reference, tf.gather(table, label))
        )

    return dataclasses.replace(
        source,
        class_names=class_names,
        fingerprint=fingerprint_of([source.fingerprint, *class_names]),
        open_shard=open_shard,
        absent=tuple(name for name in class_names if name not in there),
    )


def check_all_classes(source, class_names):
    """Checks that images to train on have exactly the classes of a model.

    Args:
        source: a `Source` whose images have labels.
        class_names: names of the model's classes.

    Raises:
        UserError: naming the classes that are missing or unknown.
    """
    known, found = set(class_names), set(source.class_names)
    differences = " and ".join(
        f"{verb} {some(sorted(names))}"
        for verb, names in (("lacks", known - found), ("adds", found - known))
        if names
    )
    if differences:
        raise UserError(
            f"{source.name} {differences}, but the models of this run have the "
            f"classes {some(class_names)}: give the folders their names back, "
            "or use another --workdir"
        )


def some(names):
    """The first of some names, and how many more there are."""
    text = ", ".join(names[:3])
    return f"{text} and {len(names) - 3} more" if len(names) > 3 else text


def read_error(error):
    """What a failed read tells a user.

    Args:
        error: what TensorFlow raised while a source was read.

    Returns:
        A `UserError` if a label is none (`checked_label`), a record has other
        features, a record file is damaged or a file has vanished; else None.
    """
    for line in map(without_frame, str(error).splitlines()):
        wrong = wrong_features(line)
        if wrong:
            return UserError(
                f"a record {wrong}: write the files again, with one image and "
                "one label in each record"
            )
        found = re.search(r"\bUserError: (.+)", line)  # of `array_records.py`
        if found:
            return UserError(found.group(1))
        found = re.search(r"assertion failed: \[(.*?)\] \[(-?\d+)\]", line)
        if found:
            return UserError(found.group(1).replace("{}", found.group(2)))
        found = re.search(r"(corrupted|truncated) record at \d+", line)
        if found:
            return UserError(
                f"a record file is damaged ({found.group()}): replace it, and "
                "the same command goes on"
            )
        found = re.search(r"^(.+); No such file or directory", line)
        if found:
            return UserError(
                f"{found.group(1)} has vanished: bring it back, and the same "
                "command goes on"
            )
    return None


def wrong_features(line):
    """What TensorFlow says of a record that is not as it should be, or None."""
    for pattern, text in (
        (r"Key: (\S+)\.\s+Can't parse", "has several values of {}, or none"),
        (
            r"Key: (\S+)\.\s+Data types don't match\. Data type: (\w+) but "
            r"expected type: (\w+)",
            "has a {} of type {} instead of {}",
        ),
        (r"Feature: (\S+) \(.*\) is required", "has no {}"),
        (r"Could not parse example input", "is no tf.train.Example"),
    ):
        found = re.search(pattern, line)
        if found:
            return text.format(*found.groups())
    return None


def without_frame(line):
    """A line of TensorFlow's messages, printable, without where it was."""
    frame = (
        r"{{.*?}} |Error in .* transformation with iterator: \S+: "
        r"|\s*\[Op:.*|\s*\[\[.*"
    )
    return printable(re.sub(frame, "", line))


def source_in_memory(*, references, labels, row_name, **fields):
    """A source made of a list of references, cut in shards of equal size."""
    size = IMAGES_PER_SHARD
    count = len(references)
    references = tf.constant(references, tf.string)  # (count,)
    labels = tf.constant(labels, tf.int64)  # (count,)

    def open_shard(shard):
        start = tf.cast(shard, tf.int64) * size
        rows = slice(start, start + size)
        return tf.data.Dataset.from_tensor_slices(
            (references[rows], labels[rows])
        )

    return Source(
        shard_sizes=tuple(
            min(size, count - start) for start in range(0, count, size)
        ),
        open_shard=open_shard,
        example_name=lambda shard, row: row_name(shard * size + row),
        **fields,
    )


def fingerprint_of(items):
    """Sha256, in hex, of str, bytes, int and tuples of them, in order."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(ascii(item).encode() + b"\n")
    return digest.hexdigest()


def image_hash(image_bytes):
    """A hash of an encoded image, in a graph.

    Args:
        image_bytes: string scalar.

    Returns:
        int64 scalar in [0, 2**63).
    """
    return tf.strings.to_hash_bucket_fast(image_bytes, 2**63 - 1)


def class_name(name):
    """What a class is called, alike on every system: composed, one space.

    macOS stores an accent as a character of its own (NFD), others do not, and
    a space at the end cannot be seen.

    Args:
        name: str or bytes.
    """
    composed = unicodedata.normalize("NFC", printable(name))
    return " ".join(composed.split()) or composed


def same_looking(names):
    """The first two names of classes that look the same, or None.

    Args:
        names: Sequence of str or bytes.
    """
    seen = {}
    for name in names:
        text = class_name(name)
        if text in seen:
            return seen[text], name
        seen[text] = name
    return None


def printable(name):
    """File name, str or bytes of any kind, as one line of valid Unicode."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode()
        for c in text
    )
