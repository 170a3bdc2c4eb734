# SPDX-License-Identifier: Apache-2.0
"""From encoded bytes to square images: crop, resize, flip.

Training takes `random_resized_crop` and `random_flip`; evaluation, and the
teacher when it labels, take `center_crop`. Small images (CIFAR, SVHN) take
`resize` and `pad_and_crop`.

All resizing is TensorFlow 1's bicubic kernel, as in the official code: pixel
corners aligned at zero, no antialiasing. Other bicubic resizers differ from it
by 2 of 255 on average. Nothing is normalized: that is the model's first layer.
"""

import tensorflow as tf

from noisy_student.data import decoding

_CROP_PADDING = 32  # pixels around the center crop, at the model's resolution


def center_crop(image_or_bytes, image_size):
    """Cut the central square and resize it: the official evaluation input.

    The square's side is S / (S + 32) of the shorter side of the image.

    Args:
        image_or_bytes: string scalar, an encoded image; or uint8 `(H, W, 3)`.
        image_size: S, the side of the result in pixels.

    Returns:
        float32 `(S, S, 3)`. The bicubic kernel overshoots, and officially
        nothing clips it: photographs come out with values from -21 to 290.

    Raises:
        tf.errors.InvalidArgumentError: as `decoding.decode`.

    Reference: noisystudent/preprocessing.py, `center_crop`.
    """
    image = tf.convert_to_tensor(image_or_bytes)
    if image.dtype == tf.string:
        # All of it: `decode_and_crop_jpeg` is off in some pixels at the edges
        # of the crop, and this is what accuracies are measured with.
        image = decoding.decode(image)
    window = _center_window(tf.shape(image)[:2], image_size)
    return _resize_bicubic(_cut(image, window), image_size)


def random_resized_crop(
    image_bytes,
    image_size,
    *,
    seed,
    area_range=(0.08, 1.0),
    aspect_ratio_range=(3 / 4, 4 / 3),
):
    """Cut a random window and resize it: the official training input.

    Args:
        image_bytes: string scalar, an encoded image that `decoding.decode` has
            accepted before, as every image of a run has been.
        image_size: S, the side of the result in pixels.
        seed: integer `(2,)`.
        area_range: smallest and largest window, as fractions of the image.
        aspect_ratio_range: smallest and largest width / height of the window.

    Returns:
        uint8 `(S, S, 3)`. Where ten attempts find no window, and where the
        window is the whole image, it is the center crop.

    Raises:
        tf.errors.InvalidArgumentError: as `decoding.decode`.

    Reference: noisystudent/preprocessing.py, `_random_crop`.
    Differs: of a JPEG only the window is decoded, which is much faster and
    changes some pixels at the window's edges.
    """

    def window(size):
        begin, window_size, _ = (
            tf.image.stateless_sample_distorted_bounding_box(
                tf.concat([size, [3]], axis=0),
                bounding_boxes=[[[0.0, 0.0, 1.0, 1.0]]],
                seed=seed,
                min_object_covered=0.1,
                aspect_ratio_range=aspect_ratio_range,
                area_range=area_range,
                max_attempts=10,
            )
        )
        whole = tf.reduce_all(window_size[:2] == size)
        drawn = tf.concat([begin[:2], window_size[:2]], axis=0)
        return tf.where(whole, _center_window(size, image_size), drawn)

    def from_jpeg():
        size = tf.io.extract_jpeg_shape(image_bytes)[:2]
        with tf.control_dependencies([decoding.check_size(size)]):
            size = tf.identity(size)
        return tf.io.decode_and_crop_jpeg(image_bytes, window(size), channels=3)

    def from_other():
        image = decoding.decode_other(image_bytes)
        return _cut(image, window(tf.shape(image)[:2]))

    image = tf.cond(tf.io.is_jpeg(image_bytes), from_jpeg, from_other)
    return to_uint8(_resize_bicubic(image, image_size))


def resize(image, image_size):
    """Resize a whole image, not keeping its aspect ratio.

    Args:
        image: uint8 `(H, W, 3)`.
        image_size: S, the side of the result in pixels.

    Returns:
        uint8 `(S, S, 3)`; an image of that size is returned as it is.
    """
    if tf.convert_to_tensor(image).shape == (image_size, image_size, 3):
        return image
    return to_uint8(_resize_bicubic(image, image_size))


def pad_and_crop(image, padding, *, seed):
    """Shift an image by up to `padding` pixels, mirroring what comes in.

    Args:
        image: uint8 `(H, W, 3)`.
        padding: pixels added on every side before the crop, 4 officially.
        seed: integer `(2,)`.

    Returns:
        uint8 `(H, W, 3)`: one of `(2 padding + 1)^2` windows, all as likely.

    Raises:
        ValueError: if the image is known to be too small to be mirrored.
        tf.errors.InvalidArgumentError: if it turns out to be too small.

    Reference: noisystudent/preprocessing.py, `small_image_crop`.
    """
    image = tf.convert_to_tensor(image)
    if any(side is not None and side <= padding for side in image.shape[:2]):
        raise ValueError(
            f"padding must be smaller than the image, got {padding} pixels "
            f"for an image of shape {tuple(image.shape)}."
        )
    sides = [[padding, padding], [padding, padding], [0, 0]]
    padded = tf.pad(image, sides, mode="REFLECT")
    shift = tf.random.stateless_uniform(
        [2], seed, minval=0, maxval=2 * padding + 1, dtype=tf.int32
    )
    window = tf.concat([shift, tf.shape(image)[:2]], axis=0)
    return tf.ensure_shape(_cut(padded, window), image.shape)


def random_flip(image, *, seed):
    """Mirror an image left to right, with probability 1/2.

    Args:
        image: uint8 `(H, W, 3)`.
        seed: integer `(2,)`.

    Returns:
        uint8 `(H, W, 3)`.
    """
    return tf.image.stateless_random_flip_left_right(image, seed)


def _center_window(size, image_size):
    """The central square of an image of `size`: (top, left, side, side)."""
    shorter = tf.cast(tf.reduce_min(size), tf.float32)
    fraction = image_size / (image_size + _CROP_PADDING)
    side = tf.maximum(tf.cast(fraction * shorter, tf.int32), 1)
    offset = (size - side + 1) // 2
    return tf.concat([offset, [side, side]], axis=0)


def _cut(image, window):
    """The part of an image in a window (top, left, height, width)."""
    begin = tf.concat([window[:2], [0]], axis=0)
    return tf.slice(image, begin, tf.concat([window[2:], [3]], axis=0))


def _resize_bicubic(image, image_size):
    """TensorFlow 1's `resize_bicubic`: any dtype to float32 `(S, S, 3)`."""
    return tf.raw_ops.ResizeBicubic(
        # The kernel reads each pixel many times and would convert it each time.
        images=tf.cast(image, tf.float32)[tf.newaxis],
        size=[image_size, image_size],
        align_corners=False,
        half_pixel_centers=False,
    )[0]


def to_uint8(values):
    """Clip to [0, 255], then truncate, as the official code does.

    `tf.saturate_cast` does the same with a slower kernel. `QuantizeV2` is no
    faster, and rounds halves to even where oneDNN runs it (measured).
    """
    return tf.cast(tf.clip_by_value(values, 0.0, 255.0), tf.uint8)
