# SPDX-License-Identifier: Apache-2.0
"""RandAugment as Noisy Student uses it: 16 operations, two per image, M = 27.

The input noise of the student (paper, section 2 and appendix A.1). The numbers
are those that the official code computes on a CPU, byte for byte and at every
magnitude, its oddities included; the way there is ours. One operation is one
plain function of a uint8 image; it runs eagerly and inside `Dataset.map`.

Speed: only the drawn operation is computed; everything stays in uint8 or in
float32 over long rows, because `tf.where`, `tf.gather` and broadcasts over the
three channels cost several times the arithmetic that replaces them.
"""

import math

import numpy as np
import tensorflow as tf

OPS = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "Posterize",
    "Solarize",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "SolarizeAdd",
    "Cutout",
)

_FILL = 128  # what comes in from outside of the image


def randaugment(
    image, num_ops, magnitude, *, seed, cutout_const=40, translate_const=100
):
    """Apply `num_ops` operations, drawn uniformly with replacement.

    Args:
        image: uint8 `(H, W, 3)`.
        num_ops: operations per image, N in the paper; 0 returns the image.
        magnitude: strength of every operation, M in the paper, 0 to 30.
        seed: integer `(2,)`; the result is a function of image and seed.
        cutout_const: half the side of Cutout's hole at M = 10, in pixels.
        translate_const: pixels that a translation moves by at M = 10.

    Returns:
        uint8 `(H, W, 3)`.

    Raises:
        ValueError: as `apply_op`, or if `num_ops` is negative.

    Reference: arXiv:1909.13719; noisystudent/randaugment.py,
    `distort_image_with_randaugment`.
    """
    if num_ops < 0:
        raise ValueError(f"num_ops must not be negative, got {num_ops}.")
    if num_ops == 0:
        return image
    # One call draws all that an image needs: a row per operation, of which
    # it takes the columns that it has a use for.
    draws = tf.random.stateless_uniform([num_ops, 4], seed)
    for draw in tf.unstack(draws):

        def branch(name, image=image, draw=draw):
            return lambda: apply_op(
                name,
                image,
                magnitude,
                sign=tf.where(draw[1] < 0.5, 1.0, -1.0),
                cutout_const=cutout_const,
                translate_const=translate_const,
                center=_pixel_at(image, draw[2:]),
            )

        index = tf.cast(draw[0] * len(OPS), tf.int32)
        image = tf.switch_case(index, [branch(name) for name in OPS])
    return image


def apply_op(
    name,
    image,
    magnitude,
    *,
    sign=1,
    cutout_const=40,
    translate_const=100,
    center=None,
):
    """Apply one operation.

    With L = M / 10, three arguments leave the range of a byte. What the
    official code then computes on a CPU is the definition here:

        Solarize      threshold int(256 L)   modulo 256, so that M = 0, 10, 20
                                             and 30 invert the whole image
        Posterize     keeps int(4 L) bits    0 bits (M < 2.5) and more than 8
                                             (M >= 22.5) keep the top bit only
        SolarizeAdd   adds int(110 L)        saturates: at M >= 23.2 all values
                                             below 128 become 255

    Args:
        name: one of `OPS`.
        image: uint8 `(H, W, 3)`, at least two pixels high and wide.
        magnitude: M, a Python number from 0 to 30, fractions allowed.
        sign: +1 or -1, Python or scalar tensor: the direction of Rotate,
            ShearX, ShearY, TranslateX and TranslateY.
        cutout_const: half the side of Cutout's hole at M = 10, in pixels.
        translate_const: pixels that a translation moves by at M = 10.
        center: (row, column) of Cutout's hole; `None` is the middle.

    Returns:
        uint8 `(H, W, 3)`.

    Raises:
        ValueError: for an unknown name, a magnitude outside of [0, 30], or
            an image that is not uint8.

    Reference: noisystudent/randaugment.py, `level_to_arg` and the functions
    in `NAME_TO_FUNC`.
    """
    if not 0 <= magnitude <= 30:
        raise ValueError(f"magnitude must be in [0, 30], got {magnitude}.")
    image = tf.convert_to_tensor(image)
    if image.dtype != tf.uint8:
        raise ValueError(f"RandAugment needs uint8, got {image.dtype.name}.")
    level = magnitude / 10
    factor = level * 1.8 + 0.1  # 1 leaves the image as it is, at M = 5
    sign = tf.cast(sign, tf.float32)
    match name:
        case "AutoContrast":
            result = _auto_contrast(image)
        case "Equalize":
            result = _equalize(image)
        case "Invert":
            result = 255 - image
        case "Rotate":
            result = _rotate(image, sign * np.float32(level * 30))
        case "Posterize":
            result = _posterize(image, int(level * 4))
        case "Solarize":
            result = _solarize(image, int(level * 256))
        case "Color":
            result = _color(image, factor)
        case "Contrast":
            result = _contrast(image, factor)
        case "Brightness":
            result = _blend(0.0, image, factor)
        case "Sharpness":
            result = _sharpness(image, factor)
        case "ShearX":
            result = _project(image, x_from_y=sign * np.float32(level * 0.3))
        case "ShearY":
            result = _project(image, y_from_x=sign * np.float32(level * 0.3))
        case "TranslateX":
            result = _translate(image, level * translate_const, sign, (0, 1))
        case "TranslateY":
            result = _translate(image, level * translate_const, sign, (1, 0))
        case "SolarizeAdd":
            result = _solarize_add(image, int(level * 110))
        case "Cutout":
            if center is None:
                center = _pixel_at(image, (0.5, 0.5))
            result = _cut_hole(image, int(level * cutout_const), center)
        case _:
            raise ValueError(f"Unknown op {name!r}; OPS are {', '.join(OPS)}.")
    return tf.ensure_shape(result, image.shape)


