# SPDX-License-Identifier: Apache-2.0
"""RandAugment's geometry: where each pixel of the result comes from.

All of it takes the nearest pixel, and fills what comes in from outside with
grey, as `ImageProjectiveTransformV3` does to the last rounding.
"""

import functools
import math

import numpy as np
import tensorflow as tf

GREY = np.uint8(128)  # fills holes, and what comes in from outside


def size_of(image):
    """Height and width: numbers where they are known, else int32 scalars.

    An operation on numbers leaves nothing in the graph. Every operation that is
    left costs something for each image, even where its branch is not taken.
    """
    shape = tf.shape(image)
    return [
        known if known is not None else shape[axis]
        for axis, known in enumerate(image.shape[:2])
    ]


def rotate(image, degrees, sign):
    """Turn about the middle; positive is counter-clockwise on the screen.

    Args:
        image: uint8 `(H, W, 3)`.
        degrees: A Python number.
        sign: float32, -1 or 1, of the direction.

    Returns:
        uint8 `(H, W, 3)`.
    """
    return _warp(image, _rotation, degrees, sign)


def shear_x(image, slope, sign):
    """Fetch row y from `sign * slope * y` pixels further right."""
    return _warp(image, _horizontal_shear, slope, sign)


def shear_y(image, slope, sign):
    """Fetch column x from `sign * slope * x` pixels further down."""
    return _warp(image, _vertical_shear, slope, sign)


def translate(image, pixels, sign, axis):
    """Fetch from `pixels` further down (axis 0) or right (axis 1), or back."""
    known = image.shape[axis]
    if known is not None and pixels >= known:
        return tf.fill(tf.shape(image), GREY)
    pixels, size = np.float32(pixels), tf.shape(image)
    if pixels % 1:
        x, y = [sign * pixels if axis == a else 0.0 for a in (1, 0)]
        return _project(image, [[1, 0, x], [0, 1, y]])
    # Whole pixels, the usual case: a window of the image between fillings.
    margin = tf.minimum(int(pixels), size[axis])
    along = np.arange(3) == axis
    filling = tf.fill(tf.where(along, margin, size), GREY)
    wide = tf.concat([filling, image, filling], axis)
    begin = tf.where(along, margin + tf.cast(sign, tf.int32) * margin, 0)
    return tf.slice(wide, begin, size)


def _warp(image, matrix_of, amount, sign):
    """Fetch each pixel from where the matrix of `sign * amount` points."""
    shape = image.shape[:2]
    if tf.executing_eagerly() or not shape.is_fully_defined():
        return _project(image, matrix_of(sign * amount, tf.shape(image)[:2]))
    # Only two matrices can come, so where they point is known in advance, and
    # fetching whole pixels costs a quarter of a transform (measured).
    forward, backward = (
        _sources(matrix_of, float(amount) * direction, *shape)
        for direction in (1, -1)
    )
    sources = tf.cond(sign > 0, lambda: forward, lambda: backward)
    pixels = tf.reshape(image, [-1, 3])
    pixels = tf.concat([tf.fill([1, 3], GREY), pixels], axis=0)
    return tf.reshape(tf.gather_nd(pixels, sources), tf.shape(image))


@functools.lru_cache(maxsize=128)
def _sources(matrix_of, amount, height, width):
    """Which pixel comes where, int32 `(H W, 1)`: 0 is a hole, 1 the first.

    The transform itself says so, of an image of such numbers, and so to the
    last rounding.
    """
    # An eager tensor of the host, which no graph needs to hold a copy of.
    with tf.init_scope(), tf.device("CPU:0"):
        numbers = tf.range(1, height * width + 1)
        numbers = tf.reshape(numbers, [height, width, 1])
        matrix = matrix_of(tf.constant(amount, tf.float32), [height, width])
        return tf.reshape(_project(numbers, matrix, fill=0), [-1, 1])


def _project(image, matrix, fill=GREY):
    """Fetch output (x, y) from the input's `matrix` (2, 3) times (x, y, 1)."""
    flat = tf.reshape(tf.cast(tf.convert_to_tensor(matrix), tf.float32), [6])
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=image[tf.newaxis],
        transforms=tf.pad(flat, [[0, 2]])[tf.newaxis],
        output_shape=tf.shape(image)[:2],
        fill_value=float(fill),
        interpolation="NEAREST",
        fill_mode="CONSTANT",
    )[0]


def _horizontal_shear(slope, size):
    return [[1, slope, 0], [0, 1, 0]]


def _vertical_shear(slope, size):
    return [[1, 0, 0], [slope, 1, 0]]


def _rotation(degrees, size):
    radians = degrees * np.float32(math.pi / 180)
    cos, sin = tf.cos(radians), tf.sin(radians)
    turn = tf.stack([[cos, -sin], [sin, cos]])
    corner = tf.cast(size[1::-1], tf.float32) - 1  # (x, y)
    # As a matrix, because the optimizer factorizes a sum of two scalars.
    offset = (corner - tf.reduce_sum(turn * corner, axis=1)) / 2
    return tf.concat([turn, offset[:, tf.newaxis]], axis=1)
