# SPDX-License-Identifier: Apache-2.0
"""The page itself: what `page.html` makes of the sections."""

import functools
import pathlib
import re

from noisy_student.reporting.report import words

FOLDER = pathlib.Path(__file__).parent


def render(**sections):
    """Make the page.

    Args:
        **sections: What `page.html` names.

    Returns:
        The page as text, which is valid Unicode and needs nothing else.
    """
    text = _template().render(sections)
    # Names may hold halves of characters, which UTF-8 cannot.
    return text.encode("utf-8", "backslashreplace").decode()


@functools.cache
def _template():
    """`page.html`, compiled once: a run makes the page many times."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        short=words.name,
        flags=_flags,
        count=words.count,
        duration=words.duration,
    )
    style = (FOLDER / "page.css").read_text(encoding="utf-8")
    environment.globals["style"] = Markup(re.sub(r"\s*\n\s*", "\n", style))
    return environment.get_template("page.html")


def _flags(text):
    """A text of our own in which flags do not break at their dashes."""
    from markupsafe import Markup
    from markupsafe import escape

    marked = re.sub(r"(--\w+(=\w+)?)", r"<code>\1</code>", str(escape(text)))
    return Markup(marked)
