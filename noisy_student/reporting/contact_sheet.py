# SPDX-License-Identifier: Apache-2.0
"""Images in a grid, with words: one PNG that a person opens."""

import io
import textwrap

import numpy as np

TILE = 128  # pixels that an image is shown at
GAP = 10
LINE = 20  # pixels of a line of text
MARGIN = 24
COLUMNS = 9  # an original and its draws
PAPER, INK, MUTED = "#fafaf8", "#1b2126", "#57626b"


def draw(samples, operations, *, title, magnitude):
    """Draw what the noise does.

    Args:
        samples: List of pairs of an image and the draws of its noise, uint8
            `(S, S, 3)`.
        operations: Dict of the operations of RandAugment -> the first image
            after them.
        title: A sentence or two, ASCII.
        magnitude: M.

    Returns:
        The content of a PNG file.
    """
    first = [("original", samples[0][0]), *operations.items()]
    blocks = [(f"Each operation of RandAugment at magnitude {magnitude:g}",
               [first[start : start + COLUMNS]
                for start in range(0, len(first), COLUMNS)])]  # fmt: skip
    blocks.append(
        (
            "All of the noise, drawn again and again",
            [
                [("original", clean), *(("", image) for image in draws)]
                for clean, draws in samples
            ],
        )
    )
    return _render(textwrap.wrap(title, 130), blocks)


def draw_batch(parts):
    """Draw what a network is shown at once.

    Args:
        parts: List of pairs of a heading and a list of pairs of a word or two
            and an image, uint8 `(S, S, 3)`.

    Returns:
        The content of a PNG file.
    """
    return _render(
        [],
        [
            (
                heading,
                [
                    tiles[start : start + COLUMNS]
                    for start in range(0, len(tiles), COLUMNS)
                ],
            )
            for heading, tiles in parts
        ],
    )


def _render(lines, blocks):
    from PIL import Image
    from PIL import ImageDraw
    from PIL import ImageFont

    row_height = TILE + LINE + GAP
    height = 2 * MARGIN + LINE * len(lines)
    height += sum(2 * LINE + 2 * GAP + row_height * len(r) for _, r in blocks)
    width = 2 * MARGIN + COLUMNS * TILE + (COLUMNS - 1) * GAP
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    plain, large = (ImageFont.load_default(size) for size in (14, 19))
    top = MARGIN
    for line in lines:
        pen.text((MARGIN, top), line, MUTED, font=plain)
        top += LINE
    for heading, rows in blocks:
        top += LINE
        pen.text((MARGIN, top), heading, INK, font=large)
        top += LINE + 2 * GAP
        for row in rows:
            for column, (text, pixels) in enumerate(row):
                left = MARGIN + column * (TILE + GAP)
                sheet.paste(_tile(Image, pixels), (left, top))
                pen.text((left, top + TILE + 2), text, MUTED, font=plain)
            top += row_height
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()


def _tile(Image, pixels):  # noqa: N803, a module
    image = Image.fromarray(np.asarray(pixels))
    # Pixels of small images are to be seen as they are.
    enlarged = image.width < TILE
    how = Image.Resampling.NEAREST if enlarged else Image.Resampling.BOX
    return image.resize((TILE, TILE), how)
