# SPDX-License-Identifier: Apache-2.0
"""Figures of the report, made of the facts: `Markup` for the page."""

import numpy as np
from markupsafe import Markup

from noisy_student.reporting.report import plots
from noisy_student.reporting.report import words
from noisy_student.reporting.report.facts import CURVES
from noisy_student.reporting.report.labels import BINS


def accuracy_axis(models):
    """An axis for the accuracies and their intervals, as close as it can be.

    Args:
        models: Of `facts.models`; one at least has an accuracy.

    Returns:
        `plots.Axis`.
    """
    known = [model for model in models if model["top1"] is not None]
    low = min(model["low"] for model in known)
    high = max(model["high"] for model in known)
    return plots.Axis(low, high, spell=lambda v: words.percent(v, 0))


def accuracy_strip(model, axis):
    """One model's accuracy as a dot in its interval, on a strip."""
    if model["top1"] is None:
        return Markup("")

    def stroke(css, path):
        return plots.tag(
            "path", d=path, class_=css, vector_effect="non-scaling-stroke"
        )

    low, high = axis.at(model["low"]), axis.at(model["high"])
    shapes = [stroke("grid", f"M{place:g} 0V100") for place, _ in axis.marks()]
    shapes.append(stroke("whisker", f"M{low:g} 50H{high:g}"))
    shapes.append(stroke("dot", f"M{axis.at(model['top1']):g} 50h0"))
    return plots.tag(
        "svg",
        Markup("").join(shapes),
        viewBox="0 0 100 100",
        preserveAspectRatio="none",
        aria_hidden="true",
    )


def curves(curves_by_role):
    """Training curves: one plot for each kind, a line for each model.

    Args:
        curves_by_role: Dict of a model's role -> `facts.curve`.

    Returns:
        List of `Markup`; kinds that no model has are left out.
    """
    drawn = []
    for kind, title in CURVES.items():
        lines = {
            role: curve[kind]
            for role, curve in curves_by_role.items()
            if kind in curve
        }
        if lines:
            drawn.append(_curve_plot(kind, title, lines, list(curves_by_role)))
    return drawn


