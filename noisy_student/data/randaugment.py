# SPDX-License-Identifier: Apache-2.0
"""RandAugment as Noisy Student uses it: 16 operations, two per image, M = 27.

The student's input noise (paper, section 3.1). The results are those of the
official code on a CPU, byte for byte and at every magnitude.

Only the drawn operation is computed, with arithmetic over long rows where
`tf.where`, `tf.gather` or a broadcast over the channels would be slow.
"""

import functools

import numpy as np
import tensorflow as tf

from noisy_student.data import bytewise
from noisy_student.data import geometry
from noisy_student.data import preprocessing

OPS = tuple(
    "AutoContrast Equalize Invert Rotate Posterize Solarize Color Contrast "
    "Brightness Sharpness ShearX ShearY TranslateX TranslateY SolarizeAdd "
    "Cutout".split()
)

# Which operations are drawn from. The paper's appendix lists neither of the
# last two; the official flag `cutout_op` takes away the last one alone.
OP_SETS = {"official": OPS, "paper": OPS[:-2]}

CONTRASTS = ("official", "corrected")


def randaugment(
    image,
    num_ops,
    magnitude,
    *,
    seed,
    cutout_const=40,
    translate_const=100,
    contrast="official",
    ops=OPS,
):
    """Apply `num_ops` operations, drawn uniformly with replacement.

    Args:
        image: uint8 `(H, W, 3)`.
        num_ops: operations per image, N in the paper; 0 returns the image.
        magnitude: strength of every operation, M in the paper, 0 to 30.
        seed: integer `(2,)`; the result is a function of image and seed.
        cutout_const: half the side of Cutout's hole at M = 10, in pixels.
        translate_const: pixels that a translation moves by at M = 10.
        contrast: as in `apply_op`.
        ops: names to draw from, of `OPS`.

    Returns:
        uint8 `(H, W, 3)`.

    Raises:
        ValueError: as `apply_op`.

    Reference: noisystudent/randaugment.py, `distort_image_with_randaugment`.
    """
    image = tf.convert_to_tensor(image)
    for draw in tf.unstack(_draws(num_ops, seed)):
        choice, side, *center = tf.unstack(draw)
        apply = functools.partial(
            apply_op,
            image=image,
            magnitude=magnitude,
            sign=tf.where(side < 0.5, 1.0, -1.0),
            cutout_const=cutout_const,
            translate_const=translate_const,
            contrast=contrast,
            center=_pixel_at(image, center),
        )
        branches = [functools.partial(apply, name) for name in ops]
        image = tf.switch_case(_index(choice, ops), branches)
    return image


def erases(
    num_ops, magnitude, image_size, *, seed, translate_const=100, ops=OPS
):
    """Tell whether `randaugment` leaves nothing of an image.

    A translation by as many pixels as the image has leaves one grey, and what
    comes after it works on that. At M = 27 officially 270 pixels: with N = 2,
    23 % of all smaller images, 1 - (14 / 16)^2, need not even be decoded.

    Args:
        num_ops: As in `randaugment`.
        magnitude: As in `randaugment`.
        image_size: S, the side of the image in pixels.
        seed: As in `randaugment`.
        translate_const: As in `randaugment`.
        ops: As in `randaugment`.

    Returns:
        bool scalar; `None` if no translation is that long.
    """
    if not num_ops or magnitude / 10 * translate_const < image_size:
        return None
    translations = [op in ("TranslateX", "TranslateY") for op in ops]
    choices = _index(_draws(num_ops, seed)[:, 0], ops)
    return tf.reduce_any(tf.gather(translations, choices))


def _draws(num_ops, seed):
    """All that an image may need, `(N, 4)`; most operations need less."""
    return tf.random.stateless_uniform([num_ops, 4], seed)


def _index(choice, ops):
    """The operation that a number in [0, 1) stands for."""
    return tf.cast(choice * len(ops), tf.int32)


