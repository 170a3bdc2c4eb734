# SPDX-License-Identifier: Apache-2.0
"""Bytes are the same everywhere; what RandAugment erases is not decoded."""

import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from conftest import REPOSITORY

from noisy_student.data import augmentation
from noisy_student.data import preprocessing
from noisy_student.data import randaugment

SIZE = 24
SEEDS = [tf.constant([seed, 5], tf.int64) for seed in range(60)]


def jpeg():
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (40, 50, 3)).astype(np.uint8)
    return tf.io.encode_jpeg(image)


@pytest.mark.parametrize(
    "how",
    [{"crop": "resized"}, {"crop": "padded"}, {"random_crop": False}],
    ids=str,
)
def test_what_is_erased_is_not_decoded(monkeypatch, how):
    def augment():
        function = augmentation.make_augment(
            image_size=SIZE, randaugment_magnitude=27, **how
        )
        return tf.function(function, autograph=False).get_concrete_function(
            tf.TensorSpec([], tf.string), tf.TensorSpec([2], tf.int64)
        )

    fast = augment()
    monkeypatch.setattr(randaugment, "erases", lambda *_, **__: None)
    decoding_all = augment()
    spared = 0
    for seed in SEEDS:
        expected = decoding_all(jpeg(), seed)
        wrong = np.count_nonzero(fast(jpeg(), seed) != expected)
        assert not wrong, f"{wrong} bytes differ for seed {seed.numpy()}"
        try:
            of_nothing = fast(tf.constant(b"no image"), seed)
            np.testing.assert_array_equal(of_nothing, expected)
            spared += 1
        except tf.errors.InvalidArgumentError:
            pass
    share = 1 - (14 / 16) ** 2  # that none of two is TranslateX or TranslateY
    limit = 4 * np.sqrt(share * (1 - share) / len(SEEDS))
    assert abs(spared / len(SEEDS) - share) < limit, f"{spared} not decoded"


@pytest.mark.parametrize("name", ["TranslateX", "TranslateY"])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("known", [True, False])
def test_a_translation_erases_from_the_images_side_on(name, sign, known):
    @tf.function(
        input_signature=[
            tf.TensorSpec([SIZE, SIZE, 3] if known else [None] * 3, tf.uint8)
        ]
    )
    def translate(image):
        return [
            randaugment.apply_op(
                name, image, 10, sign=sign, translate_const=pixels
            )
            for pixels in (SIZE - 1, SIZE, SIZE + 0.5)
        ]

    image = np.full((SIZE, SIZE, 3), 7, np.uint8)
    kept, none, beyond = (result.numpy() for result in translate(image))
    assert np.count_nonzero(kept == 7) == 3 * SIZE
    assert (none == 128).all()
    assert (beyond == 128).all()


def test_shorter_translations_erase_nothing():
    def erases(num_ops, magnitude, image_size):
        return randaugment.erases(
            num_ops, magnitude, image_size, seed=SEEDS[0], translate_const=100
        )

    assert erases(2, 27, 271) is None
    assert erases(2, 26.9, 270) is None
    assert erases(0, 27, 96) is None
    assert erases(2, 27, 270) is not None


def test_evaluation_decodes_everything():
    see = augmentation.make_augment(
        image_size=SIZE, random_crop=False, randaugment_num_ops=0
    )
    view = preprocessing.center_crop(jpeg(), SIZE)
    np.testing.assert_array_equal(see(jpeg(), SEEDS[0]), view)


DIGESTS = """
import hashlib
import numpy as np
import tensorflow as tf
from noisy_student.data import augmentation

rng = np.random.default_rng(0)
images = rng.integers(0, 256, (24, 50, 40, 3)).astype(np.uint8)
png = [tf.io.encode_png(image).numpy() for image in images]
jpeg = [tf.io.encode_jpeg(image).numpy() for image in images]
views = [
    dict(randaugment_num_ops=1, translate_const=4),
    dict(randaugment_num_ops=0, crop="padded", cutout_size=8),
    dict(randaugment_num_ops=0, random_crop=False),
    dict(randaugment_num_ops=0, random_crop=False, crop="padded"),
]
functions = {
    str(view): augmentation.make_augment(image_size=32, **view)
    for view in views
}
for name, function in functions.items():
    digest = hashlib.sha256()
    rows = tf.data.Dataset.from_tensor_slices(png + jpeg).enumerate()
    for image in rows.map(lambda i, row: function(row, tf.stack([i, 1]))):
        digest.update(image.numpy().tobytes())
    print(name, digest.hexdigest())
"""


@pytest.mark.slow
def test_views_have_the_same_bytes_with_onednn_and_without():
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", DIGESTS],
            env=os.environ | {"TF_ENABLE_ONEDNN_OPTS": setting},
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
        )
        for setting in "01"
    ]
    without, with_onednn = (p.communicate()[0] for p in processes)
    assert with_onednn == without
    assert without.count("\n") == 4
