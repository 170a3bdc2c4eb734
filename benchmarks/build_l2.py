# SPDX-License-Identifier: Apache-2.0
"""How long the largest network takes to build and to run once, and its memory.

    python -m benchmarks.build_l2
    python -m benchmarks.build_l2 --image_size=800

The network has random weights and is run as the labeling does it, compiled
and un-noised, on one image of random pixels. The second run is the one
without the time to trace. Peak memory is that of the whole process.
"""

import argparse
import os
import resource
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from noisy_student.models import accounting
from noisy_student.models import efficientnet


def main():
    """Build, count, run twice; a line each."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--variant", default="l2", help="Name of the network.")
    parser.add_argument(
        "--image_size", type=int, help="Pixels; those of its training."
    )
    arguments = parser.parse_args()
    settings = efficientnet.VARIANTS[arguments.variant]
    image_size = (
        arguments.image_size or settings.train_image_size or settings.image_size
    )
    expected = accounting.costs(arguments.variant, image_size=image_size)
    print(
        f"EfficientNet-{arguments.variant.upper()} at {image_size} pixels, "
        f"{expected.multiply_adds / 1e9:.1f} B multiply-adds an image"
    )
    report("before")
    started = time.monotonic()
    model = efficientnet.build_model(arguments.variant, image_size=image_size)
    report("built", started)
    found = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
    print(f"{found:,} parameters, {expected.parameters:,} by arithmetic")

    rng = np.random.default_rng(0)
    shape = (1, image_size, image_size, 3)
    pixels = rng.integers(0, 256, shape, dtype="uint8")
    for name in ("first run", "second run"):
        started = time.monotonic()
        logits = model.predict(pixels, verbose=0)
        report(name, started)
    print(f"logits {logits.shape}, all finite: {np.isfinite(logits).all()}")


def report(name, started=None):
    """Print the seconds since `started` and the peak memory so far."""
    seconds = "" if started is None else f"{time.monotonic() - started:.1f} s"
    # Linux counts in KiB.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{name:<12}{seconds:>10}   peak {peak / 1e9:.2f} GB", flush=True)


if __name__ == "__main__":
    main()