def _curve_plot(kind, title, lines, roles):
    values = [value for line in lines.values() for _, value in line]
    last = max(line[-1][0] for line in lines.values())
    if kind.endswith("loss"):
        y = plots.Axis(0, max(max(values), 1e-9))
    else:
        y = plots.Fixed(0, 1, (0, 0.25, 0.5, 0.75, 1), _percent)
    x = plots.Fixed(0, last, (0, last // 2, last), words.count)
    shapes = [
        plots.polyline(
            # A single point is drawn as a dot.
            line if len(line) > 1 else [*line, *line],
            x,
            y,
            class_=f"line line-{roles.index(role) % plots.NUM_LINES}",
        )
        for role, line in lines.items()
    ]
    return plots.plot(title, shapes, x, y, x_title="training step")


def _percent(value):
    return words.percent(value, 0)


def legend(roles):
    """What the lines of `curves` belong to."""
    entries = [
        plots.tag(
            "li",
            plots.tag(
                "svg",
                plots.tag(
                    "path",
                    d="M1 5H27",
                    class_=f"line line-{number % plots.NUM_LINES}",
                ),
                viewBox="0 0 28 10",
                aria_hidden="true",
            )
            + role,
        )
        for number, role in enumerate(roles)
    ]
    return plots.tag("ul", Markup("").join(entries), class_="legend")


def confidence(title, counts, threshold, ceiling=None):
    """Histogram of the teacher's confidence, and what the filter lets through.

    Args:
        title: Which teacher.
        counts: Of `labels.count`.
        threshold: Confidence that is needed; None before the selection.
        ceiling: Confidence not to be passed, or None.
    """
    histogram = counts["histogram"]
    y = plots.Axis(0, max(int(histogram.max()), 1), spell=words.count)
    x = plots.Fixed(0, 1, (0, 0.25, 0.5, 0.75, 1), _percent)
    shapes = []
    for number in np.flatnonzero(histogram):
        middle = (number + 0.5) / BINS
        passes = threshold is None or middle > threshold
        passes = passes and (ceiling is None or middle <= ceiling)
        shapes.append(
            plots.rectangle(
                100 * number / BINS + 0.2,
                100 * (number + 1) / BINS - 0.2,
                y.at(int(histogram[number])),
                class_="bar-kept" if passes else "bar-dropped",
            )
        )
    notes = []
    for value, text in ((threshold, "threshold"), (ceiling, "ceiling")):
        if value is not None:
            place = x.at(value)
            shapes.append(
                plots.tag(
                    "path",
                    d=f"M{place:g} 0V100",
                    class_="threshold",
                    vector_effect="non-scaling-stroke",
                )
            )
            side = "to-left" if place > 50 else "to-right"
            notes.append((place, f"{text} {plots.number(value)}", side))
    return plots.plot(
        title, shapes, x, y, x_title="the teacher's confidence", notes=notes
    )


def class_bars(counts, names):
    """Bars of each class, before and after balancing: rows for the page.

    Args:
        counts: Of `labels.count`.
        names: Of the classes.

    Returns:
        List of dicts: `name`, the numbers of images, and in percent of the
        longest bar `above_share`, `below_share`, `kept_share`, `copies_share`.
    """
    longest = max(
        1, int(counts["predicted"].max()), int(counts["selected"].max())
    )
    rows = []
    for number, name in enumerate(names):
        predicted, above, kept, selected = (
            int(counts[key][number])
            for key in ("predicted", "above", "kept", "selected")
        )
        row = {
            "name": name,
            "above": above,
            "below": predicted - above,
            "kept": kept,
            "dropped": predicted - kept,
            "copies": selected - kept,
            "selected": selected,
        }
        for key in ("above", "below", "kept", "copies"):
            row[f"{key}_share"] = round(100 * row[key] / longest, 2)
        rows.append(row)
    return rows


def class_profile(counts):
    """All classes at once, largest first, before and after balancing.

    For so many classes that nobody could read their names.
    """
    order = np.argsort(-counts["above"], kind="stable")
    x = plots.Fixed(0, len(order), (0, len(order) // 2, len(order)))
    x.spell = words.count
    highest = max(1, int(counts["above"].max()), int(counts["selected"].max()))
    y = plots.Axis(0, highest, spell=words.count)
    shapes = []
    for key, css in (
        ("above", "profile-before"),
        ("kept", "profile-kept"),
        ("selected", "profile-after"),
    ):
        # A thousand classes are more than there are pixels.
        step = max(1, len(order) // 500)
        values = counts[key][order]
        points = [
            (start + len(part) / 2, float(part.mean()))
            for start in range(0, len(order), step)
            for part in [values[start : start + step]]
        ]
        points = [(0, points[0][1]), *points, (len(order), points[-1][1])]
        shapes.append(plots.polyline(points, x, y, class_=css))
    return plots.plot(
        "Images of each class",
        shapes,
        x,
        y,
        x_title="classes, those with the most sure images first",
    )


def matrix(confusion):
    """Cells of the confusion matrix: rows of dicts for the page.

    Args:
        confusion: Of `mistakes.confusion`.

    Returns:
        List of rows of dicts: `count`, `right`, and `opacity` in [0, 1]: the
        share of the row, its root off the diagonal, where shares are small.
    """
    totals = np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    shares = confusion / totals
    strength = np.where(np.eye(len(confusion)), shares, np.sqrt(shares))
    return [
        [
            {
                "count": int(confusion[i, j]),
                "opacity": round(float(strength[i, j]), 3),
                "right": i == j,
            }
            for j in range(len(confusion))
        ]
        for i in range(len(confusion))
    ]
