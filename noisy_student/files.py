# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all."""

import json
import os
import pathlib


def write_atomically(path, write):
    """Write a file under a temporary name, then rename it.

    Args:
        path: Where it shall stand; folders are made.
        write: Function that fills a binary file object.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_text(path, text):
    """Write a text as UTF-8, atomically."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_json(path, value):
    """Write a value as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")
