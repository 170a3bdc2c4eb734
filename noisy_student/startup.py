# SPDX-License-Identifier: Apache-2.0
"""Import TensorFlow without what it says of itself.

`TF_CPP_MIN_LOG_LEVEL` is the way to silence it, but TensorFlow 2.21 prints
before it has read that: twice, because two of its libraries look for CUDA
while they are loaded (tensorflow/tensorflow, issue 100442). And where there is
no GPU, it calls it an error that CUDA does not start.
"""

import contextlib
import os
import shutil
import subprocess
import sys

# Notes and warnings, which the level 2 leaves out as well, as they look before
# the library is ready: "I0000 00:00:17..." and "2026-11-22 17:31:34.1: I ...".
EARLY = (
    r"^WARNING: All log messages before absl::InitializeLog",
    r"^[IW][0-9]{4} [0-9:.]+ ",
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:.]+: [IW] ",
)
# Only where nothing of NVIDIA is installed that could be broken.
NO_GPU = r"^E.*failed call to cuInit"


def import_tensorflow():
    """Import it, and let it look for devices; errors still show.

    A `TF_CPP_MIN_LOG_LEVEL` in the environment is heeded: below 2, all shows.
    """
    level = os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if "tensorflow" in sys.modules or level in ("0", "1"):
        return
    unwanted = list(EARLY)
    if not shutil.which("nvidia-smi"):
        unwanted.append(NO_GPU)
    with _without(unwanted):
        import tensorflow as tf

        tf.config.list_physical_devices()


@contextlib.contextmanager
def _without(patterns):
    """Keep lines out of stderr that match one of some patterns.

    They come from C++, so the descriptor itself is led through `grep`: a
    process of its own, which also passes on what a process says that dies.
    """
    grep = shutil.which("grep")
    try:
        own = os.dup(2)
    except OSError:  # it was closed
        grep = None
    if grep is None:
        yield
        return
    expressions = [part for p in patterns for part in ("-e", p)]
    with subprocess.Popen(
        [grep, "-avE", *expressions],
        stdin=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is not meant for it
    ) as lines:
        os.dup2(lines.stdin.fileno(), 2)
        lines.stdin.close()
        try:
            yield
        finally:
            os.dup2(own, 2)
            os.close(own)
