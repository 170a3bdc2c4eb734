# SPDX-License-Identifier: Apache-2.0
"""Images of a source as notebooks draw them."""

import io

import numpy as np
import pytest
from PIL import Image

from noisy_student.data import folder_sources
from noisy_student.data import sources
from noisy_student.reporting import contact_sheet
from noisy_student.reporting import pictures


@pytest.fixture
def source(tmp_path, monkeypatch):
    """Five images in shards of two; one of them is none."""
    monkeypatch.setattr(sources, "IMAGES_PER_SHARD", 2)
    for name, count in (("dark", 3), ("light", 2)):
        (tmp_path / name).mkdir()
        for k in range(count):
            gray = 10 * k + (200 if name == "light" else 0)
            image = Image.new("RGB", (20, 12), (gray, gray, gray))
            image.save(tmp_path / name / f"{k}.png")
    (tmp_path / "dark" / "1.png").write_text("no image")
    return folder_sources.class_folders(tmp_path)


def test_thumbnails_come_in_the_order_asked_for(source):
    names = [source.example_name(*divmod(k, 2)) for k in range(5)]
    wanted = ("light/1", "dark/1", "dark/2", "dark/0")
    numbers = [
        next(k for k in range(5) if names[k].endswith(f"{name}.png"))
        for name in wanted
    ]
    found = pictures.thumbnails(source, np.array(numbers), side=8)
    assert list(found) == [numbers[0], *numbers[2:]]
    grays = [int(image.mean()) for image in found.values()]
    assert grays == [210, 20, 0]
    assert all(image.shape == (8, 8, 3) for image in found.values())


def test_images_are_counted_by_class_over_all_shards(source):
    assert len(source.shard_sizes) == 3
    assert sources.images_per_class(source) == {"dark": 3, "light": 2}


def test_a_grid_has_as_many_rows_as_it_needs():
    image = np.full((6, 6, 3), (255, 0, 0), np.uint8)
    long = "a name that is\nfar too long for the width of a picture"
    sizes = []
    for count in (1, 3, 4):
        content = contact_sheet.grid([(long, image)] * count, columns=3)
        with Image.open(io.BytesIO(content)) as sheet:
            pixels = np.asarray(sheet)
            sizes.append(sheet.size)
        red = (pixels == (255, 0, 0)).all(axis=-1).sum()
        assert red == count * contact_sheet.TILE**2
        # Words that left their picture would be in the margin.
        paper = pixels[0, 0]
        assert (pixels[:, -contact_sheet.MARGIN :] == paper).all()
    (one, low), (three, same), (also_three, high) = sizes
    assert one < three == also_three and low == same < high


@pytest.mark.parametrize("size", [8, 200])
def test_pixels_without_noise_are_drawn(size):
    """They are float32, and a bicubic kernel goes beyond the scale."""
    floats = np.full((size, size, 3), -20.0, np.float32)
    floats[: size // 2] = [300.0, 127.6, 0.4]
    whole = np.zeros((size, size, 3), np.uint8)
    whole[: size // 2] = [255, 128, 0]
    drawn, expected = (
        contact_sheet.draw_batch([("", [("name", pixels)])])
        for pixels in (floats, whole)
    )
    assert drawn == expected
