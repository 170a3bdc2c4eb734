# SPDX-License-Identifier: Apache-2.0
"""Seconds that `--help` and `import noisy_student` take.

    python -m benchmarks.startup

Each is started several times in a new process, in turns, after one start that
fills the caches. `python` is an interpreter that does nothing.
"""

import subprocess
import sys

from benchmarks import measuring

COMMANDS = {
    "python": ["-c", "pass"],
    "import noisy_student": ["-c", "import noisy_student"],
    "main.py --help": ["main.py", "--help"],
    "main.py --no_such_flag": ["main.py", "--no_such_flag"],
}


def main():
    """A line for each command."""
    contenders = {
        name: lambda command=command: measuring.timed(
            lambda: subprocess.run(
                [sys.executable, *command],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            ),
            1,
        )
        for name, command in COMMANDS.items()
    }
    for start in contenders.values():
        start()
    measuring.side_by_side(contenders, rounds=21, seconds=True)


if __name__ == "__main__":
    main()
