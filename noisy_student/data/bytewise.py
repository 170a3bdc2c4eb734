# SPDX-License-Identifier: Apache-2.0
"""RandAugment's operations on single bytes, eight of them in a word at a time.

TensorFlow does one byte in the time of one 64-bit word. None of these carries
from a byte into its neighbour. Each takes and returns uint8 `(H, W, 3)`.
"""

import numpy as np
import tensorflow as tf

from noisy_student.data import geometry


def invert(image):
    """255 less the value."""
    return _bytewise(tf.bitwise.invert, image)


def posterize(image, bits):
    """Keep the leading bits of every value."""
    shift = min((8 - bits) % 256, 7)  # a byte, which TensorFlow clamps to 7
    mask = _spread(0xFF >> shift << shift)
    return _bytewise(lambda words: words & mask, image)


def solarize(image, threshold):
    """Invert the values from the threshold on."""
    threshold %= 256
    if not threshold:
        return invert(image)

    def invert_bright(words):
        # Bright is what has the top bit, or else gets it from the lower seven:
        # both, if the threshold has it.
        sums = (words & _spread(0x7F)) + _spread(-threshold % 128)
        bright = sums | words if threshold <= 128 else sums & words
        return words ^ _filled(bright & _spread(0x80))

    return _bytewise(invert_bright, image)


def solarize_add(image, addition):
    """Brighten the values below 128."""
    addition = min(addition, 255)

    def brighten_dark(words):
        dark = tf.bitwise.invert(words) & _spread(0x80)
        ones = tf.bitwise.right_shift(dark, np.uint64(7))
        if addition <= 128:  # no byte overflows
            return words + ones * np.uint64(addition)
        sums = words + ones * np.uint64(addition - 128)
        return sums | dark | _filled(sums & dark)

    return _bytewise(brighten_dark, image)


def _bytewise(function, image):
    """Apply a function of uint64 words to an image."""
    height, width = geometry.size_of(image)
    length = 3 * height * width
    missing = -length % 8
    values = tf.reshape(image, [length])
    if not isinstance(missing, int) or missing:
        values = tf.pad(values, [[0, missing]])
    words = tf.bitcast(tf.reshape(values, [-1, 8]), tf.uint64)
    values = tf.reshape(tf.bitcast(function(words), tf.uint8), [-1])
    return tf.reshape(tf.slice(values, [0], [length]), tf.shape(image))


def _spread(byte):
    """A word that has the byte eight times."""
    return np.uint64(byte * 0x0101010101010101)


def _filled(top_bits):
    """255 in each byte of the words whose top bit is set, 0 in the others."""
    return tf.bitwise.right_shift(top_bits, np.uint64(7)) * np.uint64(255)
