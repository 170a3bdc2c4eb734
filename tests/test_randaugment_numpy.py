# SPDX-License-Identifier: Apache-2.0
"""Every operation equals a plain NumPy version, at any magnitude and size.

The golden images have seven sizes and four magnitudes. Here are all the
magnitudes, those that leave a byte's range among them, and odd sizes, down to
two pixels. NumPy's version is written from the definition in `apply_op`.
"""

import numpy as np
import pytest
import tensorflow as tf

from noisy_student.data import randaugment

# 0.5 moves a translation by half a pixel; the others are on both sides of
# where an argument steps (2.5 and 22.5: Posterize; 10, 20: Solarize).
MAGNITUDES = (*range(31), 0.5, 2.4, 2.5, 9.9, 12.3, 19.9, 22.4, 22.5, 23.2)
SIZES = ((2, 2), (7, 5), (16, 16), (33, 65))
SIGNED = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
# Small, so that something is left of small images.
CUTOUT_CONST, TRANSLATE_CONST = 7, 10

f32 = np.float32


def make_image(height, width):
    rng = np.random.default_rng(height * 1000 + width)
    if (height, width) == (16, 16):  # all values of a byte in each channel
        channels = [rng.permutation(256) for _ in range(3)]
        return np.stack(channels, -1).reshape(16, 16, 3).astype(np.uint8)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    # A narrow channel, for AutoContrast to stretch, and one without any range.
    image[..., 1] = image[..., 1] // 3 + 40
    image[..., 2] = 77 if height == 7 else image[..., 2]
    return image


def to_byte(values):
    return np.clip(values, 0, 255).astype(np.uint8)  # cuts fractions off


def blend(degenerate, image, magnitude):
    factor = f32(magnitude / 10 * 1.8 + 0.1)
    degenerate, image = f32(degenerate), image.astype(f32)
    return to_byte(degenerate + factor * (image - degenerate))


def fetch(image, x, y):
    """The pixels nearest to the points (x, y), 128 where there is none."""
    height, width, _ = image.shape
    column, row = [
        np.trunc(c + np.copysign(0.5, c)).astype(int)  # half away from zero
        for c in (np.float64(x), np.float64(y))
    ]
    inside = (0 <= row) & (row < height) & (0 <= column) & (column < width)
    found = image[row.clip(0, height - 1), column.clip(0, width - 1)]
    return np.where(inside[..., None], found, np.uint8(128))


def grid(image):
    """Column and row of each pixel, float32 (H, W)."""
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
    return columns.astype(f32), rows.astype(f32)


def auto_contrast(image, magnitude, sign):
    low, high = [f(image, (0, 1)).astype(f32) for f in (np.min, np.max)]
    scale = np.where(high > low, 255 / np.maximum(high - low, 1), 1).astype(f32)
    offset = np.where(high > low, -low * scale, 0).astype(f32)
    return to_byte(image.astype(f32) * scale + offset)


