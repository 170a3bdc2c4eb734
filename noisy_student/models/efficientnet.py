# SPDX-License-Identifier: Apache-2.0
"""EfficientNet B0-B7 and the paper's L0, L1, L2, from one table.

The networks of the official Noisy Student code: stochastic depth over the
scaled number of blocks, float32 logits, and normalization as the first layer,
so that a saved model takes plain pixels. Layers carry the names that
`keras.applications` gives them, which is where checkpoints of other projects
meet ours. What it does not do: load weights (`import_weights`), train.
"""

import dataclasses
import math
import sys

import keras

from noisy_student.models.mbconv import LayerFactory
from noisy_student.models.mbconv import mbconv
from noisy_student.models.stochastic_depth import stochastic_depth_rates

# Keras walks through a network by recursion, ten calls for each block: with
# Python's limit of 1000, the 88 blocks of l2 fail in a notebook (measured).
sys.setrecursionlimit(max(sys.getrecursionlimit(), 10_000))

# ImageNet's channel statistics on the 0..255 scale (official code, main.py).
IMAGENET_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
IMAGENET_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)


@dataclasses.dataclass(frozen=True)
class Variant:
    """How one member of the family scales the baseline.

    Attributes:
        width: Multiplier of the channels.
        depth: Multiplier of the repeats of each stage.
        image_size: Pixels at which it is evaluated.
        dropout_rate: Dropout before the last layer.
        train_image_size: Pixels at which it is trained, if that is less.
    """

    width: float
    depth: float
    image_size: int
    dropout_rate: float
    train_image_size: int | None = None


# b0-b7, l2: efficientnet_builder.py. l0, l1: arXiv:1911.04252v1, table of
# architectures; their dropout is the paper's 0.5 for models from B7 upwards.
# The l models are finetuned at more pixels than they are trained at (FixRes).
VARIANTS = {
    "b0": Variant(1.0, 1.0, 224, 0.2),
    "b1": Variant(1.0, 1.1, 240, 0.2),
    "b2": Variant(1.1, 1.2, 260, 0.3),
    "b3": Variant(1.2, 1.4, 300, 0.3),
    "b4": Variant(1.4, 1.8, 380, 0.4),
    "b5": Variant(1.6, 2.2, 456, 0.4),
    "b6": Variant(1.8, 2.6, 528, 0.5),
    "b7": Variant(2.0, 3.1, 600, 0.5),
    "l0": Variant(2.8, 3.7, 600, 0.5, train_image_size=380),
    "l1": Variant(3.9, 3.7, 600, 0.5, train_image_size=380),
    "l2": Variant(4.3, 5.3, 800, 0.5, train_image_size=475),
}


@dataclasses.dataclass(frozen=True)
class Stage:
    """One row of the baseline: `repeats` MBConv blocks of one shape."""

    repeats: int
    kernel_size: int
    stride: int
    expand_ratio: int
    filters: int


# Keras's name for each dtype that the activations can have.
DTYPES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}

# EfficientNet-B0 (arXiv:1905.11946, table 1).
STAGES = (
    Stage(repeats=1, kernel_size=3, stride=1, expand_ratio=1, filters=16),
    Stage(repeats=2, kernel_size=3, stride=2, expand_ratio=6, filters=24),
    Stage(repeats=2, kernel_size=5, stride=2, expand_ratio=6, filters=40),
    Stage(repeats=3, kernel_size=3, stride=2, expand_ratio=6, filters=80),
    Stage(repeats=3, kernel_size=5, stride=1, expand_ratio=6, filters=112),
    Stage(repeats=4, kernel_size=5, stride=2, expand_ratio=6, filters=192),
    Stage(repeats=1, kernel_size=3, stride=1, expand_ratio=6, filters=320),
)
STEM_FILTERS = 32
TOP_FILTERS = 1280


def round_filters(filters, width):
    """Scale a number of channels and round it to a multiple of 8.

    Args:
        filters: Channels of the baseline.
        width: Width multiplier.

    Returns:
        The nearest multiple of 8, at least 8, never more than 10 % below
        `filters * width`.
    """
    scaled = filters * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    if rounded < 0.9 * scaled:
        rounded += 8
    return rounded


def scaled_stages(width, depth, small_images=False):
    """The table of stages after scaling.

    Args:
        width: Channel multiplier.
        depth: Repeat multiplier; repeats are rounded up.
        small_images: Whether stages 2 and 3 keep their resolution.

    Returns:
        Tuple of `Stage`.
    """
    stages = []
    for number, stage in enumerate(STAGES, start=1):
        keeps_resolution = small_images and number in (2, 3)
        stages.append(
            dataclasses.replace(
                stage,
                repeats=math.ceil(stage.repeats * depth),
                stride=1 if keeps_resolution else stage.stride,
                filters=round_filters(stage.filters, width),
            )
        )
    return tuple(stages)


