# SPDX-License-Identifier: Apache-2.0
"""Images of a source as a person sees them: small, and what noise does to them.

Everything runs eagerly on the CPU. To trace a graph for a few dozen images
would take longer than the images themselves.
"""

import base64
import functools

import numpy as np
import tensorflow as tf

from noisy_student.data import decoding
from noisy_student.data import randaugment
from noisy_student.data.sources import printable

SIDE = 96  # pixels of a thumbnail
NOISE_SIDE = 128  # of one that shows what noise does
# Smaller images are shown pixel by pixel, enlarged by the browser.
TINY = 48
READ_AT_ONCE = 64
# Decoding fails so, and Python on messages that name a file that is not UTF-8.
UNREADABLE = (tf.errors.OpError, UnicodeDecodeError)


def read(source, positions):
    """The encoded images at some positions of a source.

    Args:
        source: A `Source`.
        positions: Iterable of pairs (shard, row).

    Returns:
        Dict of (shard, row) -> bytes. What cannot be read is missing.
    """
    wanted = {}
    for shard, row in positions:
        wanted.setdefault(shard, set()).add(row)
    images = {}
    with tf.device("CPU"):
        for shard, rows in sorted(wanted.items()):
            try:
                for row, reference in _references(source, shard, rows):
                    image = _load(source, reference)
                    if image is not None:
                        images[shard, row] = image
            except UNREADABLE:
                continue  # a damaged file: the rest of its shard is lost
    return images


def _references(source, shard, rows):
    """Yield (row, reference) of the wanted rows of a shard."""
    examples = source.open_shard(shard).take(max(rows) + 1)
    # Some at a time: Python is slow one by one, and records may be large.
    parts = examples.map(lambda reference, _: reference).batch(READ_AT_ONCE)
    for number, references in enumerate(parts):
        first = number * READ_AT_ONCE
        for row in sorted(rows):
            if first <= row < first + READ_AT_ONCE:
                yield row, references[row - first]


def _load(source, reference):
    try:
        return source.load(reference).numpy()
    except UNREADABLE:
        return None


def thumbnail(image_bytes, side=SIDE):
    """The middle of an image, small.

    Args:
        image_bytes: An encoded image.
        side: Pixels of the result, at most.

    Returns:
        uint8 `(S, S, 3)`, an array; or None if it cannot be decoded.
    """
    try:
        with tf.device("CPU"):
            image = _decode_reduced(image_bytes, side)
            height, width, _ = image.shape
            short = min(height, width)
            top, left = (height - short) // 2, (width - short) // 2
            return fit(image[top : top + short, left : left + short], side)
    except UNREADABLE:
        return None


def thumbnails(source, numbers, side=SIDE):
    """Small images of a source, such as the surest of `LabelStore.confidences`.

    Args:
        source: A `Source`.
        numbers: Iterable of integers that count its images over all shards.
        side: Pixels of each, at most.

    Returns:
        Dict of number -> uint8 `(S, S, 3)`, in the order asked for. What cannot
        be read or decoded is missing.
    """
    numbers = [int(number) for number in numbers]
    where = locate(numbers, source.shard_sizes)
    encoded = read(source, where)
    found = {}
    for number, position in zip(numbers, where, strict=True):
        if position in encoded:
            found[number] = thumbnail(encoded[position], side)
    return {n: image for n, image in found.items() if image is not None}


