# SPDX-License-Identifier: Apache-2.0
"""What an EfficientNet costs, by arithmetic from the table of stages.

Nothing is built, so the answer for L2 takes a millisecond instead of a
minute. The tests compare every number with networks that are built, and with
the tensors that TensorFlow's own gradient asks for. What it does not do: turn
values into bytes or seconds (`reporting/plan.py`).
"""

import dataclasses
import math

from noisy_student.models import efficientnet
from noisy_student.models import mbconv


@dataclasses.dataclass(frozen=True)
class Part:
    """What the stem, a block or the end keeps for its gradients.

    In float values of one image. Where activations are bfloat16, some stay
    float32: the inputs of BatchNormalizations, which compute in it, and that
    of the last layer.

    Attributes:
        inputs: What it computes from, which no other part counts.
        inside: What else it keeps.
        float32_inside: How much of `inside` stays float32.
        largest: The largest single tensor of `inside`.
    """

    inputs: int
    inside: int
    float32_inside: int
    largest: int


@dataclasses.dataclass(frozen=True)
class Costs:
    """What one network needs, in numbers of values and operations.

    Attributes:
        parameters: Trainable values: kernels, biases, and gamma and beta of
            each BatchNormalization.
        statistics: Moving means and variances, which are not trained.
        multiply_adds: Of one image on its way forward, in the convolutions
            (depthwise and squeeze-and-excitation included) and the last
            layer; what the EfficientNet paper calls FLOPS. Biases,
            normalization, activations and pooling are not counted.
        parts: The `Part`s: the stem, each block, and what follows them.
    """

    parameters: int
    statistics: int
    multiply_adds: int
    parts: tuple[Part, ...]

    @property
    def activations(self):
        """Float values of one image that the gradients need.

        They stay in memory from the way forward until the gradients have used
        them, as TensorFlow's graph keeps them: the inputs of all convolutions,
        of the last layer, of each BatchNormalization and of each swish, and
        both factors of each squeeze-and-excitation. Gradients, which come and
        go, the loss and the masks of the noise are not counted.
        """
        return sum(part.inputs + part.inside for part in self.parts)

    @property
    def blocks(self):
        """L, the number of MBConv blocks."""
        return len(self.parts) - 2


def costs(
    variant,
    num_classes=1000,
    *,
    image_size=None,
    small_images=False,
    width=None,
    depth=None,
):
    """Count what `efficientnet.build_model` of the same arguments makes.

    Args:
        variant: A name in `efficientnet.VARIANTS`.
        num_classes: C.
        image_size: H = W in pixels; those the variant is trained at by
            default.
        small_images: Stages 2 and 3 at stride 1.
        width: Overrides the variant's channel multiplier.
        depth: Overrides the variant's repeat multiplier.

    Returns:
        `Costs`.

    Raises:
        KeyError: For an unknown variant.

    Reference: arXiv:1905.11946, table 2.
    """
    defaults = efficientnet.VARIANTS[variant]
    width = defaults.width if width is None else width
    depth = defaults.depth if depth is None else depth
    if image_size is None:
        image_size = defaults.train_image_size or defaults.image_size

    tally = _Tally()
    # The normalized pixels are the input of the first convolution.
    tally.begin(3 * image_size**2)
    side = _halved(image_size)
    channels = efficientnet.round_filters(efficientnet.STEM_FILTERS, width)
    tally.conv(3, channels, 3, side)
    tally.keep(channels * side**2, float32=True)
    tally.keep(channels * side**2)
    tally.begin(channels * side**2)
    stages = efficientnet.scaled_stages(width, depth, small_images)
    for stage in stages:
        for repeat in range(stage.repeats):
            stride = stage.stride if repeat == 0 else 1
            side = tally.block(stage, stride, channels, side)
            channels = stage.filters
    top = efficientnet.round_filters(efficientnet.TOP_FILTERS, width)
    tally.conv(channels, top, 1, side)
    # What follows this swish is a mean over the pixels, which needs no input.
    tally.keep(top * side**2, float32=True)
    tally.keep(top * side**2)
    tally.dense(top, num_classes)
    tally.keep(top, float32=True)
    return Costs(
        parameters=tally.parameters,
        statistics=tally.statistics,
        multiply_adds=tally.multiply_adds,
        parts=tuple(Part(**part) for part in tally.parts),
    )


class _Tally:
    """Running totals while the network is walked through."""

    def __init__(self):
        self.parameters = 0
        self.statistics = 0
        self.multiply_adds = 0
        self.parts = []

    def conv(self, fan_in, filters, kernel_size, side):
        """A convolution without bias, and its BatchNormalization."""
        kernel = kernel_size**2 * fan_in * filters
        self.parameters += kernel + 2 * filters
        self.statistics += 2 * filters
        self.multiply_adds += kernel * side**2

    def dense(self, fan_in, units):
        """A layer with bias on one pixel."""
        self.parameters += fan_in * units + units
        self.multiply_adds += fan_in * units

    def begin(self, size):
        """A part of the network, from its input."""
        self.parts.append(
            {"inputs": size, "inside": 0, "float32_inside": 0, "largest": 0}
        )

    def keep(self, size, float32=False):
        """A tensor that the gradients will ask for."""
        part = self.parts[-1]
        part["inside"] += size
        part["float32_inside"] += size * float32
        part["largest"] = max(part["largest"], size)

    def block(self, stage, stride, channels, side):
        """An MBConv block.

        Args:
            stage: The `efficientnet.Stage`.
            stride: Of its depthwise convolution.
            channels: Of its input.
            side: H = W of its input.

        Returns:
            H = W of its output.
        """
        expanded = channels * stage.expand_ratio

        # Of a convolution, its BatchNormalization and its swish, all three
        # outputs: swish recomputes what it needs from its input.
        def keep_expanded():
            self.keep(expanded * side**2, float32=True)
            self.keep(expanded * side**2)
            self.keep(expanded * side**2)

        if stage.expand_ratio != 1:
            self.conv(channels, expanded, 1, side)
            keep_expanded()
        if stride == 2:
            side = _halved(side)
        # A depthwise filter sees one channel.
        self.conv(1, expanded, stage.kernel_size, side)
        keep_expanded()

        squeezed = max(1, int(channels * mbconv.SQUEEZE_RATIO))
        self.dense(expanded, squeezed)
        self.dense(squeezed, expanded)
        # The mean, the squeezed values before and after swish, the gates.
        self.keep(expanded + squeezed + squeezed + expanded)
        # The product with the gates.
        self.keep(expanded * side**2)

        self.conv(expanded, stage.filters, 1, side)
        # The input of its BatchNormalization, and what the next part gets;
        # in between, dropping and adding need no values.
        self.keep(stage.filters * side**2, float32=True)
        self.begin(stage.filters * side**2)
        return side


def _halved(side):
    """Pixels after stride 2 with padding "same": odd sizes round up."""
    return math.ceil(side / 2)
