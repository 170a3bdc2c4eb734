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


def grid(tiles, columns=COLUMNS):
    """Draw images in rows, each with a few words below it.

    Args:
        tiles: Iterable of pairs of a text and an image, uint8 `(S, S, 3)`. A
            text that is too long for its image is cut.
        columns: Images in a row.

    Returns:
        The content of a PNG file.
    """
    return draw_batch([("", tiles)], columns)


def draw_batch(parts, columns=COLUMNS):
    """Draw several grids, one below the other: what a network sees at once.

    Args:
        parts: List of pairs of a heading and the tiles of a `grid`.
        columns: Images in a row.

    Returns:
        The content of a PNG file.
    """
    blocks = []
    for heading, tiles in parts:
        tiles = list(tiles)
        starts = range(0, len(tiles), columns)
        blocks.append((heading, [tiles[k : k + columns] for k in starts]))
    return _render([], blocks)


def _render(lines, blocks):
    from PIL import Image
    from PIL import ImageDraw
    from PIL import ImageFont

    row_height = TILE + LINE + GAP
    height = 2 * MARGIN + LINE * len(lines)
    height += sum(
        (2 * LINE + 2 * GAP) * bool(heading) + row_height * len(rows)
        for heading, rows in blocks
    )
    columns = max((len(row) for _, rows in blocks for row in rows), default=1)
    width = 2 * MARGIN + columns * TILE + (columns - 1) * GAP
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    plain, large = (ImageFont.load_default(size) for size in (14, 19))
    top = MARGIN
    for line in lines:
        pen.text((MARGIN, top), line, MUTED, font=plain)
        top += LINE
    for heading, rows in blocks:
        if heading:
            top += LINE
            pen.text((MARGIN, top), heading, INK, font=large)
            top += LINE + 2 * GAP
        for row in rows:
            for column, (text, pixels) in enumerate(row):
                left = MARGIN + column * (TILE + GAP)
                sheet.paste(_tile(Image, pixels), (left, top))
                words = _cut(text, plain)
                pen.text((left, top + TILE + 2), words, MUTED, font=plain)
            top += row_height
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()


def _cut(text, font):
    """As much of a text as fits below an image, in a line."""
    text = " ".join(text.split())
    if font.getlength(text) <= TILE:
        return text
    while text and font.getlength(text + "...") > TILE:
        text = text[:-1]
    return text + "..."


def _tile(Image, pixels):  # noqa: N803, a module
    # Without noise the pixels are float32, and may lie beyond the scale.
    whole = np.rint(np.clip(pixels, 0, 255)).astype(np.uint8)
    image = Image.fromarray(whole)
    # Pixels of small images are to be seen as they are.
    enlarged = image.width < TILE
    how = Image.Resampling.NEAREST if enlarged else Image.Resampling.BOX
    return image.resize((TILE, TILE), how)
