# SPDX-License-Identifier: Apache-2.0
"""Decode, crop, resize, flip: from encoded images to squares of pixels.

The official code's geometry, and its resizing: bicubic as TensorFlow 1 did it,
with pixel corners instead of centres aligned and no antialiasing. Released
weights expect exactly that.
"""

import tensorflow as tf

# The evaluation crop leaves out this many pixels of a resized image (official
# preprocessing.py, CROP_PADDING): 224 of 256, 600 of 632.
CROP_PADDING = 32


def decode(image_bytes):
    """Decode a JPEG, PNG, BMP, GIF or WebP image.

    Args:
        image_bytes: string scalar.

    Returns:
        uint8 `(H, W, 3)`; of an animation the first frame.

    Raises:
        tf.errors.InvalidArgumentError: if it is none of these, or cut off.
    """
    image = tf.io.decode_image(image_bytes, channels=3, expand_animations=False)
    return tf.ensure_shape(image, [None, None, 3])


def resize(image, image_size):
    """Resize a whole image to a square.

    Args:
        image: uint8 `(H, W, 3)`.
        image_size: S in pixels.

    Returns:
        uint8 `(S, S, 3)`.
    """
    if image.shape.as_list()[:2] == [image_size, image_size]:
        return image
    return _to_uint8(_bicubic(image, image_size))


def center_crop(image_or_bytes, image_size):
    """The official evaluation input: the middle of the image, resized.

    Args:
        image_or_bytes: uint8 `(H, W, 3)`, or an encoded image, string scalar.
        image_size: S in pixels.

    Returns:
        float32 `(S, S, 3)`. Bicubic resizing overshoots, so that values lie a
        little outside of `[0, 255]`; they are not clipped.

    Reference: noisystudent/preprocessing.py, `_decode_and_center_crop`.
    """
    image = tf.convert_to_tensor(image_or_bytes)
    if image.dtype == tf.string:
        image = decode(image)
    shape = tf.shape(image)
    side = tf.cast(tf.minimum(shape[0], shape[1]), tf.float32)
    crop = tf.cast(image_size / (image_size + CROP_PADDING) * side, tf.int32)
    top, left = (shape[0] - crop + 1) // 2, (shape[1] - crop + 1) // 2
    cropped = tf.slice(image, [top, left, 0], [crop, crop, 3])
    return _bicubic(cropped, image_size)


def random_resized_crop(
    image_bytes,
    image_size,
    *,
    seed,
    area_range=(0.08, 1.0),
    aspect_ratio_range=(3 / 4, 4 / 3),
):
    """Cut a random rectangle out of an image and resize it to a square.

    Args:
        image_bytes: An encoded image, string scalar. Of a JPEG only the
            rectangle is decoded.
        image_size: S in pixels.
        seed: integer `(2,)`.
        area_range: Area of the rectangle, as a share of the image's.
        aspect_ratio_range: Width / height of the rectangle.

    Returns:
        uint8 `(S, S, 3)`.

    Reference: arXiv:1409.4842 ("Inception crop");
    noisystudent/preprocessing.py, `_decode_and_random_crop`.
    """

    def rectangle(shape):
        begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            shape,
            tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
            seed,
            min_object_covered=0.1,
            aspect_ratio_range=aspect_ratio_range,
            area_range=area_range,
            max_attempts=10,
        )
        # The sampler gives up on a long image by returning all of it; the
        # official code then takes the evaluation crop.
        gave_up = tf.reduce_all(size == shape)
        return begin, size, gave_up

    def from_jpeg():
        shape = tf.io.extract_jpeg_shape(image_bytes)
        begin, size, gave_up = rectangle(tf.concat([shape[:2], [3]], 0))
        window = tf.concat([begin[:2], size[:2]], 0)
        return tf.cond(
            gave_up,
            lambda: center_crop(image_bytes, image_size),
            lambda: _bicubic(
                tf.io.decode_and_crop_jpeg(image_bytes, window, channels=3),
                image_size,
            ),
        )

    def from_others():
        image = decode(image_bytes)
        begin, size, gave_up = rectangle(tf.shape(image))
        return tf.cond(
            gave_up,
            lambda: center_crop(image, image_size),
            lambda: _bicubic(tf.slice(image, begin, size), image_size),
        )

    is_jpeg = tf.io.is_jpeg(image_bytes)
    return _to_uint8(tf.cond(is_jpeg, from_jpeg, from_others))


def pad_and_crop(image, padding, *, seed):
    """Reflect the borders outward, then cut the old size out at random.

    Args:
        image: uint8 `(H, W, 3)`.
        padding: Pixels on each side, less than H and W.
        seed: integer `(2,)`.

    Returns:
        uint8 `(H, W, 3)`.

    Reference: noisystudent/preprocessing.py, the 32-pixel path.
    """
    shape = tf.shape(image)
    paddings = [[padding, padding], [padding, padding], [0, 0]]
    padded = tf.pad(image, paddings, "REFLECT")
    corner = tf.random.stateless_uniform(
        [2], seed, 0, 2 * padding + 1, tf.int32
    )
    cropped = tf.slice(padded, tf.concat([corner, [0]], 0), shape)
    return tf.ensure_shape(cropped, image.shape)


def random_flip(image, *, seed):
    """Mirror an image with probability 1/2.

    Args:
        image: uint8 `(H, W, 3)`.
        seed: integer `(2,)`.

    Returns:
        uint8 `(H, W, 3)`.
    """
    flip = tf.random.stateless_uniform([], seed) < 0.5
    return tf.cond(flip, lambda: image[:, ::-1], lambda: image)


def _bicubic(image, image_size):
    resized = tf.raw_ops.ResizeBicubic(
        images=image[tf.newaxis],
        size=[image_size, image_size],
        align_corners=False,
        half_pixel_centers=False,
    )[0]
    return tf.ensure_shape(resized, [image_size, image_size, 3])


def _to_uint8(image):
    # Truncates, as the official code's clip and cast do.
    return tf.cast(tf.clip_by_value(image, 0, 255), tf.uint8)
