# SPDX-License-Identifier: Apache-2.0
"""Counts what an EfficientNet costs, from the table of its stages.

Nothing is built, so the answer for L2 takes a millisecond, not a minute. Tests
compare every number with networks that are built.
"""

import dataclasses
import math

from noisy_student.models import efficientnet
from noisy_student.models import mbconv


@dataclasses.dataclass(frozen=True)
class Costs:
    """Numbers of values and operations of one network.

    Attributes:
        parameters: Trainable values.
        statistics: Moving means and variances, which are not trained.
        multiply_adds: Of the convolutions and the last layer in the forward
            pass of one image; the EfficientNet paper calls them FLOPS.
        activations: Values that one image keeps for backpropagation: the inputs
            of each convolution, BatchNormalization and swish, and both factors
            of each squeeze-and-excitation.
        block_inputs: Values among them that enter the stem, a block or the top.
        largest_block: Most values that one of these keeps.
    """

    parameters: int
    statistics: int
    multiply_adds: int
    activations: int
    block_inputs: int
    largest_block: int


class _Counter:
    """Running totals over the layers of a network."""

    def __init__(self):
        self.parameters = self.statistics = self.multiply_adds = 0
        self.inputs, self.kept = [], []  # of the stem, each block, the top

    def block(self, inputs):
        self.inputs.append(inputs)
        self.kept.append(inputs)

    def conv(self, fan_in, filters, kernel_size, side, kept):
        """Adds a convolution without bias and its BatchNormalization."""
        kernel = kernel_size**2 * fan_in * filters
        self.parameters += kernel + 2 * filters
        self.statistics += 2 * filters
        self.multiply_adds += kernel * side**2
        self.kept[-1] += kept * filters * side**2

    def dense(self, fan_in, units, kept):
        """Adds a layer with bias on one pixel."""
        self.parameters += fan_in * units + units
        self.multiply_adds += fan_in * units
        self.kept[-1] += kept


def costs(
    variant,
    num_classes=1000,
    *,
    image_size=None,
    small_images=False,
    width=None,
    depth=None,
):
    """Counts what `efficientnet.build_model` of the same arguments builds.

    Args:
        variant: A name in `efficientnet.VARIANTS`.
        num_classes: C.
        image_size: H = W in pixels; the variant's training size by default.
        small_images: Whether stages 2 and 3 have stride 1.
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

    count = _Counter()
    count.block(inputs=3 * image_size**2)  # normalized pixels
    side = math.ceil(image_size / 2)
    channels = efficientnet.round_filters(efficientnet.STEM_FILTERS, width)
    # The inputs of BatchNormalization and swish.
    count.conv(3, channels, 3, side, kept=2)
    for stage in efficientnet.scaled_stages(width, depth, small_images):
        for repeat in range(stage.repeats):
            count.block(inputs=channels * side**2)
            expanded = channels * stage.expand_ratio
            # Beside these two, the input of the next convolution.
            if stage.expand_ratio != 1:
                count.conv(channels, expanded, 1, side, kept=3)
            if repeat == 0 and stage.stride == 2:
                side = math.ceil(side / 2)
            # A depthwise filter has one input channel.
            count.conv(1, expanded, stage.kernel_size, side, kept=3)
            # Squeeze-and-excitation: the inputs of both layers and of swish,
            # the gates, and their product with the image.
            squeezed = max(1, int(channels * mbconv.SQUEEZE_RATIO))
            count.dense(expanded, squeezed, kept=expanded + squeezed)
            count.dense(squeezed, expanded, kept=squeezed + expanded)
            count.conv(expanded, stage.filters, 1, side, kept=1)
            count.kept[-1] += expanded * side**2
            channels = stage.filters
    count.block(inputs=channels * side**2)
    top = efficientnet.round_filters(efficientnet.TOP_FILTERS, width)
    # Global average pooling needs no input for its gradient.
    count.conv(channels, top, 1, side, kept=2)
    count.dense(top, num_classes, kept=top)
    return Costs(
        parameters=count.parameters,
        statistics=count.statistics,
        multiply_adds=count.multiply_adds,
        activations=sum(count.kept),
        block_inputs=sum(count.inputs),
        largest_block=max(count.kept),
    )