def cutout(image, pad_size, *, seed):
    """Fill a square with grey, centered on a pixel drawn uniformly.

    The hole that small images (CIFAR, SVHN) get after RandAugment, always;
    `pad_size` is then a quarter of the image's side.

    Args:
        image: uint8 `(H, W, 3)`.
        pad_size: half the side of the square, in pixels; what lies outside
            of the image is cut off.
        seed: integer `(2,)`.

    Returns:
        uint8 `(H, W, 3)`; 128 inside the hole.

    Reference: arXiv:1708.04552; noisystudent/preprocessing.py,
    `_cifar10_preprocess_for_train`.
    """
    center = _pixel_at(image, tf.random.stateless_uniform([2], seed))
    return tf.ensure_shape(_cut_hole(image, pad_size, center), image.shape)


def _size(image):
    """Height and width: Python numbers where known, else scalar tensors."""
    static, dynamic = image.shape, tf.shape(image)
    return [dynamic[i] if static[i] is None else static[i] for i in (0, 1)]


def _rows(image):
    """`(H, W, 3)` as `(H, 3 W)`: TensorFlow is fast on long rows."""
    height, width = _size(image)
    return tf.reshape(image, [height, 3 * width])


def _pixel_at(image, fraction):
    """(row, column) of the pixel at fractions [0, 1) of height and width."""
    size = tf.cast(tf.shape(image)[:2], tf.float32)
    return tf.unstack(tf.cast(size * fraction, tf.int32))


def _blend(degenerate, image, factor):
    """Go from `degenerate` to `image` (factor 1) and beyond; truncates."""
    if factor == 1:
        return image
    original = tf.cast(image, tf.float32)
    blended = degenerate + factor * (original - degenerate)
    return tf.saturate_cast(blended, tf.uint8)


def _auto_contrast(image):
    """Stretch each channel to 0..255; a constant channel stays."""
    height, width = _size(image)
    low = tf.cast(tf.reduce_min(image, axis=[0, 1]), tf.float32)  # (3,)
    high = tf.cast(tf.reduce_max(image, axis=[0, 1]), tf.float32)
    stretch = tf.math.divide_no_nan(255.0, high - low)
    scale = tf.where(high > low, stretch, 1.0)
    offset = -low * stretch
    values = tf.cast(_rows(image), tf.float32)  # (H, 3 W)
    values = values * tf.tile(scale, [width]) + tf.tile(offset, [width])
    return tf.reshape(tf.saturate_cast(values, tf.uint8), [height, width, 3])


