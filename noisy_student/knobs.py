# SPDX-License-Identifier: Apache-2.0
"""What a field of `Config` is made of, and how its value is checked.

A knob carries its own documentation, choices and range, from which its flag,
its help and its error message follow.
"""

import dataclasses
import math
import types
import typing

from noisy_student import files
from noisy_student.errors import UserError

# What may have another value: each student, or the teacher too.
STUDENT, MODEL = "student", "model"
# What a text is, if it is a path: of one thing, or globs of several.
PATH, PATTERNS = "path", "patterns"
FILE = "run.flags"  # which remembers the settings of a run
MOST = 2**31 - 1  # where no other limit is set


def knob(
    default,
    help,
    choices=(),
    low=None,
    high=None,
    free=False,
    kind=None,
    per=None,
):
    """A field of a dataclass with its documentation.

    Args:
        default: Its value; `None` means that something else decides.
        help: A sentence, with the section of the paper where there is one.
        choices: The values that are allowed, if not all.
        low: Lowest value.
        high: Highest value.
        free: Whether it may change between two commands on one workdir,
            because no weight, label or result depends on it.
        kind: `PATH` or `PATTERNS`.
        per: `STUDENT` or `MODEL` if it may be a list of numbers: one for each
            student, or for the teacher and each student.

    Returns:
        A `dataclasses.field`.
    """
    metadata = {
        "help": help,
        "choices": tuple(choices),
        "low": low,
        "high": high,
        "free": free,
        "kind": kind,
        "per": per,
    }
    return dataclasses.field(default=default, metadata=metadata)


def check(field, value):
    """Refuse a value that is out of range, naming the flag.

    Args:
        field: Of `dataclasses.fields`, made by `knob`.
        value: `None` is always allowed.

    Raises:
        UserError: If the value is none of the choices or out of range.
    """
    low, high = field.metadata["low"], field.metadata["high"]
    choices = field.metadata["choices"]
    if value is None:
        return
    if choices and value not in choices:
        raise UserError(
            f"--{field.name} must be one of {', '.join(choices)}, not {value!r}"
        )
    if field.metadata["per"]:
        for number in each(field, value):
            _check_range(field, number, low, high)
        return
    _check_range(field, value, low, high)


def each(field, value):
    """The values of a setting that may be a list.

    Args:
        field: One with a `per`.
        value: A number, or a text such as `700,350`.

    Returns:
        Tuple of floats.

    Raises:
        UserError: If it is anything else.
    """
    try:
        return tuple(float(part) for part in str(value).split(","))
    except ValueError:
        raise UserError(
            f"--{field.name} must be a number, or several with commas between "
            f"them, not {value!r}"
        ) from None


def _check_range(field, value, low, high):
    if isinstance(value, int | float) and high is None:
        high = MOST
    # Written so that NaN, which is neither below nor above, is refused.
    too_low = low is not None and not value >= low
    if too_low or (high is not None and not value <= high):
        bounds = f"from {low} to {high}"
        if high is None or (high == MOST and too_low):
            bounds = f"at least {low}"
        # Percent, where a fraction is asked for.
        percent = high is not None and high <= 1 < value <= 100
        hint = f", such as {value / 100:g} for {value:g} %" if percent else ""
        raise UserError(f"--{field.name} must be {bounds}{hint}, not {value}")


def respelled(field, value, spelling=files.tidy):
    """A path in one spelling; any other value as it is.

    Args:
        field: As in `check`.
        value: Of it.
        spelling: Function of a path: `files.tidy`, `absolute` or `short`.

    Raises:
        UserError: If a file of settings cannot hold the text.
    """
    kind = field.metadata["kind"]
    if not value:
        return value
    if kind == PATH:
        value = spelling(value)
    elif kind == PATTERNS:
        value = files.each_pattern(spelling, value)
    if isinstance(value, str) and field.name not in ("input", "output"):
        if "\n" in value or "\r" in value:
            raise UserError(
                f"--{field.name}={value!r} has a line break, which {FILE} "
                "cannot hold: rename it"
            )
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"--{field.name}={value!r} is no UTF-8, which {FILE} must be: "
                "rename it"
            ) from None
    return value


def numbers(name, text, example, count=None, low=0.0, high=1e4):
    """Read numbers that are separated by commas.

    Args:
        name: Of the flag, for the error message.
        text: Such as `14,14,28`.
        example: What to show a user who got it wrong.
        count: How many there must be; any number by default.
        low: Below all of them; None if 0 is allowed, but nothing below.
        high: The largest that is allowed.

    Returns:
        Tuple of floats.

    Raises:
        UserError: If it is anything else.
    """
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = (math.nan,)
    above = [0 <= v if low is None else low < v for v in values]
    if not all(a and v <= high for a, v in zip(above, values, strict=True)) or (
        count and len(values) != count
    ):
        bounds = "from 0" if low is None else f"above {low:g}"
        raise UserError(
            f"--{name} must be {count or 'some'} numbers {bounds} and up to "
            f"{high:g}, such as {example}, not {text!r}"
        )
    return values


def spell(field, value):
    """A value as the command line writes it."""
    if value is None:
        return "" if is_text(field) else "auto"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def is_text(field):
    """Whether a setting is a text, whose None is spelled as nothing."""
    return base_type(field) is str


def base_type(field):
    """The type of a setting that is not None."""
    if is_optional(field):
        return next(
            t for t in typing.get_args(field.type) if t is not type(None)
        )
    return field.type


def is_optional(field):
    """Whether a setting may be None."""
    return isinstance(field.type, types.UnionType)
