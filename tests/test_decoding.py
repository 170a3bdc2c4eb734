# SPDX-License-Identifier: Apache-2.0
"""Pixels are what a viewer shows: transparency, 10 to 16 bits, odd bitmaps."""

import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from hostile_images import encode
from hostile_images import photo
from hostile_images import png_of
from PIL import Image

from noisy_student.data import decoding


def decode(content):
    return decoding.decode(content).numpy().astype(int)


def shape_mask():
    """A disc, 255 inside and 0 outside, 48 x 64."""
    rows, columns = np.mgrid[:48, :64]
    inside = (rows - 24) ** 2 + (columns - 32) ** 2 < 300
    return np.where(inside, 255, 0).astype(np.uint8)


def stencil(color, mode="RGBA"):
    """An image of one color everywhere, whose shape is in its alpha alone."""
    image = Image.new("RGB", (64, 48), color).convert(mode.removesuffix("A"))
    image.putalpha(Image.fromarray(shape_mask()))
    return image


def palette_stencil(color):
    """The same in two colors: the shape's and a transparent one, also black."""
    image = Image.fromarray((shape_mask() > 0).astype(np.uint8), "P")
    image.putpalette([0, 0, 0, *color])
    return image


STENCILS = {
    "PNG RGBA": lambda color: encode(stencil(color), "PNG"),
    "PNG LA": lambda color: encode(stencil(color, "LA"), "PNG"),
    "PNG 16 bits": lambda color: png_of(
        np.asarray(stencil(color), np.uint16) * 257
    ),
    "PNG palette": lambda color: encode(
        palette_stencil(color), "PNG", transparency=0
    ),
    "PNG palette of 1 bit": lambda color: encode(
        palette_stencil(color), "PNG", transparency=0, bits=1
    ),
    "WebP": lambda color: encode(stencil(color), "WEBP", lossless=True),
    "GIF": lambda color: encode(palette_stencil(color), "GIF", transparency=0),
}


@pytest.mark.parametrize("color", [(0, 0, 0), (90, 90, 90), (255, 255, 255)])
@pytest.mark.parametrize("kind", STENCILS)
def test_a_shape_in_the_alpha_channel_alone_is_seen(kind, color):
    """On white, as viewers do; a white shape on black."""
    background = 0 if color == (255, 255, 255) else 255
    expected = np.where(shape_mask()[..., np.newaxis], color, background)
    np.testing.assert_array_equal(decode(STENCILS[kind](color)), expected)


def test_half_transparent_pixels_are_mixed_with_white():
    image = photo()
    alpha = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (48, 1))
    image.putalpha(Image.fromarray(alpha))
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image)
    for content in (
        encode(image, "PNG"),
        encode(image, "WEBP", lossless=True, exact=True),
    ):
        difference = decode(content) - np.asarray(white.convert("RGB"), int)
        assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("alpha", [255, 0])
def test_the_same_bytes_where_nothing_is_to_be_seen_through(alpha):
    """Alpha 0 everywhere hides the image: no one meant that."""
    image = photo()
    expected = np.asarray(image, int)
    image.putalpha(alpha)
    for content in (
        encode(photo(), "PNG"),
        encode(image, "PNG"),
        encode(image, "WEBP", lossless=True, exact=True),
        png_of(np.asarray(image, np.uint16) * 257),
    ):
        np.testing.assert_array_equal(decode(content), expected)


def test_one_color_may_be_the_transparent_one():
    """As a PNG without alpha channel says it, whatever stands before it."""
    pixels = np.full((4, 5, 3), 7, np.uint8)
    pixels[1:3, 1:4] = 200
    for mode, key in (("RGB", (7, 7, 7)), ("L", 7)):
        image = Image.fromarray(pixels).convert(mode)
        profile = bytes(range(256)) * 300
        content = encode(image, "PNG", transparency=key, icc_profile=profile)
        expected = np.where(pixels == 7, 255, pixels)
        np.testing.assert_array_equal(decode(content), expected)