def _decode_reduced(image_bytes, side):
    """Decode, a large JPEG at a fraction of its size: that is much faster."""
    if not tf.io.is_jpeg(image_bytes):
        return decoding.decode(image_bytes)
    size = tf.io.extract_jpeg_shape(image_bytes)[:2]
    decoding.check_size(size)
    shorter = min(size.numpy())
    ratio = next((r for r in (8, 4, 2) if shorter // r >= 2 * side), 1)
    return tf.io.decode_jpeg(image_bytes, channels=3, ratio=ratio)


def fit(image, side=SIDE):
    """Make an image no larger than a thumbnail.

    Args:
        image: uint8 or float `(H, W, 3)` in [0, 255], which floats may leave.
        side: Pixels of the longer side, at most.

    Returns:
        uint8 `(H', W', 3)`, an array.
    """
    height, width, _ = image.shape
    if image.dtype == tf.uint8 and max(height, width) <= side:
        return np.asarray(image)
    with tf.device("CPU"):
        image = tf.clip_by_value(tf.cast(image, tf.float32), 0, 255)
        if max(height, width) > side:
            scale = side / max(height, width)
            size = [max(1, round(height * scale)), max(1, round(width * scale))]
            image = tf.image.resize(image, size, method="area")
        return tf.cast(tf.round(image), tf.uint8).numpy()


def data_uri(image):
    """An image as text that a page can hold.

    Args:
        image: uint8 `(H, W, 3)`.

    Returns:
        `data:` URI; PNG where JPEG would blur single pixels.
    """
    with tf.device("CPU"):
        if is_tiny(image):
            kind, content = "png", tf.io.encode_png(image)
        else:
            kind, content = "jpeg", tf.io.encode_jpeg(image, quality=80)
    text = base64.b64encode(content.numpy()).decode()
    return f"data:image/{kind};base64,{text}"


def is_tiny(image):
    """Whether an image is shown pixel by pixel."""
    return max(image.shape[:2]) <= TINY


def small(image, text="", title=""):
    """A picture of an image, no larger than it is shown with its noise.

    Args:
        image: uint8 `(H, W, 3)`.
        text: As in `picture`.
        title: Likewise.
    """
    return picture(fit(image, NOISE_SIDE), title, text)


@functools.lru_cache(maxsize=16)
def album(source, positions):
    """Thumbnails of a source, ready for a page.

    Args:
        source: A `Source`.
        positions: Tuple of pairs (shard, row).

    Returns:
        Dict of (shard, row) -> `picture`. What cannot be read or decoded is
        missing.
    """
    found = {}
    for (shard, row), image_bytes in read(source, positions).items():
        image = thumbnail(image_bytes)
        if image is not None:
            name = name_of(source, shard, row)
            found[shard, row] = picture(image, title=name)
    return found


def picture(image, title="", text=""):
    """What a page needs of an image.

    Args:
        image: uint8 `(H, W, 3)`.
        title: Shown where a pointer rests on it.
        text: Shown below it.

    Returns:
        Dict of `uri`, `tiny`, `title` and `text`.
    """
    return {
        "uri": data_uri(image),
        "tiny": is_tiny(image),
        "title": title,
        "text": text,
    }


def spread(source, count):
    """Positions of a few images, spread over a source.

    Args:
        source: A `Source`.
        count: How many, at most.

    Returns:
        List of pairs (shard, row).
    """
    total = source.num_examples
    count = min(count, total)
    numbers = sorted({(2 * k + 1) * total // (2 * count) for k in range(count)})
    return locate(numbers, source.shard_sizes)


def locate(numbers, shard_sizes):
    """Pairs (shard, row) of images that are numbered over all shards."""
    positions = []
    for number in numbers:
        shard = 0
        while number >= shard_sizes[shard]:
            number -= shard_sizes[shard]
            shard += 1
        positions.append((shard, int(number)))
    return positions


def operations(image, magnitude, ops="official", **constants):
    """An image after each of RandAugment's operations.

    Args:
        image: uint8 `(S, S, 3)`.
        magnitude: M.
        ops: `official` or `paper`, the operations that are drawn from.
        **constants: `cutout_const`, `translate_const` and `contrast` of
            `randaugment.apply_op`.

    Returns:
        Dict of their names -> uint8 `(S, S, 3)`, arrays.
    """
    with tf.device("CPU"):
        return {
            name: randaugment.apply_op(
                name, image, magnitude, **constants
            ).numpy()
            for name in randaugment.OP_SETS[ops]
        }


def noised(image_bytes, see, augment, draws, seed):
    """An image as evaluation sees it, and as a student does.

    Args:
        image_bytes: An encoded image.
        see: Function of (bytes, seed) to the image without noise.
        augment: Likewise, with all of its noise.
        draws: How often to draw it.
        seed: An integer.

    Returns:
        Pair of uint8 `(S, S, 3)` and a list of such; None if it cannot be
        decoded.
    """
    try:
        with tf.device("CPU"):
            clean = fit(see(image_bytes, (seed, 0)), side=2**16)
            return clean, [
                fit(augment(image_bytes, (seed, draw)), side=2**16)
                for draw in range(draws)
            ]
    except UNREADABLE:
        return None


def name_of(source, shard, row, length=120):
    """What a person calls an image: the end of its path, if that is long."""
    name = printable(source.example_name(shard, row))
    return name if len(name) <= length else "…" + name[1 - length :]
