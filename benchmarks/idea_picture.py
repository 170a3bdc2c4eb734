# SPDX-License-Identifier: Apache-2.0
"""The picture on top of README.md: the idea, with the numbers of a run.

    python main.py
    python -m benchmarks.idea_picture --workdir=runs/digits

It has the numbers and images of the same figure in the run's `report.html`,
as an SVG that any viewer of Markdown shows, in light and dark. Images are drawn
as squares, for viewers differ in whether they show images inside images; so it
is meant for tiny ones.
"""

import argparse

import jinja2
import numpy as np

from noisy_student import command_line
from noisy_student import previewing
from noisy_student.files import write_text
from noisy_student.reporting import pictures
from noisy_student.reporting.report import collect
from noisy_student.reporting.report import facts
from noisy_student.reporting.report import sections
from noisy_student.run import open_run

# Pixels of an image, and with the gap after it; of the bars that are full.
IMAGE, STEP, FULL = 40, 45, 128
SHADES = 16

TEMPLATE = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1072 236" role="img"
 font-family="system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif">
<title>The idea, with the numbers of a run: {{ summary }}</title>
<style>
svg { --paper: #fafaf8; --box: #fff; --ink: #1b2126; --muted: #57626b;
 --line: #d3d9dd; --grey: #8f9aa2; --blue: #0b66a8; --orange: #d9822b }
@media (prefers-color-scheme: dark) {
 svg { --paper: #161b1f; --box: #1f252a; --ink: #e9edf0; --muted: #a4aeb6;
  --line: #3a434a; --grey: #74818a; --blue: #5fb0ea; --orange: #f09d57 } }
text { fill: var(--ink); font-size: 14px } .muted { fill: var(--muted) }
.title { font-size: 15px; font-weight: 650 } .right { text-anchor: end }
.number { font-weight: 650 } .middle { text-anchor: middle; font-size: 13px }
.box { fill: var(--box); stroke: var(--line) }
.arrow { fill: none; stroke: var(--grey); stroke-width: 1.6 }
.dashed { stroke-dasharray: 4 4 }
</style>
<rect width="1072" height="236" rx="12" fill="var(--paper)"/>
{% for box in boxes %}
<g transform="translate({{ 20 + loop.index0 * 220 }} 20)">
<rect class="box" width="152" height="148" rx="10"/>
<g transform="translate(12 14)">{{ box.drawing }}</g>
<text class="title" x="12" y="80">{{ box.title }}</text>
{% for name, value in box.rows %}
<g transform="translate(12 {{ 105 + 24 * loop.index0 }})">
<text class="muted">{{ name }}</text>
<text class="number right" x="128">{{ value }}</text>
</g>
{% endfor %}
{% for line in box.next %}
<text class="muted middle" x="186" y="{{ 66 - 15 * loop.revindex0 }}">
{{ line }}</text>
{% endfor %}
{% if box.next %}
<path class="arrow" d="M160 76H211M206 71L211 76L206 81"/>
{% endif %}
</g>
{% endfor %}
<path class="arrow dashed"
 d="M976 176V200Q976 208 968 208H794M498 208H324Q316 208 316 200V176"/>
<path class="arrow" d="M311 182L316 176L321 182"/>
<text class="muted" x="646" y="213" text-anchor="middle">
repeat: the student becomes the teacher</text>
</svg>
"""


def main():
    """Write the picture and say where."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", default="runs/digits")
    parser.add_argument("--output", default="docs/pictures/idea.svg")
    arguments = parser.parse_args()
    config = command_line.parse(["", f"--workdir={arguments.workdir}"])
    write_text(arguments.output, picture(open_run(config)))
    print(arguments.output)


def picture(run):
    """The picture as text.

    Args:
        run: A `Run` that is done, of two students at most.
    """
    iterations = range(run.last_iteration + 1)
    models = facts.models(run.workdir.results(), {})
    idea = sections.idea(
        models,
        collect.rounds(run.workdir, iterations[1:]),
        run.last_iteration,
        {s: getattr(run, s).num_examples for s in ("labeled", "unlabeled")},
        few={},
    )
    rounds = idea["rounds"]

    def rows(key):
        return [(f"round {r['number']}", r[key]) for r in rounds]

    noised = [draws[0] for _, draws in previewing.samples(run)]
    boxes = [
        (
            "Labeled",
            [("images", idea["labeled"])],
            ["teach"],
            images(some(run.labeled)),
        ),
        ("Teacher", rows("teacher"), ["label"], network()),
        (
            "Unlabeled",
            rows("images"),
            ["filter,", "balance"],
            images(some(run.unlabeled)),
        ),
        ("Kept", rows("kept"), ["distill,", "noised"], bars(rounds)),
        ("Student", rows("student"), [], images(noised[:3])),
    ]
    template = jinja2.Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    ).from_string(TEMPLATE)
    return template.render(
        boxes=[
            {"title": title, "rows": values, "next": after, "drawing": drawing}
            for title, values, after, drawing in boxes
        ],
        summary=", ".join(
            f"{m['role']} {100 * m['top1']:.1f} % right" for m in models
        ),
    )


def some(source):
    """Three images of a source, uint8 `(H, W, 3)`."""
    encoded = pictures.read(source, pictures.spread(source, 3)).values()
    return [pictures.thumbnail(image) for image in encoded]


def images(arrays):
    """Images side by side, as SVG."""
    return "".join(
        f'<g transform="translate({STEP * k} 0)">{squares(array)}</g>'
        for k, array in enumerate(arrays)
    )


def squares(image):
    """An image as the squares that it is made of: a path for each shade."""
    grey = np.round(image.mean(axis=2) / 255 * (SHADES - 1)).astype(int)
    size = len(grey)
    paths = [
        f'<rect width="{IMAGE}" height="{IMAGE}" rx="4"/>'
        f'<g transform="scale({IMAGE / size:.6g})" '
        'shape-rendering="crispEdges">'
    ]
    for shade in range(1, SHADES):
        runs = [
            f"M{start} {y}h{length}v1h-{length}z"
            for y, row in enumerate(grey == shade)
            for start, length in runs_of(row)
        ]
        if runs:
            value = 255 * shade // (SHADES - 1)
            fill = f"#{value:02x}{value:02x}{value:02x}"
            paths.append(f'<path fill="{fill}" d="{"".join(runs)}"/>')
    return "".join([*paths, "</g>"])


def runs_of(row):
    """(start, length) of each run of True in a row."""
    edges = np.flatnonzero(np.diff(np.r_[0, row, 0]))
    return [(a, b - a) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def network():
    """A few circles that are joined."""
    layers = [[(8, 10), (8, 30)], [(42, 5), (42, 20), (42, 35)], [(76, 20)]]
    lines = "".join(
        f"M{a} {b}L{c} {d}"
        for left, right in zip(layers, layers[1:], strict=False)
        for a, b in left
        for c, d in right
    )
    circles = "".join(
        f'<circle cx="{x}" cy="{y}" r="4.5" fill="var(--blue)"/>'
        for layer in layers
        for x, y in layer
    )
    return f'<path class="arrow" d="{lines}" stroke-width="0.8"/>{circles}'


def bars(rounds):
    """What is kept of the unlabeled images, and copies of them."""
    height = (IMAGE - 6 * (len(rounds) - 1)) / len(rounds)
    parts = []
    for k, one in enumerate(rounds):
        kept, copies = (
            FULL / 100 * one[f"{name}_share"] for name in ("kept", "copies")
        )
        for left, width, color in ((0, kept, "blue"), (kept, copies, "orange")):
            parts.append(
                f'<rect x="{left:.1f}" y="{k * (height + 6):g}" '
                f'width="{width:.1f}" height="{height:g}" '
                f'fill="var(--{color})"/>'
            )
    return "".join(parts)


if __name__ == "__main__":
    main()
