# SPDX-License-Identifier: Apache-2.0
"""Seconds and memory of a selection, from one to a hundred million rows.

    python -m benchmarks.selection
    python -m benchmarks.selection --plot=docs/performance/select.svg
    python -m benchmarks.selection --function=all --rows=100

Every measurement is of a new process on one core. Its rows are made up: the
1000 classes are of very different size (log-normal), and confidences come from
float16, as the labels are stored, so that many are equal. K grows with the
rows, 130,000 at 100 million: some classes have more, others less. Bytes a row
are the peak of the process beyond what Python and NumPy take, so those of
the arguments (float32 and uint16: 6) and of the result (uint32: 4) count.

`from_files` is the whole of `--mode=select`: read, select, count, write.

Needs Linux, and matplotlib for the plot (requirements-bench.txt).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks import measuring
from noisy_student.pseudo_labels import selection
from noisy_student.pseudo_labels.rows import top_dtype
from noisy_student.pseudo_labels.store import LabelStore
from noisy_student.reporting import selection_summary

NUM_CLASSES = 1000
IMAGES_PER_CLASS = 130_000  # at 100 million rows
THRESHOLD = 0.3
CHUNK = 1 << 16  # rows that are made up at once


def made_up_rows(count, seed=0):
    """Confidences float32 `(N,)` and classes uint16 `(N,)`."""
    rng = np.random.default_rng(seed)
    size = rng.lognormal(sigma=1.0, size=NUM_CLASSES)
    up_to = np.cumsum(size) / size.sum()
    # How sure a teacher is depends on the class: means of 0.4 to 0.9.
    sure = rng.uniform(0.7, 9, NUM_CLASSES)
    confidence = np.empty(count, np.float32)
    classes = np.empty(count, np.uint16)
    for start in range(0, count, CHUNK):
        part = slice(start, min(start + CHUNK, count))
        drawn = np.searchsorted(up_to, rng.random(part.stop - part.start))
        drawn = np.minimum(drawn, NUM_CLASSES - 1)
        values = rng.random(len(drawn)) ** (1 / sure[drawn])
        confidence[part] = values.astype(np.float16)
        classes[part] = drawn
    confidence[::1000] = np.nan  # images that cannot be decoded
    return confidence, classes


def functions(count):
    """What can be measured: name -> (what comes before it, function)."""
    rows = {"num_classes": NUM_CLASSES, "threshold": THRESHOLD}
    balanced = {
        **rows,
        "images_per_class": IMAGES_PER_CLASS * count // 100_000_000,
        "seed": 0,
    }

    def subsample(confidence, classes):
        copies = selection.select(confidence, classes, **balanced)
        half = int(np.count_nonzero(copies)) // 2
        return lambda: selection.subsample(copies, half, seed=0)

    def summarize(confidence, classes, copies):
        return selection_summary.summarize(
            confidence,
            classes,
            copies,
            threshold=THRESHOLD,
            images_per_class=balanced["images_per_class"],
            class_names=tuple(map(str, range(NUM_CLASSES))),
        )

    def summary(*rows):
        copies = selection.select(*rows, **balanced)
        return lambda: summarize(*rows, copies)

    def from_files(confidence, classes):
        folder = tempfile.TemporaryDirectory()
        size = max(count // 100, 1)
        labels = LabelStore(folder.name, (size,) * (count // size), NUM_CLASSES)
        for shard, start in enumerate(range(0, count, size)):
            part = slice(start, start + size)
            top = np.empty(size, top_dtype(NUM_CLASSES))
            top["confidence"], top["class"] = confidence[part], classes[part]
            np.save(labels.top_path(shard), top)

        def phase():
            rows = labels.confidences()
            copies = selection.select(*rows, **balanced)
            labels.write_copies(copies, summarize(*rows, copies))
            folder.cleanup()

        return phase

    return {
        "select": lambda *x: lambda: selection.select(*x, **balanced),
        "select_official_bins": lambda *x: (
            lambda: selection.select_official_bins(*x, **balanced)
        ),
        "average_per_class": lambda *x: (
            lambda: selection.average_per_class(*x, **rows)
        ),
        "subsample": subsample,
        "selection_summary": summary,
        "from_files": from_files,
    }


def measure(name, count):
    """Measure a function in this process.

    Args:
        name: Of `functions`.
        count: N.

    Returns:
        Dict of `function`, `rows`, `seconds`, `cpu_seconds` and `bytes_a_row`.
    """
    # Once on a few rows, for what NumPy loads when it is first needed.
    functions(1000)[name](*made_up_rows(1000))()
    before = measuring.resident("VmRSS")
    function = functions(count)[name](*made_up_rows(count))
    started, worked = time.perf_counter(), time.process_time()
    function()
    seconds = time.perf_counter() - started
    worked = time.process_time() - worked
    return {
        "function": name,
        "rows": count,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(worked, 2),
        "bytes_a_row": round((measuring.resident("VmHWM") - before) / count, 1),
    }


def in_a_fresh_process(name, count):
    """What `measure` gives in a new process on one core."""
    command = [sys.executable, "-m", "benchmarks.selection", "--measure"]
    command += [f"--function={name}", f"--rows={count / 1e6}"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    done = subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout)


def plot(records, path):
    """Draw CPU seconds over rows, both logarithmic, and bytes a row below."""
    pyplot = measuring.pyplot_for_svg()
    rows = np.array([record["rows"] for record in records]) / 1e6
    seconds = np.array([record["cpu_seconds"] for record in records])
    size = [record["bytes_a_row"] for record in records]
    figure, (above, below) = pyplot.subplots(
        2, 1, figsize=(6, 5), sharex=True, height_ratios=(2, 1)
    )
    above.loglog(rows, seconds, "o-", label="select")
    above.loglog(
        rows,
        seconds[-1] / rows[-1] * rows,
        "--",
        color="gray",
        label=f"slope 1: {seconds[-1] / rows[-1]:.2f} s a million rows",
    )
    above.set_ylabel("CPU seconds, one core")
    above.set_title("Filter and balance 1000 classes, exact top K")
    above.legend()
    below.semilogx(rows, size, "o-")
    below.axhline(20, linestyle="--", color="gray")
    below.annotate("limit", (rows[0], 20), (0, -11), textcoords="offset points")
    below.set_ylim(0, 23)
    below.set_ylabel("peak bytes a row")
    below.set_xlabel("million rows")
    below.set_xticks(rows, [f"{count:g}" for count in rows], minor=False)
    below.minorticks_off()
    for axes in (above, below):
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main():
    """A line for each measurement, then all as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = list(functions(0))
    parser.add_argument("--function", default="select", choices=[*names, "all"])
    parser.add_argument(
        "--rows", default="1,3,10,30,100", help="Millions, a list."
    )
    parser.add_argument("--plot", help="SVG file to draw `select` in.")
    parser.add_argument(
        "--measure", action="store_true", help="In this process, for itself."
    )
    arguments = parser.parse_args()
    counts = [round(float(n) * 1e6) for n in arguments.rows.split(",")]
    if arguments.measure:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        print(json.dumps(measure(arguments.function, counts[0])))
        return
    titles = ("million rows", "seconds", "CPU s", "B a row")
    print(f"{'function':<22}" + "".join(f"{title:>13}" for title in titles))
    records = []
    for name in names if arguments.function == "all" else [arguments.function]:
        for count in counts:
            record = in_a_fresh_process(name, count)
            records.append(record)
            print(
                f"{name:<22}{count / 1e6:>13g}{record['seconds']:>13.2f}"
                f"{record['cpu_seconds']:>13.2f}{record['bytes_a_row']:>13.1f}",
                flush=True,
            )
    print(json.dumps(records))
    if arguments.plot:
        plot([r for r in records if r["function"] == "select"], arguments.plot)


if __name__ == "__main__":
    main()
