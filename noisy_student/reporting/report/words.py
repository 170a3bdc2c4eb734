# SPDX-License-Identifier: Apache-2.0
"""Numbers as the page spells them."""


def percent(value, digits=1):
    """A share in [0, 1]; a dash for None."""
    return "–" if value is None else f"{100 * value:.{digits}f}%"


def count(value):
    """A number of things: exact below a million."""
    if value is None:
        return "–"
    for unit, letter in ((1e9, "B"), (1e6, "M")):
        if value >= unit:
            return f"{value / unit:.3g} {letter}"
    return f"{value:,}"


def duration(seconds):
    """A time of any length, in its two largest units."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, seconds = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24} h"


def name(text, length=80):
    """A name that somebody else chose, at a length that a page can bear."""
    text = str(text)
    return text if len(text) <= length else text[: length - 1] + "…"


def plural(number, thing):
    """`1 image`, `2 images`, `2 classes`."""
    ending = "es" if thing.endswith("s") else "s"
    return f"{count(number)} {thing}{'' if number == 1 else ending}"
