# SPDX-License-Identifier: Apache-2.0
"""Contenders side by side, and images to give to all of them.

Machines are shared and drift, so nothing is compared across runs: contenders
take turns, and what counts is the median over the rounds of the ratio to the
first of them.
"""

import json
import pathlib
import statistics
import tarfile
import time

import numpy as np


def side_by_side(contenders, rounds, seconds=False):
    """Let contenders take turns, and print a table and a JSON line.

    Args:
        contenders: Dict of name -> function that does its work once and
            returns how much it was, and in how many seconds.
        rounds: How often each has its turn.
        seconds: Whether to show seconds for one of it, and not a rate.

    Returns:
        Dict of name -> median ratio to the first contender.
    """
    measured = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, work in contenders.items():
            count, duration = work()
            value = duration / count if seconds else count / duration
            measured[name].append(value)
    first = next(iter(measured.values()))
    lines, width = {}, max(map(len, measured))
    for name, values in measured.items():
        ratios = [v / f for v, f in zip(values, first, strict=True)]
        lines[name] = {
            "median": float(f"{statistics.median(values):.4g}"),
            "ratio": round(statistics.median(ratios), 3),
            "ratios": [round(min(ratios), 3), round(max(ratios), 3)],
        }
        low, high = lines[name]["ratios"]
        print(
            f"{name:<{width}}  {lines[name]['median']:>9.4g}"
            f"  {lines[name]['ratio']:.2f}  ({low:.2f} to {high:.2f})"
        )
    print(json.dumps(lines))
    return {name: line["ratio"] for name, line in lines.items()}


def timed(work, count):
    """(count, seconds that `work()` takes)."""
    started = time.perf_counter()
    work()
    return count, time.perf_counter() - started


def pyplot_for_svg():
    """Matplotlib that draws the same file from the same figures."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.fonttype"] = "none"  # text, not outlines
    matplotlib.rcParams["svg.hashsalt"] = "noisy-student"
    from matplotlib import pyplot

    return pyplot


def resident(field, process="self"):
    """Bytes of a process: `VmRSS` now, `VmHWM` at their highest."""
    with open(f"/proc/{process}/status") as status:
        for line in status:
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    raise RuntimeError(f"the kernel does not say {field}")


def load_jpegs(path=None, count=256):
    """Encoded JPEGs: of a tar file, of a folder, or made up.

    Args:
        path: A `.tar`, or a folder that is searched; `None` makes up some that
            are as large as those of ImageNet, 500 x 375 pixels and 110 kB.
        count: How many to make up.

    Returns:
        List of bytes.
    """
    if path is None:
        return [_made_up_jpeg(seed) for seed in range(count)]
    path = pathlib.Path(path)
    if path.is_dir():
        files = sorted(path.rglob("*.[jJ][pP]*[gG]"))
        found = [file.read_bytes() for file in files]
    else:
        with tarfile.open(path) as archive:
            members = [m for m in archive.getmembers() if m.isfile()]
            found = [archive.extractfile(m).read() for m in members]
    # What is called JPEG may be something else.
    return [content for content in found if content[:2] == b"\xff\xd8"]


def _made_up_jpeg(seed):
    import tensorflow as tf

    rng = np.random.default_rng(seed)
    coarse = tf.image.resize(rng.uniform(0, 255, (12, 16, 3)), (375, 500))
    # The noise gives the file its size: about 110 kB.
    pixels = coarse + rng.normal(0, 19, (375, 500, 3))
    pixels = tf.saturate_cast(pixels, tf.uint8)
    return tf.io.encode_jpeg(pixels, quality=90).numpy()
