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
# The darkest value of an image of which nothing is to be seen on white.
_NEARLY_WHITE = 240


def decode(image_bytes):
    """Decode an image of any size and common format.

    Args:
        image_bytes: string scalar: JPEG (grayscale and CMYK too), PNG (palette,
            transparency and 16 bits too), GIF and WebP (the first frame of an
            animation), or BMP (1, 4, 8, 24 and 32 bits, uncompressed).

    Returns:
        uint8 `(H, W, 3)`. Transparent images are laid on white, or on black
        where white would hide them; 16 bits a channel are scaled to 8 by the
        bits in use (`eight_bits`).

    Raises:
        tf.errors.InvalidArgumentError: if the bytes cannot be decoded, for
            instance because they are truncated, or hold more than `MAX_PIXELS`
            pixels.

    Differs: the official code drops transparency, and with it a shape that is
    nowhere else. Opaque images have the same bytes either way.
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

    def png():
        size = _numbers(image_bytes, 16, 2, tf.int32, little_endian=False)
        depth, color = tf.unstack(_numbers(image_bytes, 24, 2, tf.uint8))
        with tf.control_dependencies([check_size(size)]):
            is_plain = (depth <= 8) & (color < 4) & ~_has_trns(image_bytes)
        return tf.cond(
            is_plain,
            lambda: tf.io.decode_png(image_bytes, channels=3),
            lambda: _decode_rare_png(image_bytes),
        )

    return tf.cond(
        tf.strings.substr(image_bytes, 0, 3) == b"\x89PN",
        png,
        lambda: _decode_rare(image_bytes),
    )


def _has_trns(png_bytes):
    """Whether a PNG without an alpha channel has transparent colors."""

    def kind(position):
        return tf.strings.substr(png_bytes, position + 4, 4)

    def following(position):
        part = tf.strings.substr(png_bytes, position, 4)
        length = tf.io.decode_raw(part, tf.int32, little_endian=False)[0]
        return [position + 12 + tf.cast(length, tf.int64) % 2**32]

    # The chunk, if there is one, comes before the pixels.
    position = tf.while_loop(
        lambda position: (
            (kind(position) != b"IDAT") & (kind(position) != b"tRNS")
        ),
        following,
        [tf.constant(33, tf.int64)],
    )[0]
    return kind(position) == b"tRNS"


@_called
def _decode_rare_png(png_bytes):
    """`decode` for a PNG that is transparent or has 16 bits a channel."""
    depth = tf.strings.substr(png_bytes, 24, 1)
    return tf.cond(
        depth == b"\x10",
        lambda: on_white(eight_bits(tf.io.decode_png(png_bytes, 4, tf.uint16))),
        lambda: on_white(tf.io.decode_png(png_bytes, 4)),
    )


def eight_bits(image):
    """Scale 16 bits to 8 by the bits that the image makes use of.

    Scans of 10, 12 or 14 bits are often stored as they are measured, in the
    lower bits of 16, where the upper 8 alone are nearly black.

    Args:
        image: uint16 `(H, W, 4)`.

    Returns:
        uint8 `(H, W, 4)`: without the lower 8, 6, 4, 2 or 0 bits, as many as
        its brightest color has beyond 8; the alpha channel without 8.
    """
    brightest = tf.reduce_max(tf.cast(image[..., :3], tf.int32))
    unused = tf.reduce_sum(
        tf.cast(brightest < [2**8, 2**10, 2**12, 2**14], tf.int32)
    )
    shift = tf.stack([8 - 2 * unused] * 3 + [8])
    image = tf.bitwise.right_shift(image, tf.cast(shift, tf.uint16))
    return tf.cast(image, tf.uint8)


def on_white(image):
    """Lay an image on white, as viewers do; on black if white would hide it.

    Args:
        image: uint8 `(H, W, 4)`, red, green, blue and alpha, or `(H, W, 3)`.

    Returns:
        uint8 `(H, W, 3)`: the colors as they are where alpha is 255, or 0 in
        the whole image.
    """
    color, alpha = image[..., :3], image[..., 3:]

    def composed():
        share = tf.cast(alpha, tf.float32) / 255

        def over(background):
            difference = tf.cast(color, tf.float32) - background
            mixed = tf.round(background + share * difference)
            return tf.cast(mixed, tf.uint8)

        white = over(255.0)
        is_hidden = tf.reduce_min(white) >= _NEARLY_WHITE
        return tf.cond(is_hidden, lambda: over(0.0), lambda: white)

    is_seen = tf.reduce_any(alpha < 255) & tf.reduce_any(alpha > 0)
    return tf.cond(is_seen, composed, lambda: color)


@_called
def _decode_rare(image_bytes):
    """`decode` for images that are neither JPEG nor PNG."""

    def gif():
        frame, whitened, size = _first_frame(image_bytes)
        image = _decode(whitened, size)
        return tf.cond(
            tf.reduce_min(image) >= _NEARLY_WHITE,
            lambda: _decode(frame, size),  # TensorFlow's background is black
            lambda: image,
        )

    def webp():
        size = _webp_size(image_bytes)
        whole = tf.cond(
            tf.strings.substr(image_bytes, 12, 4) == b"VP8X",
            lambda: _with_alpha_if_animated(image_bytes),
            lambda: image_bytes,
        )
        return on_white(_decode(whole, size, channels=0))

    def unknown():
        # Even where TensorFlow knows more formats: their headers are not read.
        message = f"none of {', '.join(FORMATS)}"
        with tf.control_dependencies([_check(False, message)]):
            return tf.zeros([0, 0, 3], tf.uint8)

    def begins(beginning):
        start = tf.strings.substr(image_bytes, 0, len(beginning))
        return start == beginning

    return tf.case(
        (
            (begins(b"GIF"), gif),
            (begins(b"BM"), lambda: _decode_bmp(image_bytes)),
            (begins(b"RIF"), webp),
        ),
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
    """A GIF that ends with its first frame, the same in white, and the sides.

    In white: what is transparent in the one is white in the other.
    """
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
    # `control`: the extension, if any, that says which color is transparent.
    start, control = tf.while_loop(
        lambda position, _: tf.equal(data[position], extension),
        lambda position, control: [
            skip_blocks(position + 2),
            tf.where(tf.equal(data[position + 1], 0xF9), position, control),
        ],
        [13 + table_size(data[10]), 0],
    )
    is_frame = _check(tf.equal(data[start], frame), "a GIF without a frame")
    with tf.control_dependencies([is_frame]):
        sides = _numbers(image_bytes, start + 5, 2, tf.uint16)
    # Behind the frame's own header, its colors and a byte come its pixels.
    own_colors = table_size(data[start + 9])
    end = skip_blocks(start + 11 + own_colors)
    first = tf.strings.substr(image_bytes, 0, end) + b";"

    def replace(gif, position, part):
        before = tf.strings.substr(gif, 0, position)
        return before + part + tf.strings.substr(gif, position + len(part), end)

    has_own = own_colors > 0
    colors = tf.where(has_own, own_colors, table_size(data[10]))
    entry = 3 * data[control + 6]
    is_transparent = (
        (control > 0) & (data[control + 3] % 2 > 0) & (entry < colors)
    )

    def whitened():
        opaque = replace(first, control + 3, b"\0")
        table = tf.where(has_own, start + 10, 13)
        return replace(opaque, table + entry, b"\xff\xff\xff")

    return first, tf.cond(is_transparent, whitened, lambda: first), sides


def _with_alpha_if_animated(webp_bytes):
    """An animated WebP says that it has an alpha channel, also if it has none.

    TensorFlow 2.21 decodes any animation to four channels, but without that
    flag into memory for three: the process dies.
    """
    flags = _numbers(webp_bytes, 20, 1, tf.uint8)[0]
    is_animated = tf.bitwise.bitwise_and(flags, 0x02) > 0
    flags = tf.bitwise.bitwise_or(flags, 0x10)
    # A byte is a string of length one in this table.
    byte = tf.gather([bytes([k]) for k in range(256)], tf.cast(flags, tf.int32))
    before = tf.strings.substr(webp_bytes, 0, 20)
    after = tf.strings.substr(webp_bytes, 21, 2**31 - 1)
    return tf.where(is_animated, before + byte + after, webp_bytes)


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


def _decode_bmp(bmp_bytes):
    """`decode` for a BMP; TensorFlow knows no palette and looks at no mask."""

    def numbers(position, count, dtype=tf.int32):
        part = _numbers(bmp_bytes, position, count, dtype)
        return tf.unstack(tf.cast(part, tf.int32))

    offset, header, width, height = numbers(10, 4)
    (bits,) = numbers(28, 1, tf.uint16)
    (compression,) = numbers(30, 1)
    # If it is 3, which bits are red, green and blue follows.
    masks = tf.strings.substr(bmp_bytes, 54, 12)
    is_usual = masks == b"\0\0\xff\0\0\xff\0\0\xff\0\0\0"
    known = tf.reduce_any(tf.equal(bits, [1, 4, 8, 24, 32])) & (
        tf.equal(compression, 0)
        | (tf.equal(compression, 3) & tf.equal(bits, 32) & is_usual)
    )
    checks = [
        _check(header >= 40, "a BMP of OS/2: convert it to PNG"),
        _check(
            known,
            "a BMP that is compressed or has not 1, 4, 8, 24 or 32 bits: "
            "convert it to PNG",
        ),
        check_size([width, height]),
    ]

    def look_up():
        start = 14 + header  # of the palette, which ends before the pixels
        palette = tf.strings.substr(bmp_bytes, start, (offset - start) // 4 * 4)
        palette = tf.reshape(tf.io.decode_raw(palette, tf.uint8), [-1, 4])
        stride = (width * bits + 31) // 32 * 4  # bytes of a row
        pixels = tf.strings.substr(bmp_bytes, offset, stride * abs(height))
        rows = tf.reshape(
            tf.io.decode_raw(pixels, tf.uint8), [abs(height), stride, 1]
        )
        shifts = tf.range(8 - bits, -1, -bits)
        indices = tf.bitwise.right_shift(tf.cast(rows, tf.int32), shifts)
        indices = indices % tf.bitwise.left_shift(1, bits)
        indices = tf.reshape(indices, [abs(height), -1])[:, :width]
        # Stored as blue, green, red, nothing, and from the bottom.
        image = tf.gather(palette[:, 2::-1], indices)
        return tf.cond(height > 0, lambda: image[::-1], lambda: image)

    with tf.control_dependencies(checks):
        return tf.cond(
            bits <= 8, look_up, lambda: tf.io.decode_bmp(bmp_bytes, 0)[..., :3]
        )


def _numbers(image_bytes, position, count, dtype, little_endian=True):
    """`count` numbers that stand one after the other from a position."""
    part = tf.strings.substr(image_bytes, position, count * dtype.size)
    numbers = tf.io.decode_raw(part, dtype, little_endian=little_endian)
    return tf.ensure_shape(numbers, [count])


def _check(condition, message):
    """Fail with a message, in the same words in a graph and out of it."""
    return tf.raw_ops.Assert(condition=condition, data=[message])
