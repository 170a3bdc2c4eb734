# SPDX-License-Identifier: Apache-2.0
"""How the cost of the input pipeline and of labels grows.

    python -m benchmarks.growth --images=FILE.tar
    python -m benchmarks.growth --plot=docs/performance/growth.svg

Milliseconds of a core for an image: over the pixels of the result, for
decoding and resizing alone (`limit`) and with all of ours; and images a second
over cores. Then microseconds and bytes that storing an image's label takes,
over the classes. Each point is a run of `benchmarks.input_pipeline` or
`benchmarks.label_store` in a process of its own.
"""

import argparse
import json
import os
import subprocess
import sys

from benchmarks import measuring


def main():
    """A line for each point, then all as JSON, and the plot."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", help="Tar file or folder of JPEGs.")
    parser.add_argument(
        "--image_sizes", default="96,160,224,300,380,456,600", help="A list."
    )
    parser.add_argument("--num_classes", default="10,100,1000")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plot", help="SVG file.")
    arguments = parser.parse_args()
    all_cores = len(os.sched_getaffinity(0))
    sizes, cores, classes = [], [], []
    print(f"{'pixels':>8}{'limit':>8}{'ours':>8}  ms of a core an image")
    for size in arguments.image_sizes.split(","):
        rates = pipeline(arguments, f"--image_size={size}")
        costs = {name: all_cores * 1e3 / rate for name, rate in rates.items()}
        sizes.append({"image_size": int(size), **costs})
        print(f"{size:>8}{costs['limit']:>8.2f}{costs['ours']:>8.2f}")
    print(f"{'cores':>8}{'limit':>8}{'ours':>8}  images a second")
    for count in range(1, all_cores + 1):
        rates = pipeline(arguments, f"--cores={count}")
        cores.append({"cores": count, **rates})
        print(f"{count:>8}{rates['limit']:>8.0f}{rates['ours']:>8.0f}")
    print(f"{'classes':>8}{'us':>8}{'bytes':>8}  to write an image's label")
    for count in arguments.num_classes.split(","):
        (record,) = measured(
            "label_store", f"--num_classes={count}", "--top_k="
        )
        classes.append({"num_classes": int(count), **record})
        print(f"{count:>8}{record['write']:>8.1f}{record['bytes']:>8.0f}")
    print(json.dumps({"sizes": sizes, "cores": cores, "classes": classes}))
    if arguments.plot:
        plot(sizes, cores, classes, arguments.plot)


def pipeline(arguments, option):
    """Images a second of `limit` and `ours`."""
    options = ["--only=limit,ours", f"--rounds={arguments.rounds}", option]
    if arguments.images:
        options.append(f"--images={arguments.images}")
    found = measured("input_pipeline", *options)
    return {name: found[name]["median"] for name in ("limit", "ours")}


def measured(script, *options):
    """What a script's line of JSON says."""
    command = [sys.executable, "-m", f"benchmarks.{script}", *options]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def plot(sizes, cores, classes, path):
    """Draw the three, side by side."""
    pyplot = measuring.pyplot_for_svg()
    figure, axes = pyplot.subplots(1, 3, figsize=(10, 3.4))
    for name in ("limit", "ours"):
        axes[0].plot(
            [point["image_size"] for point in sizes],
            [point[name] for point in sizes],
            "o-",
            label=name,
        )
        axes[1].plot(
            [point["cores"] for point in cores],
            [point[name] for point in cores],
            "o-",
            label=name,
        )
    axes[0].set(xlabel="pixels a side", ylabel="ms of a core an image")
    axes[1].set(xlabel="cores", ylabel="images a second")
    axes[1].set_xticks([point["cores"] for point in cores])
    axes[2].loglog(
        [point["num_classes"] for point in classes],
        [point["write"] for point in classes],
        "o-",
        color="tab:green",
    )
    axes[2].set(xlabel="classes", ylabel="µs to store an image's label")
    axes[0].legend()
    for one in axes:
        one.grid(alpha=0.3)
        one.set_ylim(bottom=0 if one is not axes[2] else None)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
