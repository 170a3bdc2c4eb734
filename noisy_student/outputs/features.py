# SPDX-License-Identifier: Apache-2.0
"""A network's features of images, as a NumPy file and the list of the images.

    features.npy          float32 (N, D), row k = k-th image
    features.files.csv    file, error: line k = k-th image

A row of an image that cannot be decoded is NaN, so that no row moves. Rows are
appended as they come: a file that is mapped into memory while it is written
would end the process without a word when the disk is full.
"""

import csv
import pathlib

import numpy as np

from noisy_student.files import csv_cell
from noisy_student.files import replacing


def list_path(path):
    """Where the list of the images stands: `features.files.csv`."""
    return pathlib.Path(path).with_suffix(".files.csv")


def write_features(path, parts, *, num_images, width):
    """Write the features and the list of their images.

    Args:
        path: Ends in `.npy`.
        parts: Iterable of triples: names of N images, list of str; their
            features, float32 `(N, D)`, NaN where there are none; and for each
            the reason for that, or None.
        num_images: Images in all parts.
        width: D.
    """
    layout = {
        "descr": np.lib.format.dtype_to_descr(np.dtype("<f4")),
        "fortran_order": False,
        "shape": (num_images, width),
    }
    with (
        replacing(path) as temporary,
        replacing(list_path(path)) as temporary_list,
        open(temporary, "wb") as file,
        open(temporary_list, "w", encoding="utf-8", newline="") as list_file,
    ):
        np.lib.format.write_array_header_1_0(file, layout)
        writer = csv.writer(list_file, lineterminator="\n")
        writer.writerow(["file", "error"])
        for files, features, errors in parts:
            file.write(np.ascontiguousarray(features, "<f4").tobytes())
            rows = zip(files, errors, strict=True)
            writer.writerows(map(csv_cell, row) for row in rows)
