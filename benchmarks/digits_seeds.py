# SPDX-License-Identifier: Apache-2.0
"""README's run with many seeds, with oneDNN's kernels and without.

    python -m benchmarks.digits_seeds
    python -m benchmarks.digits_seeds --seeds=10 --onednn=default,0,1
    python -m benchmarks.digits_seeds --at_once=4 --threads=1

Floats are added up in another order by other kernels, and by another number of
threads, and 150 steps make another network of that. So a seed is a sample, and
not a number to expect elsewhere; the means are. A run that is done is a line in
the file of results, and the same command goes on after the last of them.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
ONEDNN = "TF_ENABLE_ONEDNN_OPTS"


def main():
    """Run what is missing, then a table for each setting of oneDNN."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--seeds", type=int, default=10, help="0 to this less 1."
    )
    parser.add_argument(
        "--onednn",
        default="0,1",
        help=f"Values of {ONEDNN}; `default` leaves it unset.",
    )
    parser.add_argument("--at_once", type=int, default=1, help="Runs.")
    parser.add_argument("--threads", type=int, help="Of a run; all by default.")
    parser.add_argument(
        "--results", type=pathlib.Path, default="digits_seeds.jsonl"
    )
    arguments = parser.parse_args()
    wanted = [
        (seed, onednn)
        for seed in range(arguments.seeds)
        for onednn in arguments.onednn.split(",")
    ]
    found = read(arguments.results)
    with concurrent.futures.ThreadPoolExecutor(arguments.at_once) as pool:
        runs = [
            pool.submit(accuracies, *key, arguments.threads)
            for key in wanted
            if key not in found
        ]
        for run in concurrent.futures.as_completed(runs):
            with arguments.results.open("a") as file:
                print(json.dumps(run.result()), file=file)
            print(run.result(), flush=True)
    found = read(arguments.results)
    for onednn in arguments.onednn.split(","):
        print(f"\n{ONEDNN}={onednn}\n")
        print(table({s: found[s, o] for s, o in wanted if o == onednn}))


def read(path):
    """Accuracies of the runs that are done, by (seed, setting of oneDNN)."""
    lines = path.read_text().splitlines() if path.exists() else []
    records = map(json.loads, lines)
    return {(r["seed"], r["onednn"]): r["top1"] for r in records}


def accuracies(seed, onednn, threads=None, flags=()):
    """Run the digits once.

    Args:
        seed: Of the run.
        onednn: `0`, `1`, or `default`.
        threads: Of one operation, and operations at once; None for all cores.
        flags: Further flags.

    Returns:
        Dict of seed, onednn and `top1`: in percent, the teacher's first.
    """
    environment = dict(os.environ)
    environment.pop(ONEDNN, None)
    if onednn != "default":
        environment[ONEDNN] = onednn
    if threads:
        names = "TF_NUM_INTRAOP_THREADS TF_NUM_INTEROP_THREADS OMP_NUM_THREADS"
        environment |= dict.fromkeys(names.split(), str(threads))
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [
                *(sys.executable, "main.py", f"--seed={seed}"),
                *(f"--workdir={folder}/run", *flags),
            ],
            cwd=REPOSITORY,
            env=environment,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"seed {seed}: {done.stderr}")
        records = json.loads(
            pathlib.Path(folder, "run/results.json").read_text()
        )
    top1 = [
        round(100 * record["top1"], 1) for record in records if "top1" in record
    ]
    return {"seed": seed, "onednn": onednn, "top1": top1}


def table(top1_by_seed):
    """Lines of Markdown: each seed, the means and the standard deviations."""
    rows = {str(seed): top1 for seed, top1 in sorted(top1_by_seed.items())}
    columns = list(zip(*rows.values(), strict=True))
    if len(rows) > 1:
        rows["mean"] = [statistics.mean(column) for column in columns]
        rows["standard deviation"] = [statistics.stdev(c) for c in columns]
    students = [f"student {number}" for number in range(1, len(columns))]
    lines = [
        " | ".join(["| seed", "teacher", *students]) + " |",
        "|---" + "|--:" * len(columns) + "|",
    ]
    for name, values in rows.items():
        lines.append(f"| {name} | {' | '.join(f'{v:.1f}' for v in values)} |")
    gains = [top1[-1] - top1[0] for top1 in top1_by_seed.values()]
    lines.append(
        f"\nlast student - teacher: mean {statistics.mean(gains):+.1f}, "
        f"worst {min(gains):+.1f}, better in "
        f"{sum(gain > 0 for gain in gains)} of {len(gains)}"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
