# SPDX-License-Identifier: Apache-2.0
"""Images as the world has them: odd, broken, mislabeled, and malicious.

`kinds()` makes them; each says whether it can be decoded, and to what size.
"""

import functools
import io
import struct
import zipfile
import zlib

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 48, 64
# `WHOLE` decodes to the photo, `BROKEN` must be refused.
WHOLE, BROKEN = (HEIGHT, WIDTH), None


def kinds():
    """Dict of kind -> (bytes, extension, size (H, W) or `BROKEN`)."""
    return {
        **_jpegs(),
        **_pngs(),
        **_gifs(),
        **_bmps(),
        **_webps(),
        **_under_another_name(),
        **_cut_off(),
        **_no_images(),
        **too_large(),
    }


def photo(height=HEIGHT, width=WIDTH):
    """A picture with edges, gradients and a little noise."""
    rng = np.random.default_rng(7)
    rows, columns = np.mgrid[:height, :width]
    red, green = 255 * rows // height, 255 * columns // width
    blue = np.where((rows // 8 + columns // 8) % 2, 200, 40)
    image = np.stack([red, green, blue], -1) + rng.integers(-9, 10, (3,))
    return Image.fromarray(image.clip(0, 255).astype(np.uint8))


def encode(image, image_format, **options):
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def _jpegs():
    image = photo()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, which TensorFlow does not
    plain = encode(image, "JPEG")
    start = plain.index(b"\xff\xda")  # of the compressed pixels
    return {
        "jpeg": (plain, "jpg", WHOLE),
        "jpeg upper case": (plain, "JPG", WHOLE),
        "jpeg gray": (encode(image.convert("L"), "JPEG"), "jpg", WHOLE),
        "jpeg CMYK": (encode(image.convert("CMYK"), "JPEG"), "jpg", WHOLE),
        "jpeg progressive": (
            encode(image, "JPEG", progressive=True),
            "jpeg",
            WHOLE,
        ),
        "jpeg worst quality": (encode(image, "JPEG", quality=1), "jpg", WHOLE),
        "jpeg full color": (encode(image, "JPEG", subsampling=0), "jpg", WHOLE),
        "jpeg restart markers": (
            encode(image, "JPEG", restart_marker_blocks=1),
            "jpg",
            WHOLE,
        ),
        "jpeg EXIF rotation": (encode(image, "JPEG", exif=exif), "jpg", WHOLE),
        "jpeg long profile": (
            encode(image, "JPEG", icc_profile=bytes(300_000)),
            "jpg",
            WHOLE,
        ),
        "jpeg comment": (
            encode(image, "JPEG", comment="-" * 999),
            "jpg",
            WHOLE,
        ),
        "jpeg and garbage": (plain + bytes(range(256)) * 4, "jpg", WHOLE),
        "jpeg twice": (plain + plain, "jpg", WHOLE),
        "jpeg 1x1": (encode(photo(1, 1), "JPEG"), "jpg", (1, 1)),
        "jpeg 1x5000": (encode(photo(5000, 1), "JPEG"), "jpg", (5000, 1)),
        "jpeg 5000x1": (encode(photo(1, 5000), "JPEG"), "jpg", (1, 5000)),
        # As frames of a video come: the tables are the usual ones.
        "jpeg without tables": (
            plain.replace(b"\xff\xc4", b"\xff\xfe"),
            "jpg",
            WHOLE,
        ),
        "jpeg without pixels": (plain[:start] + b"\xff\xd9", "jpg", BROKEN),
        "jpeg 12 bits": (_resized_jpeg(plain, bits=12), "jpg", BROKEN),
        "jpeg 0x0": (_resized_jpeg(plain, 0, 0), "jpg", BROKEN),
    }


def _pngs():
    image, red = photo(), Image.new("L", (WIDTH, HEIGHT), 100)
    alpha = image.copy()
    alpha.putalpha(red)
    sixteen = np.asarray(image.convert("L"), np.uint16) * 257
    plain = encode(image, "PNG")
    pixels = plain.index(b"IDAT")
    return {
        "png": (plain, "png", WHOLE),
        "png gray": (encode(image.convert("L"), "PNG"), "png", WHOLE),
        "png gray alpha": (encode(alpha.convert("LA"), "PNG"), "png", WHOLE),
        "png alpha": (encode(alpha, "PNG"), "png", WHOLE),
        "png palette": (encode(image.quantize(), "PNG"), "png", WHOLE),
        "png palette of 4 bits": (
            encode(image.quantize(16), "PNG", bits=4),
            "png",
            WHOLE,
        ),
        "png palette with a hole": (
            encode(image.quantize(), "PNG", transparency=3),
            "png",
            WHOLE,
        ),
        "png 1 bit": (encode(image.convert("1"), "PNG"), "png", WHOLE),
        "png 16 bits gray": (
            encode(Image.fromarray(sixteen), "PNG"),
            "png",
            WHOLE,
        ),
        "png 16 bits": (
            png_of(np.asarray(image, np.uint16) * 257),
            "png",
            WHOLE,
        ),
        "png animated": (
            encode(image, "PNG", save_all=True, append_images=[photo()] * 3),
            "png",
            WHOLE,
        ),
        "png 1x1": (encode(photo(1, 1), "PNG"), "png", (1, 1)),
        "png 1x5000": (encode(photo(5000, 1), "PNG"), "png", (5000, 1)),
        "png wrong checksum": (
            plain[: pixels - 8] + b"\0\0\0\0" + plain[pixels - 4 :],
            "png",
            BROKEN,
        ),
        "png random pixels": (
            _png(WIDTH, HEIGHT, b"", compressed=bytes(range(256)) * 9),
            "png",
            BROKEN,
        ),
        "png 0x0": (_png(0, 0, b""), "png", BROKEN),
        "png negative": (_png(2**32 - 9, 2**32 - 9, b""), "png", BROKEN),
        "png unknown color": (
            _png(WIDTH, HEIGHT, _rows(np.asarray(image)), color=5),
            "png",
            BROKEN,
        ),
    }


def _gifs():
    image = photo().quantize(64)
    frames = [photo().rotate(90 * turn) for turn in range(4)]
    plain = encode(image, "GIF", comment=b"-" * 999)
    return {
        "gif": (plain, "gif", WHOLE),
        "gif transparent": (encode(image, "GIF", transparency=1), "gif", WHOLE),
        "gif interlaced": (encode(image, "GIF", interlace=1), "gif", WHOLE),
        "gif animated": (
            encode(frames[0], "GIF", save_all=True, append_images=frames[1:]),
            "gif",
            WHOLE,
        ),
        "gif 1x1": (encode(photo(1, 1).quantize(2), "GIF"), "gif", (1, 1)),
        "gif header": (plain[:13], "gif", BROKEN),
        "gif without frame": (b"GIF89a" + bytes(7) + b";", "gif", BROKEN),
        "gif of blocks": (
            b"GIF89a" + bytes(7) + b"!\xfe" + b"\x01x" * 9999,
            "gif",
            BROKEN,
        ),
        "gif 0x0": (plain.replace(_sides("<HH"), bytes(4)), "gif", BROKEN),
    }


def _bmps():
    image = photo()
    plain = encode(image, "BMP")
    # Rows from top to bottom, told by a negative height.
    rows = np.asarray(image)[:, :, ::-1].tobytes()
    downward = plain[:22] + struct.pack("<i", -HEIGHT) + plain[26:54] + rows
    return {
        "bmp": (plain, "bmp", WHOLE),
        "bmp from the top": (downward, "bmp", WHOLE),
        "bmp gray": (encode(image.convert("L"), "BMP"), "bmp", WHOLE),
        "bmp palette": (encode(image.quantize(), "BMP"), "bmp", WHOLE),
        "bmp alpha": (encode(image.convert("RGBA"), "BMP"), "bmp", WHOLE),
        "bmp 1 bit": (encode(image.convert("1"), "BMP"), "bmp", WHOLE),
        "bmp 2 GB wide": (
            plain[:18] + struct.pack("<ii", 2**31 - 1, 2**31 - 1) + plain[26:],
            "bmp",
            BROKEN,
        ),
        "bmp lowest height": (
            plain[:22] + struct.pack("<i", -(2**31)) + plain[26:],
            "bmp",
            BROKEN,
        ),
        "bmp pixels elsewhere": (
            plain[:10] + struct.pack("<i", 2**31 - 1) + plain[14:],
            "bmp",
            BROKEN,
        ),
        "bmp header": (plain[:30], "bmp", BROKEN),
    }


def _webps():
    image = photo()
    alpha = image.copy()
    alpha.putalpha(100)
    return {
        "webp": (encode(image, "WEBP"), "webp", WHOLE),
        "webp lossless": (encode(image, "WEBP", lossless=True), "webp", WHOLE),
        "webp alpha": (encode(alpha, "WEBP"), "webp", WHOLE),
        "webp 1x1": (encode(photo(1, 1), "WEBP"), "webp", (1, 1)),
        "webp animated": (
            encode(image, "WEBP", save_all=True, append_images=[alpha]),
            "webp",
            WHOLE,
        ),
        # TensorFlow decodes it past the end of its memory.
        "webp animated, opaque": (
            encode(
                image, "WEBP", save_all=True, append_images=[image.rotate(9)]
            ),
            "webp",
            WHOLE,
        ),
        "webp header": (b"RIFF\x99\0\0\0WEBPVP8 ", "webp", BROKEN),
    }


def _under_another_name():
    image = photo()
    return {
        f"{image_format} called {extension}": (
            encode(image, image_format.upper()),
            extension,
            WHOLE,
        )
        for image_format, extension in (
            ("png", "jpg"),
            ("gif", "jpg"),
            ("webp", "jpg"),
            ("bmp", "jpeg"),
            ("jpeg", "png"),
            ("jpeg", "bmp"),
        )
    }


def _cut_off():
    image = photo()
    return {
        f"{image_format.lower()} cut off at {percent} %": (
            content[: len(content) * percent // 100],
            image_format.lower(),
            BROKEN,
        )
        for image_format in ("JPEG", "PNG", "GIF", "BMP", "WEBP")
        for content in [encode(image, image_format)]
        for percent in (3, 30, 90)
    }


def _no_images():
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("bomb", bytes(10**6))
    texts = {
        "empty": b"",
        "one byte": b"\xff",
        "zeros": bytes(5000),
        "text": b"this is a text that is called an image",
        "text that begins like a bitmap": b"BMW is a car",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><script/></svg>',
        "html": b"<!doctype html><title>404</title>",
        "pdf": b"%PDF-1.7\n" + bytes(99),
        "heic": b"\0\0\0\x18ftypheic" + bytes(99),
        "pickle": b"\x80\x04\x95" + bytes(99),
        "tiff": encode(photo(), "TIFF"),
        "zip": zipped.getvalue(),
        "noise": np.random.default_rng(3).bytes(9999),
    }
    return {
        f"{name} called jpg": (content, "jpg", BROKEN)
        for name, content in texts.items()
    }


@functools.cache
def too_large():
    """Kilobytes that would be gigabytes of pixels; seconds to make, so kept."""
    side = 10_000
    plain = encode(photo(), "JPEG")
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        empty = Image.new("L", (side, side))
        bombs = {
            "jpeg 10000x10000": (encode(empty, "JPEG"), "jpg"),
            "png 10000x10000": (encode(empty.convert("1"), "PNG"), "png"),
            "gif 10000x10000": (encode(empty, "GIF"), "gif"),
            "webp 10000x10000": (encode(empty, "WEBP", method=0), "webp"),
        }
    finally:
        Image.MAX_IMAGE_PIXELS = before
    frame = encode(photo().quantize(8), "GIF")
    bombs |= {
        "jpeg 60000x60000": (_resized_jpeg(plain, 60000, 60000), "jpg"),
        "png 2147483647 wide": (_png(2**31 - 1, 2**31 - 1, b""), "png"),
        "gif 65535x65535": (
            frame.replace(_sides("<HH"), b"\xff\xff\xff\xff"),
            "gif",
        ),
        "webp 16777216 wide": (
            b"RIFF\x99\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff" * 6,
            "webp",
        ),
    }
    return {name: (*bomb, BROKEN) for name, bomb in bombs.items()}


def _sides(layout):
    return struct.pack(layout, WIDTH, HEIGHT)


def _resized_jpeg(content, width=WIDTH, height=HEIGHT, bits=8):
    """A JPEG whose header claims another size than it has."""
    frame = content.index(b"\xff\xc0") + 4
    header = struct.pack(">BHH", bits, height, width)
    return content[:frame] + header + content[frame + 5 :]


def _rows(pixels):
    """Pixels as PNG compresses them: each row led by the kind of its filter."""
    return b"".join(b"\0" + row.tobytes() for row in pixels)


def png_of(pixels):
    """A PNG of 16 bits: uint16 `(H, W, 1 to 4)`, which Pillow cannot write."""
    height, width, channels = pixels.shape
    color = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = _rows(pixels.astype(">u2"))
    return _png(width, height, rows, depth=16, color=color)


def _png(width, height, rows, *, depth=8, color=2, compressed=None):
    def chunk(kind, content):
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            chunk(b"IDAT", compressed or zlib.compress(rows)),
            chunk(b"IEND", b""),
        )
    )