def build_model(
    variant="b0",
    num_classes=1000,
    *,
    image_size=None,
    dropout_rate=None,
    stochastic_depth_rate=0.2,
    small_images=False,
    width=None,
    depth=None,
    include_top=True,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    batch_norm_momentum=0.99,
    dtype="float32",
):
    """Build an EfficientNet that eats pixels and returns logits.

    Args:
        variant: A name in `VARIANTS`.
        num_classes: C, the number of classes.
        image_size: H = W in pixels; the variant's own by default.
        dropout_rate: In `[0, 1)`; the variant's own by default.
        stochastic_depth_rate: Drop rate at the last block, growing linearly
            from 0 at the first (see `stochastic_depth_rates`).
        small_images: Stages 2 and 3 at stride 1, for 32-pixel images
            (official code, `small_image_model`).
        width: Overrides the variant's channel multiplier.
        depth: Overrides the variant's repeat multiplier.
        include_top: Whether to pool and classify; otherwise the model returns
            the last feature map.
        mean: Three floats on the 0..255 scale, subtracted from the pixels.
        std: Three floats on the 0..255 scale, divided by.
        batch_norm_momentum: Of the moving statistics; 0.99 in the paper,
            smaller for runs of a few hundred steps.
        dtype: Of the activations, `float32` or `bfloat16`. Weights, moving
            statistics, normalization of pixels and logits are float32 always,
            and BatchNormalization computes in it (Keras's `mixed_bfloat16`).
            It is each layer's own: Keras's global policy is neither asked nor
            changed.

    Returns:
        A `keras.Model` from pixels in `[0, 255]`, uint8 or float,
        `(N, H, W, 3)`, to float32 logits `(N, C)`.

    Raises:
        ValueError: For an unknown variant or dtype.

    Reference: arXiv:1905.11946; noisystudent/efficientnet_model.py.
    """
    if variant not in VARIANTS:
        raise ValueError(
            f"variant must be one of {', '.join(VARIANTS)}; got {variant!r}"
        )
    if dtype not in DTYPES:
        raise ValueError(
            f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}"
        )
    defaults = VARIANTS[variant]
    width = defaults.width if width is None else width
    depth = defaults.depth if depth is None else depth
    image_size = defaults.image_size if image_size is None else image_size
    if dropout_rate is None:
        dropout_rate = defaults.dropout_rate
    make = LayerFactory(batch_norm_momentum, DTYPES[dtype])

    # Declared float32: Keras casts uint8 pixels on the device, so the host
    # still sends one byte a value, and float pixels lose nothing.
    pixels = keras.Input((image_size, image_size, 3), name="pixels")
    x = keras.layers.Rescaling(
        scale=[1 / s for s in std],
        offset=[-m / s for m, s in zip(mean, std, strict=True)],
        dtype="float32",
        name="normalization",
    )(pixels)
    x = make.conv(round_filters(STEM_FILTERS, width), 3, "stem_conv", 2)(x)
    x = make.bn("stem_bn")(x)
    x = make.swish("stem_activation")(x)

    stages = scaled_stages(width, depth, small_images)
    rates = iter(
        stochastic_depth_rates(
            sum(stage.repeats for stage in stages), stochastic_depth_rate
        )
    )
    for number, stage in enumerate(stages, start=1):
        for repeat in range(stage.repeats):
            x = mbconv(
                x,
                make,
                stage,
                stride=stage.stride if repeat == 0 else 1,
                drop_rate=next(rates),
                name=f"block{number}{_letters(repeat)}_",
            )

    x = make.conv(round_filters(TOP_FILTERS, width), 1, "top_conv")(x)
    x = make.bn("top_bn")(x)
    x = make.swish("top_activation")(x)
    if include_top:
        x = make.average("avg_pool")(x)
        x = make.dropout(dropout_rate, "top_dropout")(x)
        x = keras.layers.Dense(
            num_classes,
            # U(-1/sqrt(C), 1/sqrt(C)), as the official dense initializer.
            kernel_initializer=keras.initializers.VarianceScaling(
                1 / 3, mode="fan_out", distribution="uniform"
            ),
            dtype="float32",
            name="predictions",
        )(x)
    return keras.Model(pixels, x, name=f"efficientnet-{variant}")


def stem_of(network):
    """The layers of a network's stem that hold weights or noise."""
    return [network.get_layer("stem_conv"), network.get_layer("stem_bn")]


def blocks_of(network):
    """The layers of a network, block by block.

    Args:
        network: Of `build_model`.

    Returns:
        List of L lists of layers, in the order of the official `blocks_<i>`.
    """
    blocks = {}
    for layer in network.layers:
        if layer.name.startswith("block"):
            blocks.setdefault(layer.name.split("_")[0], []).append(layer)
    return list(blocks.values())


def _letters(repeat):
    """`a`, `b`, ... for repeat 0, 1, ..., as in `keras.applications`."""
    # l2 repeats a stage 22 times, so 26 letters are enough.
    return chr(ord("a") + repeat)