def test_a_gif_that_names_a_color_which_it_has_not():
    content = encode(photo().quantize(8), "GIF", transparency=3)
    control = content.index(b"\x21\xf9\x04")
    other = content[: control + 6] + b"\xff" + content[control + 7 :]
    opaque = encode(photo().quantize(8), "GIF")
    np.testing.assert_array_equal(decode(other), decode(opaque))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_scans_of_some_bits_are_not_black(bits, channels):
    """Stored in the lower bits of 16, as cameras and scanners measure."""
    rng = np.random.default_rng(bits)
    pixels = rng.integers(0, 2**bits, (6, 5, channels)).astype(np.uint16)
    pixels[0, 0, 0] = 2**bits - 1
    if channels in (2, 4):
        pixels[..., -1] = 2**16 - 1
    color = pixels[..., : 3 if channels >= 3 else 1]
    expected = np.broadcast_to(color >> (bits - 8), (6, 5, 3))
    np.testing.assert_array_equal(decode(png_of(pixels)), expected)


def test_an_image_that_is_as_bright_as_16_bits_allow_has_the_bytes_it_had():
    pixels = np.asarray(photo(), np.uint16) * 257
    content = png_of(pixels)
    theirs = tf.io.decode_png(content, channels=3)
    np.testing.assert_array_equal(decode(content), theirs)


def bmp(pixels, bits, *, header=40, compression=0, body=None, downward=False):
    """A bitmap of indices, with a palette of reds, written by hand."""
    height, width = pixels.shape
    per_byte = 8 // bits if bits <= 8 else 1
    if body is None:
        padded = np.pad(pixels, ((0, 0), (0, -width % (4 * per_byte))))
        grouped = padded.reshape(height, -1, per_byte)
        weights = 1 << np.arange(8 - bits, -1, -bits)
        rows = (grouped * weights).sum(-1).astype(np.uint8)
        body = (rows if downward else rows[::-1]).tobytes()
    palette = b""
    if bits <= 8:
        palette = b"".join(bytes([9, 5, k % 256, 0]) for k in range(2**bits))
    info = struct.pack(
        "<iiiHHIIiiII",
        *(header, width, -height if downward else height, 1, bits),
        *(compression, len(body), 0, 0, 0, 0),
    ) + bytes(header - 40)
    offset = 14 + len(info) + len(palette)
    total = offset + len(body)
    return struct.pack("<2sIII", b"BM", total, 0, offset) + (
        info + palette + body
    )


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("width", [1, 7, 32, 37])
@pytest.mark.parametrize("downward", [False, True])
def test_bitmaps_with_a_palette(bits, width, downward):
    rng = np.random.default_rng(width)
    pixels = rng.integers(0, 2**bits, (5, width))
    expected = np.stack(np.broadcast_arrays(pixels, 5, 9), -1)
    for header in (40, 108, 124):
        content = bmp(pixels, bits, header=header, downward=downward)
        theirs = Image.open(io.BytesIO(content)).convert("RGB")
        np.testing.assert_array_equal(theirs, expected)
        np.testing.assert_array_equal(decode(content), expected)


def os2():
    """A bitmap of OS/2: its header is shorter, with sides of 16 bits."""
    return struct.pack("<2sIIIIHHHH", b"BM", 86, 0, 26, 12, 4, 4, 1, 24) + (
        bytes(60)
    )


@pytest.mark.parametrize(
    "content, reason",
    [
        (bmp(np.zeros((4, 4), int), 8, compression=1), "compressed"),
        (bmp(np.zeros((4, 4), int), 4, compression=2), "compressed"),
        (bmp(np.zeros((4, 4), int), 16, body=bytes(32)), "has not"),
        (
            bmp(np.zeros((4, 4), int), 16, compression=3, body=bytes(44)),
            "has not",
        ),
        # Masks that are not the usual order: here all zero.
        (
            bmp(np.zeros((4, 4), int), 32, compression=3, body=bytes(76)),
            "compressed",
        ),
        (bmp(np.zeros((4, 4), int), 2, body=bytes(16)), "has not"),
        (os2(), "OS/2"),
    ],
)
def test_bitmaps_that_are_not_read_are_named(content, reason):
    with pytest.raises(tf.errors.InvalidArgumentError, match=reason):
        decode(content)


def test_small_bitmaps_are_read():
    """Shorter than the header of the largest kind."""
    for mode in ("1", "L", "RGB", "RGBA"):
        content = encode(Image.new(mode, (1, 1)), "BMP")
        assert decode(content).shape == (1, 1, 3)
