# SPDX-License-Identifier: Apache-2.0
"""The one exception that means "the user can mend this".

Every module may raise it; `main.py` prints it as one sentence, without a
traceback, and exits with code 2; a notebook shows the same sentence. Anything
else that escapes is a bug.
"""


class UserError(Exception):
    """A mistake of a user, told in one sentence with the way out."""

    def _render_traceback_(self):
        """What a notebook shows, by IPython's convention: that sentence."""
        return [f"error: {self}"]