@tf.autograph.experimental.do_not_convert  # all control flow is Python's
def apply_op(
    name,
    image,
    magnitude,
    *,
    sign=1,
    cutout_const=40,
    translate_const=100,
    contrast="official",
    center=None,
):
    """Apply one operation.

    With L = M / 10, three arguments leave the range of a byte. What the
    official code then computes on a CPU is the definition here:

        Solarize     threshold int(256 L)  modulo 256, so that M = 0, 10, 20
                                           and 30 invert the whole image
        Posterize    keeps int(4 L) bits   0 bits (M < 2.5) and more than 8
                                           (M >= 22.5) keep just the top bit
        SolarizeAdd  adds int(110 L)       saturates; from M = 23.2 on all
                                           values below 128 become 255

    Args:
        name: one of `OPS`.
        image: uint8 `(H, W, 3)`, at least two pixels high and wide.
        magnitude: M, a Python number from 0 to 30, fractions allowed.
        sign: +1 or -1, Python or scalar tensor: the direction of Rotate,
            ShearX, ShearY, TranslateX and TranslateY.
        cutout_const: as in `randaugment`.
        translate_const: as in `randaugment`.
        contrast: the grey that Contrast blends with: `official` depends on the
            size of the image alone, `corrected` is its mean, as in PIL.
        center: (row, column) of Cutout's hole; `None` is the middle.

    Returns:
        uint8 `(H, W, 3)`.

    Raises:
        ValueError: for an unknown name or contrast, a magnitude outside of
            [0, 30] or an image that is not uint8.

    Reference: noisystudent/randaugment.py, `level_to_arg`, `NAME_TO_FUNC`.
    """
    if name not in OPS:
        raise ValueError(f"Unknown op {name!r}, not one of {', '.join(OPS)}.")
    if contrast not in CONTRASTS:
        raise ValueError(
            f"Unknown contrast {contrast!r}, not one of {', '.join(CONTRASTS)}."
        )
    if not 0 <= magnitude <= 30:
        raise ValueError(f"magnitude must be in [0, 30], got {magnitude}.")
    image = tf.convert_to_tensor(image)
    if image.dtype != tf.uint8:
        raise ValueError(f"image must be uint8, got {image.dtype.name}.")
    level = magnitude / 10
    factor = level * 1.8 + 0.1
    sign = tf.cast(sign, tf.float32)
    shear, degrees = np.float32(level * 0.3), np.float32(level * 30)
    pixels, hole = level * translate_const, int(level * cutout_const)
    if center is None:
        center = _pixel_at(image, (0.5, 0.5))
    blend_grey = _contrast if contrast == "official" else _corrected_contrast
    operations = {
        "AutoContrast": lambda: _auto_contrast(image),
        "Equalize": lambda: _equalize(image),
        "Invert": lambda: bytewise.invert(image),
        "Rotate": lambda: geometry.rotate(image, degrees, sign),
        "Posterize": lambda: bytewise.posterize(image, int(level * 4)),
        "Solarize": lambda: bytewise.solarize(image, int(level * 256)),
        "Color": lambda: _color(image, factor),
        "Contrast": lambda: blend_grey(image, factor),
        "Brightness": lambda: _brightness(image, factor),
        "Sharpness": lambda: _sharpness(image, factor),
        "ShearX": lambda: geometry.shear_x(image, shear, sign),
        "ShearY": lambda: geometry.shear_y(image, shear, sign),
        "TranslateX": lambda: geometry.translate(image, pixels, sign, axis=1),
        "TranslateY": lambda: geometry.translate(image, pixels, sign, axis=0),
        "SolarizeAdd": lambda: bytewise.solarize_add(image, int(level * 110)),
        "Cutout": lambda: _cut_hole(image, hole, center),
    }
    return tf.ensure_shape(operations[name](), image.shape)


def cutout(image, pad_size, *, seed):
    """Cut the hole that small images (CIFAR, SVHN) get after RandAugment.

    Args:
        image: uint8 `(H, W, 3)`.
        pad_size: half the side of the hole; officially a quarter of the image.
        seed: integer `(2,)`; draws the center uniformly from all pixels.

    Returns:
        uint8 `(H, W, 3)`, 128 in the part of the hole inside the image.

    Reference: noisystudent/preprocessing.py, `_cifar10_preprocess_for_train`.
    """
    image = tf.convert_to_tensor(image)
    center = _pixel_at(image, tf.random.stateless_uniform([2], seed))
    return tf.ensure_shape(_cut_hole(image, pad_size, center), image.shape)


def _pixel_at(image, fractions):
    """(row, column) of the pixel at fractions [0, 1) of height and width."""
    size = tf.cast(tf.shape(image)[:2], tf.float32)
    return tf.cast(size * fractions, tf.int32)


def _blend(degenerate, image, factor):
    """Go from `degenerate` (factor 0) to `image` (1) and beyond; truncate."""
    image = tf.cast(image, tf.float32)
    blended = degenerate + factor * (image - degenerate)
    return preprocessing.to_uint8(blended)


def _brightness(image, factor):
    """Blend with black, 0 + factor * (image - 0)."""
    return preprocessing.to_uint8(tf.cast(image, tf.float32) * factor)


def _auto_contrast(image):
    """Stretch each channel to 0..255; a constant channel stays."""
    height, width = geometry.size_of(image)
    rows = tf.cast(tf.reshape(image, [height, 3 * width]), tf.float32)
    low, high = (  # (3,); over the rows first, which takes many values at once
        extreme(tf.reshape(extreme(rows, axis=0), [width, 3]), axis=0)
        for extreme in (tf.reduce_min, tf.reduce_max)
    )
    stretch = tf.math.divide_no_nan(255.0, high - low)
    scale = tf.where(high > low, stretch, 1.0)
    rows = rows * tf.tile(scale, [width]) + tf.tile(-low * stretch, [width])
    return tf.reshape(preprocessing.to_uint8(rows), tf.shape(image))


