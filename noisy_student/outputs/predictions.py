# SPDX-License-Identifier: Apache-2.0
"""A network's surest classes of each image, as a table: CSV or Parquet.

    file, class_1, probability_1, ..., class_5, probability_5, error

A row for each image, in the order of the images; of one that cannot be decoded
the row holds the reason. Rows go to the disk as they come, so that memory does
not grow with the number of images, and the file appears when it is whole.
"""

import contextlib
import csv
import importlib.util
import pathlib

import numpy as np

from noisy_student.errors import UserError
from noisy_student.files import csv_cell
from noisy_student.files import replacing

ENDINGS = (".csv", ".parquet")
TOP = 5


def check_tools(path):
    """Refuse a table that nothing here can write.

    Args:
        path: Where the table shall stand; its ending says what it is.

    Raises:
        UserError: If pyarrow is needed and not installed.
    """
    is_parquet = pathlib.Path(path).suffix.lower() == ".parquet"
    if is_parquet and importlib.util.find_spec("pyarrow") is None:
        raise UserError(
            f"{path} needs pyarrow: install it with `pip install pyarrow`, or "
            "give an --output that ends in .csv"
        )


def write_predictions(path, parts, class_names):
    """Write the table.

    Args:
        path: Ends in `.csv` or `.parquet`.
        parts: Iterable of triples: names of N images, list of str; their
            probabilities, float32 `(N, C)`; and for each the reason why there
            are none, or None.
        class_names: C names.
    """
    top = min(TOP, len(class_names))
    names = np.array(class_names, object)
    is_parquet = pathlib.Path(path).suffix.lower() == ".parquet"
    opened = _parquet if is_parquet else _csv
    with replacing(path) as temporary, opened(temporary, top) as append:
        for files, probs, errors in parts:
            # Of equals the lower number comes first, as in accuracies.
            order = np.argsort(-probs, axis=1, kind="stable")[:, :top]
            values = np.take_along_axis(probs, order, axis=1)
            known = [error is None for error in errors]
            columns = {"file": files}
            for place in range(top):
                ranked = {
                    "class": names[order[:, place]],
                    "probability": values[:, place],
                }
                for kind, column in ranked.items():
                    columns[f"{kind}_{place + 1}"] = [
                        value if shown else None
                        for value, shown in zip(column, known, strict=True)
                    ]
            append({**columns, "error": errors})


def header(top):
    """Names of the columns.

    Args:
        top: Classes of an image.

    Returns:
        List of str.
    """
    ranked = [
        f"{kind}_{place}"
        for place in range(1, top + 1)
        for kind in ("class", "probability")
    ]
    return ["file", *ranked, "error"]


@contextlib.contextmanager
def _csv(path, top):
    # Names are printable already; this is for those of other data sets.
    with open(
        path, "w", encoding="utf-8", errors="backslashreplace", newline=""
    ) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header(top))

        def append(columns):
            for row in zip(*columns.values(), strict=True):
                writer.writerow(map(_cell, row))

        yield append


def _cell(value):
    """Text of a cell; of a float32 the digits that mean something."""
    number = isinstance(value, np.floating)
    return csv_cell(round(float(value), 6) if number else value)


@contextlib.contextmanager
def _parquet(path, top):
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema(
        (
            name,
            pyarrow.float32()
            if name.startswith("probability")
            else pyarrow.string(),
        )
        for name in header(top)
    )
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        yield lambda columns: writer.write_table(
            pyarrow.table(columns, schema=schema)
        )
