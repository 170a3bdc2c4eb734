# SPDX-License-Identifier: Apache-2.0
"""Plots that fit a phone and a wide screen, in light and dark.

Shapes are SVG, stretched to the room that there is; all text is HTML around
them, so that it never shrinks. Colors are classes that the page's style sheet
knows, so that they follow the reader's light or dark.
"""

import math

from markupsafe import Markup
from markupsafe import escape

# Line styles of the style sheet: `.line-0` ... `.line-5`.
NUM_LINES = 6


def tag(name, content="", **attributes):
    """An element; attribute values are escaped, `content` is markup.

    Args:
        name: Of the element.
        content: `Markup`, or a text to be escaped.
        **attributes: `class_` for class, `stroke_width` for stroke-width.

    Returns:
        `Markup`.
    """
    text = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
    )
    return Markup(f"<{name}{text}>{escape(content)}</{name}>")


class Axis:
    """From values to percent of the room, with round numbers to mark.

    Args:
        low: Lowest value to be shown.
        high: Highest; the axis is a little longer if that is rounder.
        count: About how many marks.
        spell: Function from a value to the text of its mark.
    """

    def __init__(self, low, high, count=4, spell=None):
        if not high > low:
            low, high = low - 0.5, high + 0.5
        raw = (high - low) / count
        power = 10 ** math.floor(math.log10(raw))
        step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw)
        self.low = math.floor(low / step + 1e-9) * step
        self.high = math.ceil(high / step - 1e-9) * step
        steps = round((self.high - self.low) / step)
        self.ticks = [self.low + step * k for k in range(steps + 1)]
        self.spell = spell or number

    def at(self, value):
        """Percent of the way from low to high."""
        share = (value - self.low) / (self.high - self.low)
        return round(100 * share, 3)

    def marks(self):
        """List of (percent, text)."""
        return [(self.at(tick), self.spell(tick)) for tick in self.ticks]


class Fixed(Axis):
    """An axis that ends where it is told to.

    Args:
        low: Its beginning.
        high: Its end.
        ticks: Values to mark.
        spell: As in `Axis`.
    """

    def __init__(self, low, high, ticks, spell=None):
        self.low, self.high, self.ticks = low, high, ticks
        self.spell = spell or number


def number(value):
    """A number with as many digits as it needs."""
    return f"{value:,.10g}" if abs(value) >= 1 else f"{value:.2g}"


def polyline(points, x, y, **attributes):
    """A line through (x, y) values."""
    path = "M" + "L".join(f"{x.at(a):g} {100 - y.at(b):g}" for a, b in points)
    return tag("path", d=path, vector_effect="non-scaling-stroke", **attributes)


def rectangle(left, right, height, **attributes):
    """A bar that stands on the x axis, all in percent."""
    return tag(
        "rect",
        x=f"{left:g}",
        width=f"{max(0, right - left):g}",
        y=f"{100 - height:g}",
        height=f"{height:g}",
        **attributes,
    )


def plot(title, shapes, x, y, *, x_title, height=200, notes=()):
    """A plot with its axes.

    Args:
        title: What the plot shows, for those who see it and who do not.
        shapes: List of `Markup`, drawn in percent of the room.
        x: The `Axis` below.
        y: The `Axis` on the left.
        x_title: What the values below are.
        height: Pixels.
        notes: List of (percent from the left, text, class): texts that stand
            at the upper edge.

    Returns:
        `Markup`.
    """
    grid = [
        tag(
            "path",
            d=f"M0 {100 - place:g}H100",
            class_="grid",
            vector_effect="non-scaling-stroke",
        )
        for place, _ in y.marks()
    ]
    drawing = tag(
        "svg",
        Markup("").join([*grid, *shapes]),
        viewBox="0 0 100 100",
        preserveAspectRatio="none",
        role="img",
        aria_label=title,
    )
    y_labels = [
        tag("span", text, style=f"bottom:{place:g}%")
        for place, text in y.marks()
    ]
    x_labels = [
        tag("span", text, style=f"left:{place:g}%") for place, text in x.marks()
    ]
    texts = [
        tag("span", text, class_=f"note {css}", style=f"left:{place:g}%")
        for place, text, css in notes
    ]
    parts = [
        tag("div", title, class_="plot-title"),
        tag("div", Markup("").join(y_labels), class_="y-labels"),
        tag("div", drawing + Markup("").join(texts), class_="canvas"),
        tag("div", Markup("").join(x_labels), class_="x-labels"),
        tag("div", x_title, class_="x-title"),
    ]
    return tag(
        "div",
        Markup("").join(parts),
        class_="plot",
        style=f"--height:{height}px",
    )