def _equalize(image):
    """Flatten each channel's histogram, in PIL's integer arithmetic."""
    height, width = geometry.size_of(image)
    # One table for all: 0..255 is red, 256..511 green, 512..767 blue.
    index = tf.cast(tf.reshape(image, [height, 3 * width]), tf.int32)
    index += tf.tile([0, 256, 512], [width])
    # `tf.math.bincount` would look for the highest value first.
    counts = tf.raw_ops.Bincount(
        arr=tf.reshape(index, [-1]), size=768, weights=np.int32([])
    )
    below = tf.cumsum(tf.reshape(counts, [3, 256]), axis=1, exclusive=True)
    # All pixels but those of the channel's highest value make 255 steps.
    lower = tf.where(below < height * width, below, 0)
    step = tf.reduce_max(lower, axis=1, keepdims=True) // 255
    table = tf.minimum((below + step // 2) // tf.maximum(step, 1), 255)
    table = tf.cast(tf.where(step > 0, table, tf.range(256)), tf.uint8)
    # `gather_nd` copies single values a third faster than `gather` (measured).
    equalized = tf.gather_nd(tf.reshape(table, [768]), index[..., tf.newaxis])
    return tf.reshape(equalized, tf.shape(image))


def _color(image, factor):
    """Blend with the grey version of the image."""
    pixels = tf.cast(tf.reshape(image, [-1, 3]), tf.float32)
    red, green, blue = tf.unstack(pixels * (1 / 255), axis=1)
    # `tf.image.rgb_to_grayscale`, rounding for rounding. As a difference: a sum
    # of three may be reordered by TensorFlow's graph optimizer (measured).
    grey = red * 0.2989 - green * -0.587 - blue * -0.114
    grey = tf.floor(grey * 255.5)[:, tf.newaxis]
    # Copied first: arithmetic is slow where it broadcasts over the channels.
    grey = tf.broadcast_to(grey, tf.shape(pixels))
    return tf.reshape(_blend(grey, pixels, factor), tf.shape(image))


def _contrast(image, factor):
    """Blend with one grey: number of pixels / 256, where PIL takes the mean."""
    grey = tf.minimum(tf.size(image) // (3 * 256), 255)
    return _blend(tf.cast(grey, tf.float32), image, factor)


def _corrected_contrast(image, factor):
    """Blend with the mean grey, in the integers of `ImageEnhance.Contrast`."""
    planes = tf.transpose(tf.reshape(image, [-1, 3]))  # (3, H W)
    red, green, blue = tf.unstack(tf.cast(planes, tf.int32))
    # PIL's conversion to "L": ITU-R 601 in 16 bits of fraction, rounded.
    grey = (red * 19595 + green * 38470 + blue * 7471 + 2**15) // 2**16
    total = tf.reduce_sum(tf.cast(grey, tf.int64))
    count = tf.size(grey, tf.int64)
    mean = (2 * total + count) // (2 * count)  # rounded half up
    return _blend(tf.cast(mean, tf.float32), image, factor)


def _sharpness(image, factor):
    """Blend with the image smoothed by (1 1 1, 1 5 1, 1 1 1) / 13."""
    height, width = geometry.size_of(image)
    row = 3 * width
    # Windows of one long row: they start at the nine taps of pixel (1, 1), and
    # what they hold of the left and right border is thrown away below.
    length, size = height * row, (height - 2) * row
    flat = tf.reshape(image, [length])
    values = tf.cast(tf.pad(flat, [[0, 6]]), tf.float32)
    ones = values * np.float32(-1 / 13)
    # TensorFlow makes no copy of what begins and ends where memory is aligned,
    # as whole rows of most sizes do. So it is cut along x once, not for each y.
    columns = [tf.slice(ones, [x], [length]) for x in (0, 3, 6)]
    inner = tf.slice(values, [row + 3], [size])
    # Rounding decides what truncation makes of the nine taps' sum, so they come
    # row by row, as differences (see `_color`); a convolution keeps no order,
    # nor does `add_n`, whose arguments are sorted by name (measured).
    smooth = 0.0
    for y, x in np.ndindex(3, 3):
        if y == x == 1:
            smooth -= inner * np.float32(-5 / 13)
        else:
            smooth -= tf.slice(columns[x], [y * row], [size])
    blended = _blend(tf.floor(smooth), inner, factor)
    rows = tf.slice(tf.concat([flat[:3], blended], axis=0), [0], [size])
    rows = tf.reshape(rows, [height - 2, width, 3])
    # The border has no detail: it stays as it is.
    sides = [image[1:-1, :1], rows[:, 1:-1], image[1:-1, -1:]]
    rows = tf.concat(sides, axis=1)
    return tf.concat([image[:1], rows, image[-1:]], axis=0)


def _cut_hole(image, pad_size, center):
    """Fill the square of side `2 pad_size` around `center`."""
    row, column = tf.unstack(center)
    top, bottom = tf.maximum(row - pad_size, 0), row + pad_size
    left, right = tf.maximum(column - pad_size, 0), column + pad_size
    band = image[top:bottom]
    hole = tf.fill(tf.shape(band[:, left:right]), geometry.GREY)
    band = tf.concat([band[:, :left], hole, band[:, right:]], axis=1)
    return tf.concat([image[:top], band, image[bottom:]], axis=0)