def _equalize(image):
    """Flatten each channel's histogram, with PIL's integer arithmetic."""
    height, width = _size(image)
    # One table for all channels: 0..255 red, 256..511 green, 512..767 blue.
    channel_start = tf.tile(tf.constant([0, 256, 512]), [width])
    index = tf.cast(_rows(image), tf.int32) + channel_start  # (H, 3 W)
    histogram = tf.math.bincount(index, minlength=768, maxlength=768)
    below = tf.cumsum(tf.reshape(histogram, [3, 256]), axis=1, exclusive=True)
    # Pixels below the channel's brightest value, shared out over 255 steps.
    counted = tf.where(below < height * width, below, 0)
    step = tf.reduce_max(counted, axis=1, keepdims=True) // 255
    table = tf.minimum((below + step // 2) // tf.maximum(step, 1), 255)
    table = tf.where(step == 0, tf.range(256), table)
    table = tf.reshape(tf.cast(table, tf.uint8), [768])
    return tf.reshape(tf.gather(table, index), [height, width, 3])


def _posterize(image, bits):
    """Keep the leading bits of every value."""
    # The shift 8 - bits is a byte, and the CPU kernel clamps it to 7.
    shift = min((8 - bits) % 256, 7)
    return tf.bitwise.bitwise_and(image, np.uint8(0xFF >> shift << shift))


def _solarize(image, threshold):
    """Invert the values from the threshold on."""
    inverted = tf.cast(image >= np.uint8(threshold % 256), tf.uint8) * 255
    return tf.bitwise.bitwise_xor(image, inverted)


def _solarize_add(image, addition):
    """Brighten the values below 128."""
    room = 255 - image
    dark = tf.cast(image < np.uint8(128), tf.uint8)
    return image + tf.minimum(room, np.uint8(min(addition, 255))) * dark


def _color(image, factor):
    """Blend with the image's greys."""
    # Channel by channel, because a grey that is broadcast over the innermost
    # three values costs more than the two transpositions.
    planes = tf.transpose(tf.reshape(image, [-1, 3]))  # (3, H W)
    # TensorFlow's `rgb_to_grayscale`: the same float32 roundings in this order.
    red, green, blue = tf.unstack(tf.cast(planes, tf.float32) * (1 / 255))
    grey = red * 0.2989 + green * 0.587 + blue * 0.114
    planes = _blend(tf.floor(grey * 255.5), planes, factor)
    return tf.reshape(tf.transpose(planes), tf.shape(image))


def _contrast(image, factor):
    """Blend with one grey: a function of the size, not of the picture.

    PIL takes the mean of the picture. The official code divides the sum of
    the histogram, which is the number of pixels, by the number of bins.
    """
    height, width = _size(image)
    grey = tf.cast(tf.minimum(height * width // 256, 255), tf.float32)
    return _blend(grey, image, factor)


def _sharpness(image, factor):
    """Blend with the image smoothed by (1 1 1, 1 5 1, 1 1 1) / 13."""
    height, width = _size(image)
    original = tf.cast(_rows(image), tf.float32)  # (H, 3 W)
    ones, five = original * np.float32(1 / 13), original * np.float32(5 / 13)
    # The sum's roundings decide what truncation makes of it, so its order is
    # fixed: `add_n` adds from left to right, without fused multiply-adds. A
    # convolution may do otherwise (oneDNN does), and is slower.
    taps = [
        (five if (y, x) == (1, 1) else ones)[
            y : height - 2 + y, 3 * x : 3 * (width - 2 + x)
        ]
        for y in range(3)
        for x in range(3)
    ]
    detail = original[1:-1, 3:-3] - tf.floor(tf.add_n(taps))
    detail = tf.pad(detail, [[1, 1], [3, 3]])  # the border stays as it is
    blended = _blend(original - detail, original, factor)
    return tf.reshape(blended, [height, width, 3])


def _project(
    image, x_from_x=1.0, x_from_y=0.0, x=0.0, y_from_x=0.0, y_from_y=1.0, y=0.0
):
    """Fetch output (x, y) from the input at this affine map of it."""
    matrix = [x_from_x, x_from_y, x, y_from_x, y_from_y, y, 0.0, 0.0]
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=image[tf.newaxis],
        transforms=tf.stack(matrix)[tf.newaxis],
        output_shape=tf.shape(image)[:2],
        fill_value=float(_FILL),
        interpolation="NEAREST",
        fill_mode="CONSTANT",
    )[0]


def _rotate(image, degrees):
    """Turn about the middle; positive is counter-clockwise on the screen."""
    bottom, right = [tf.cast(n - 1, tf.float32) for n in _size(image)]
    radians = degrees * np.float32(math.pi / 180)
    cos, sin = tf.cos(radians), tf.sin(radians)
    x = (right - (cos * right - sin * bottom)) / 2
    y = (bottom - (sin * right + cos * bottom)) / 2
    return _project(image, cos, -sin, x, sin, cos, y)


def _translate(image, pixels, sign, direction):
    """Fetch from `pixels` further along `direction`, (0, 1) or (1, 0)."""
    pixels = np.float32(pixels)
    if not pixels.is_integer():  # rounding is the transform's business
        y, x = [sign * pixels * step for step in direction]
        return _project(image, x=x, y=y)
    # A whole number needs no transform: cut one side, fill the other.
    size = tf.shape(image)[:2]
    offset = tf.cast(sign * pixels, tf.int32) * direction
    offset = tf.clip_by_value(offset, -size, size)
    begin = tf.concat([tf.maximum(offset, 0), [0]], axis=0)
    kept = tf.slice(image, begin, tf.concat([size - abs(offset), [3]], axis=0))
    sides = tf.stack([tf.maximum(-offset, 0), tf.maximum(offset, 0)], axis=1)
    paddings = tf.concat([sides, [[0, 0]]], axis=0)
    return tf.pad(kept, paddings, constant_values=np.uint8(_FILL))


def _cut_hole(image, pad_size, center):
    """Fill the square of side `2 pad_size` around `center`."""
    height, width = _size(image)
    row, column = center
    top, bottom = tf.maximum(row - pad_size, 0), row + pad_size
    left, right = tf.maximum(column - pad_size, 0), column + pad_size
    band = image[top:bottom]
    hole = tf.fill(tf.shape(band[:, left:right]), np.uint8(_FILL))
    band = tf.concat([band[:, :left], hole, band[:, right:]], axis=1)
    return tf.concat([image[:top], band, image[bottom:]], axis=0)