def equalize(image, magnitude, sign):
    result = image.copy()
    for c in range(3):
        counts = np.bincount(image[..., c].ravel(), minlength=256)
        step = (counts.sum() - counts[counts > 0][-1]) // 255
        if step:
            below = np.cumsum(counts) - counts
            table = np.clip((below + step // 2) // step, 0, 255)
            result[..., c] = table[image[..., c]]
    return result


def rotate(image, magnitude, sign):
    angle = np.deg2rad(sign * magnitude * 3)
    x, y = [c.astype(float) for c in grid(image)]
    middle_x, middle_y = (image.shape[1] - 1) / 2, (image.shape[0] - 1) / 2
    x, y = x - middle_x, y - middle_y
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = cos * x - sin * y + middle_x, sin * x + cos * y + middle_y
    # Halfway between two pixels the rounding of float32 decides: no matter.
    near_tie = [np.abs(c % 1 - 0.5) < 1e-3 for c in (x, y)]
    return np.ma.array(
        fetch(image, x, y),
        mask=np.repeat((near_tie[0] | near_tie[1])[..., None], 3, -1),
    )


def posterize(image, magnitude, sign):
    bits = int(magnitude / 10 * 4)
    kept = bits if 1 <= bits <= 8 else 1
    return image // 2 ** (8 - kept) * np.uint8(2 ** (8 - kept) % 256)


def solarize(image, magnitude, sign):
    threshold = int(magnitude / 10 * 256) % 256
    return np.where(image.astype(int) < threshold, image, 255 - image)


def solarize_add(image, magnitude, sign):
    brighter = to_byte(image.astype(int) + int(magnitude / 10 * 110))
    return np.where(image < 128, brighter, image)


def color(image, magnitude, sign):
    red, green, blue = np.moveaxis(image.astype(f32) * f32(1 / 255), -1, 0)
    grey = red * f32(0.2989) + green * f32(0.587) + blue * f32(0.114)
    return blend(np.floor(grey * f32(255.5))[..., None], image, magnitude)


def contrast(image, magnitude, sign):
    grey = min(image.shape[0] * image.shape[1] // 256, 255)
    return blend(grey, image, magnitude)


def sharpness(image, magnitude, sign):
    height, width, _ = image.shape
    smooth = image.astype(f32)  # the border stays
    total = np.zeros((max(height - 2, 0), max(width - 2, 0), 3), f32)
    for y, x in np.ndindex(3, 3):
        weight = f32(5 / 13) if y == x == 1 else f32(1 / 13)
        total += image[y : y + height - 2, x : x + width - 2] * weight
    smooth[1 : height - 1, 1 : width - 1] = np.floor(total)
    return blend(smooth, image, magnitude)


def shear(image, x_by, y_by):
    x, y = grid(image)
    return fetch(image, x + f32(x_by) * y, y + f32(y_by) * x)


def translate(image, x_by, y_by):
    x, y = grid(image)
    return fetch(image, x + f32(x_by), y + f32(y_by))


def cutout(image, magnitude, sign):
    half = int(magnitude / 10 * CUTOUT_CONST)
    row, column = image.shape[0] // 2, image.shape[1] // 2
    result = image.copy()
    rows = slice(max(row - half, 0), row + half)
    result[rows, max(column - half, 0) : column + half] = 128
    return result


def shift(magnitude):
    return magnitude / 10 * TRANSLATE_CONST


REFERENCES = {
    "AutoContrast": auto_contrast,
    "Equalize": equalize,
    "Invert": lambda image, magnitude, sign: 255 - image,
    "Rotate": rotate,
    "Posterize": posterize,
    "Solarize": solarize,
    "Color": color,
    "Contrast": contrast,
    "Brightness": lambda image, magnitude, sign: blend(0, image, magnitude),
    "Sharpness": sharpness,
    "ShearX": lambda i, m, sign: shear(i, sign * (m / 10 * 0.3), 0),
    "ShearY": lambda i, m, sign: shear(i, 0, sign * (m / 10 * 0.3)),
    "TranslateX": lambda i, m, sign: translate(i, sign * shift(m), 0),
    "TranslateY": lambda i, m, sign: translate(i, 0, sign * shift(m)),
    "SolarizeAdd": solarize_add,
    "Cutout": cutout,
}


def apply_op(name, image, magnitude, sign):
    return randaugment.apply_op(
        name,
        image,
        magnitude,
        sign=sign,
        cutout_const=CUTOUT_CONST,
        translate_const=TRANSLATE_CONST,
    )


def signs(name):
    return (1, -1) if name in SIGNED else (1,)


def check(result, name, image, magnitude, sign):
    expected = np.ma.array(REFERENCES[name](image, magnitude, sign))
    assert (result.dtype, result.shape) == (np.uint8, image.shape)
    wrong = np.ma.sum(result != expected)
    what = f"{image.shape}, M = {magnitude}, sign {sign}"
    assert not wrong, f"{what}: {wrong} of {expected.count()} bytes differ"
    return expected.count() / image.size


def test_every_operation_has_a_reference():
    assert tuple(REFERENCES) == randaugment.OPS


@pytest.mark.parametrize("name", randaugment.OPS)
def test_any_magnitude_and_size(name):
    compared = []
    for size in SIZES:
        image = make_image(*size)
        for magnitude in MAGNITUDES:
            for sign in signs(name):
                result = apply_op(name, image, magnitude, sign).numpy()
                compared.append(check(result, name, image, magnitude, sign))
    share = np.mean(compared)
    assert share > 0.98, f"only {share:.1%} of the bytes were compared"


@pytest.mark.parametrize("name", randaugment.OPS)
def test_any_size_in_a_graph(name):
    for magnitude in (3, 22.5):

        @tf.function(
            input_signature=[
                tf.TensorSpec([None, None, 3], tf.uint8),
                tf.TensorSpec([], tf.int32),
            ],
            autograph=False,
        )
        def function(image, sign, magnitude=magnitude):
            return apply_op(name, image, magnitude, sign)

        for size in SIZES:
            image = make_image(*size)
            for sign in signs(name):
                result = function(image, sign).numpy()
                check(result, name, image, magnitude, sign)
