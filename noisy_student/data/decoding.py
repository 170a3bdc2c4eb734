# SPDX-License-Identifier: Apache-2.0
"""From encoded bytes to pixels, whatever the bytes are.

A file of some kilobytes can hold an image of gigabytes. TensorFlow's decoders
allow half a gigabyte an image, times the images that are decoded at once, and
decode all frames of a GIF, whatever they take, to return one. So the header is
read first, in the graph of the pipeline, and an image that says that it has too
many pixels is refused before anything of it is decoded.
"""

import tensorflow as tf

# As in Pillow, whose warning begins there: a quarter of a gigabyte of RGB.
MAX_PIXELS = 89_478_485
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WebP")


def decode(image_bytes):
    """Decode an image of any size and common format.

    Args:
        image_bytes: string scalar: JPEG (grayscale and CMYK too), PNG (palette,
            transparency and 16 bits too), GIF and WebP (the first frame of an
            animation), or BMP.

    Returns:
        uint8 `(H, W, 3)`; transparency is dropped.

    Raises:
        tf.errors.InvalidArgumentError: if the bytes cannot be decoded, for
            instance because they are truncated, or hold more than `MAX_PIXELS`
            pixels.
    """
    image = tf.cond(
        tf.io.is_jpeg(image_bytes),
        lambda: _decode(image_bytes, tf.io.extract_jpeg_shape(image_bytes)[:2]),
        lambda: decode_other(image_bytes),
    )
    return tf.ensure_shape(image, [None, None, 3])


def _called(function):
    """Keep a function of encoded bytes a call in every graph that uses it.

    As a part of such a graph it costs time where it is not taken, too: reading
    the headers of all formats is a tenth of decoding a photograph as JPEG.
    """
    return tf.function(
        function,
        input_signature=[tf.TensorSpec((), tf.string)],
        autograph=False,
        experimental_attributes={"_noinline": True},
    )


@_called
def decode_other(image_bytes):
    """`decode` for images that are no JPEG."""
    return tf.cond(
        tf.strings.substr(image_bytes, 0, 3) == b"\x89PN",
        lambda: _decode(
            image_bytes,
            _numbers(image_bytes, 16, 2, tf.int32, little_endian=False),
        ),
        lambda: _decode_rare(image_bytes),
    )


@_called
def _decode_rare(image_bytes):
    """`decode` for images that are neither JPEG nor PNG."""

    def gif():
        return _decode(*_first_frame(image_bytes))

    def bmp():
        size = _numbers(image_bytes, 18, 2, tf.int32)
        return _with_palette(_decode(image_bytes, size), image_bytes)

    def webp():  # does not drop transparency by itself
        size = _webp_size(image_bytes)
        return _decode(image_bytes, size, channels=0)[..., :3]

    def unknown():
        # Even where TensorFlow knows more formats: their headers are not read.
        message = f"none of {', '.join(FORMATS)}"
        with tf.control_dependencies([_check(False, message)]):
            return tf.zeros([0, 0, 3], tf.uint8)

    def begins(beginning):
        start = tf.strings.substr(image_bytes, 0, len(beginning))
        return start == beginning

    return tf.case(
        ((begins(b"GIF"), gif), (begins(b"BM"), bmp), (begins(b"RIF"), webp)),
        default=unknown,
    )


def check_size(size):
    """An operation that fails where an image has too many pixels.

    Args:
        size: integer `(2,)`: the sides, in any order.
    """
    pixels = tf.abs(tf.reduce_prod(tf.cast(size, tf.int64)))
    return _check(pixels <= MAX_PIXELS, f"more than {MAX_PIXELS} pixels")


def _decode(image_bytes, size, channels=3):
    """The image, after a look at the size that its header claims."""
    with tf.control_dependencies([check_size(size)]):
        return tf.io.decode_image(
            image_bytes, channels=channels, expand_animations=False
        )


def _first_frame(image_bytes):
    """A GIF that ends with its first frame, and the sides of that."""
    data = tf.cast(tf.io.decode_raw(image_bytes, tf.uint8), tf.int32)

    def skip_blocks(start):
        """The position behind a chain of blocks, each led by its length."""
        last = tf.while_loop(
            lambda position: data[position] > 0,
            lambda position: [position + 1 + data[position]],
            [start],
        )[0]
        return last + 1

    def table_size(flags):
        """Bytes of the color table that a byte of flags announces."""
        size = tf.bitwise.left_shift(6, tf.bitwise.bitwise_and(flags, 7))
        return tf.where(flags >= 128, size, 0)

    extension, frame = 0x21, 0x2C
    start = tf.while_loop(
        lambda position: tf.equal(data[position], extension),
        lambda position: [skip_blocks(position + 2)],
        [13 + table_size(data[10])],
    )[0]
    is_frame = _check(tf.equal(data[start], frame), "a GIF without a frame")
    with tf.control_dependencies([is_frame]):
        sides = _numbers(image_bytes, start + 5, 2, tf.uint16)
    # Behind the frame's own header, its colors and a byte come its pixels.
    end = skip_blocks(start + 11 + table_size(data[start + 9]))
    return tf.strings.substr(image_bytes, 0, end) + b";", sides


def _webp_size(image_bytes):
    """The sides of an extended file's canvas, or 14 bits each."""
    kind = tf.strings.substr(image_bytes, 12, 4)

    def extended():  # 24 bits each, less one
        six = tf.cast(_numbers(image_bytes, 24, 6, tf.uint8), tf.int32)
        return tf.linalg.matvec(
            tf.reshape(six, [2, 3]), [1, 1 << 8, 1 << 16]
        ) + tf.constant(1)

    def lossless():  # 14 bits each, less one, one after the other
        bits = _numbers(image_bytes, 21, 1, tf.int32)[0]
        sides = tf.stack([bits, tf.bitwise.right_shift(bits, 14)])
        return tf.bitwise.bitwise_and(sides, 16383) + 1

    def lossy():
        sides = _numbers(image_bytes, 26, 2, tf.uint16)
        return tf.bitwise.bitwise_and(tf.cast(sides, tf.int32), 16383)

    return tf.case(
        ((kind == b"VP8X", extended), (kind == b"VP8L", lossless)),
        default=lossy,
    )


def _with_palette(image, bmp_bytes):
    """Colors of a BMP of 8 bits a pixel, of which TensorFlow reads indices."""

    def number(position, dtype):
        return tf.cast(_numbers(bmp_bytes, position, 1, dtype)[0], tf.int32)

    def look_up():
        start = 14 + number(14, tf.int32)  # behind both headers
        length = number(10, tf.int32) - start  # up to the pixels
        palette = tf.strings.substr(bmp_bytes, start, length)
        palette = tf.reshape(tf.io.decode_raw(palette, tf.uint8), [-1, 4])
        rgb = palette[:, 2::-1]  # stored as blue, green, red, nothing
        return tf.gather(rgb, tf.cast(image[..., 0], tf.int32))

    return tf.cond(number(28, tf.int16) == 8, look_up, lambda: image)


def _numbers(image_bytes, position, count, dtype, little_endian=True):
    """`count` numbers that stand one after the other from a position."""
    part = tf.strings.substr(image_bytes, position, count * dtype.size)
    numbers = tf.io.decode_raw(part, dtype, little_endian=little_endian)
    return tf.ensure_shape(numbers, [count])


def _check(condition, message):
    """Fail with a message, in the same words in a graph and out of it."""
    return tf.raw_ops.Assert(condition=condition, data=[message])
