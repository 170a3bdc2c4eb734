# SPDX-License-Identifier: Apache-2.0
"""The noise of the input: crop, flip and RandAugment, as a recipe wants them.

It works on single uint8 images on the host, so that the accelerator gets
bytes, and is a function of the image and its seed alone.
"""

import tensorflow as tf

from noisy_student.data import decoding
from noisy_student.data import preprocessing
from noisy_student.data import randaugment


def make_augment(
    *,
    image_size,
    crop="resized",
    random_crop=True,
    crop_padding=4,
    flip=True,
    randaugment_num_ops=2,
    randaugment_magnitude=27,
    cutout_const=40,
    translate_const=100,
    randaugment_contrast="official",
    randaugment_ops="official",
    cutout_size=0,
):
    """Build the noise of the input for one kind of image.

    Args:
        image_size: S in pixels.
        crop: `resized` for the random-resized crop of ImageNet, `padded` for
            pad-and-crop of small images.
        random_crop: Whether to crop and mirror at random at all; otherwise
            the other noises meet the image as it is evaluated.
        crop_padding: Pixels of padding on each side, for `padded`.
        flip: Whether to mirror half of the images.
        randaugment_num_ops: N operations an image; 0 for none.
        randaugment_magnitude: M, in `[0, 30]`.
        cutout_const: Half side of Cutout's hole at magnitude 10, in pixels.
        translate_const: Shift of TranslateX/Y at magnitude 10, in pixels.
        randaugment_contrast: `official` or `corrected`, the grey that Contrast
            blends with.
        randaugment_ops: `official` or `paper`, the operations to draw from.
        cutout_size: Side of a hole that is always cut, in pixels; 0 for none.

    Returns:
        Function from (encoded image, string scalar; seed, int64 `(2,)`) to an
        image `(S, S, 3)`: uint8, or, if nothing disturbs it, the float32 view
        of evaluation, which is not clipped to `[0, 255]`.

    Reference: noisystudent/preprocessing.py: RandAugment follows the crop on
    large images, and comes before it on small ones.
    """
    ops = randaugment.OP_SETS[randaugment_ops]

    def noise(pixels, seed):
        erased = randaugment.erases(
            randaugment_num_ops,
            randaugment_magnitude,
            image_size,
            seed=seed,
            translate_const=translate_const,
            ops=ops,
        )
        if erased is None:
            image = pixels()
        else:
            # Any image does where nothing is left of it: this one costs less.
            black = tf.zeros([image_size, image_size, 3], tf.uint8)
            image = tf.cond(erased, lambda: black, pixels)
        image = randaugment.randaugment(
            image,
            randaugment_num_ops,
            randaugment_magnitude,
            seed=seed,
            cutout_const=cutout_const,
            translate_const=translate_const,
            contrast=randaugment_contrast,
            ops=ops,
        )
        if cutout_size:
            image = randaugment.cutout(image, cutout_size // 2, seed=seed + 1)
        return image

    def view(image_bytes):
        if crop == "resized":
            return preprocessing.center_crop(image_bytes, image_size)
        image = decoding.decode(image_bytes)
        return tf.cast(preprocessing.resize(image, image_size), tf.float32)

    def augment(image_bytes, seed):
        if not (random_crop or randaugment_num_ops or cutout_size):
            return view(image_bytes)
        # `split` draws other numbers for int32, which a notebook would give.
        seeds = tf.random.split(tf.cast(seed, tf.int64), 3)

        def mirrored(image):
            if not flip:
                return image
            return preprocessing.random_flip(image, seed=seeds[1])

        def whole():
            image = decoding.decode(image_bytes)
            return preprocessing.resize(image, image_size)

        def window():
            return mirrored(
                preprocessing.random_resized_crop(
                    image_bytes, image_size, seed=seeds[0]
                )
            )

        def clipped():
            return preprocessing.to_uint8(view(image_bytes))

        if not random_crop:
            return noise(clipped, seeds[2])
        if crop == "resized":
            return noise(window, seeds[2])
        image = noise(whole, seeds[2])
        if crop_padding:
            image = preprocessing.pad_and_crop(
                image, crop_padding, seed=seeds[0]
            )
        return mirrored(image)

    return augment
