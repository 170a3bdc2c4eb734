# SPDX-License-Identifier: Apache-2.0
"""Kill a run again and again: does it end as one that nobody killed?

    python -m benchmarks.kills
    python -m benchmarks.kills --kills=100 --devices=2 --seed=1

A small run on the digits (teach, label, distill) is killed with SIGKILL and
started again with the same command until it ends. Every other kill comes at a
random moment, the others at a random one of the moments that are dangerous: in
the middle of writing a file, of which the disk then holds half; before it gets
its name; and just after. In the end every file must hold what that of a run
without kills holds.
"""

import argparse
import contextlib
import multiprocessing
import os
import pathlib
import random
import signal
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
FLAGS = (
    f"--flagfile={REPOSITORY / 'flags' / 'smoke.flags'}",
    "--students=b0",
    "--train_steps=6",
    "--batch_size=8",
    "--checkpoint_minutes=0",
    "--force",  # it learns next to nothing
)
# Of one machine and one process: how long it took, what was reported twice.
NOT_COMPARED = (".lock", "times.json", "metrics.jsonl", "report.html")
# Likewise, but of them it is checked what they say.
EVENTS = "tensorboard"


def main():
    """A line for each run, then kills survived out of tried."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kills", type=int, default=20, help="At least.")
    parser.add_argument("--devices", type=int, default=1, choices=(1, 2))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    flags = [f"--cpu_devices={arguments.devices}"]
    if arguments.devices > 1:
        flags.append("--distribution=mirrored")
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        started = time.monotonic()
        writes = complete(folder / "whole", flags)
        duration = time.monotonic() - started
        print(
            f"undisturbed: {duration:.0f} s, {writes} dangerous moments",
            flush=True,
        )
        kills = runs = 0
        while kills < arguments.kills:
            workdir = folder / f"killed {runs}"
            survived = survive(workdir, flags, rng, duration, writes)
            different = differences(folder / "whole", workdir)
            if different:
                sys.exit(f"{survived} kills, and these differ: {different}")
            kills, runs = kills + survived, runs + 1
            print(f"{survived} kills, the same bits in the end", flush=True)
    print(f"{kills} kills of {kills} survived, in {runs} runs")


def survive(workdir, flags, rng, duration, writes):
    """Start a run until it ends, killing it now and then.

    Args:
        workdir: Of the run.
        flags: List of strings, what is not in `FLAGS`.
        rng: A `random.Random`, for when to kill.
        duration: Seconds of a run that nobody kills.
        writes: Its number of dangerous moments.

    Returns:
        How often it was killed.
    """
    kills = 0
    while True:
        if kills % 2:
            fault = {"after": rng.uniform(0, duration)}
        else:
            # Early ones are met by every start, late ones only by the last.
            fault = {"at_write": int(writes ** rng.random())}
        code, _ = start(workdir, flags, **fault)
        if code == 0:
            return kills
        if code != -signal.SIGKILL:
            raise RuntimeError(f"the run ended with code {code}")
        kills += 1


def complete(workdir, flags):
    """Let a run go through.

    Returns:
        Number of its dangerous moments.
    """
    code, writes = start(workdir, flags)
    if code:
        raise RuntimeError(f"the run ended with code {code}")
    return writes


def start(workdir, flags, *, after=None, at_write=0, sends=signal.SIGKILL):
    """Run `main.py` in a process of its own.

    Args:
        workdir: Of the run.
        flags: List of strings, what is not in `FLAGS`.
        after: Seconds until it is killed, if it has not ended.
        at_write: Number of the dangerous moment at which it gets a signal; 0
            for none.
        sends: Number of that signal.

    Returns:
        Exit code, negative for a signal, and how many such moments there were.
    """
    # Each process is a copy of one that has imported TensorFlow and done
    # nothing else.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["noisy_student.phases"])
    writes = context.Value("i", 0)
    arguments = ["main.py", *FLAGS, f"--workdir={workdir}", *flags]
    process = context.Process(
        target=_child, args=(arguments, writes, at_write, sends)
    )
    process.start()
    process.join(after)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode, writes.value


def _child(arguments, writes, at_write, sends):
    os.chdir(REPOSITORY)
    for name in ("fsync", "replace"):
        setattr(os, name, _deadly(getattr(os, name), writes, at_write, sends))
    # What it prints would be printed many times.
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        import main as command
        from noisy_student.models import efficientnet

        # Most of the time on tiny images is the tracing of the network.
        efficientnet.STAGES = efficientnet.STAGES[:1]
        code = command.main(arguments)
    sys.exit(code)


def _deadly(function, writes, at_write, sends):
    """A function of `os` that signals its process at one of the calls."""

    def call(*arguments):
        writes.value += 1
        if writes.value == at_write:
            if function.__name__ == "fsync" and sends == signal.SIGKILL:
                # What the disk does not hold yet, it may lose.
                with contextlib.suppress(OSError):  # a folder has no size
                    size = os.fstat(arguments[0]).st_size
                    path = os.readlink(f"/proc/self/fd/{arguments[0]}")
                    os.truncate(path, size // 2)
            os.kill(os.getpid(), sends)
        return function(*arguments)

    return call


def differences(expected, found):
    """Files of two workdirs that do not hold the same bytes."""
    files = [contents(workdir) for workdir in (expected, found)]
    return [
        name
        for name in sorted({*files[0], *files[1]})
        if files[0].get(name) != files[1].get(name)
    ]


def contents(workdir):
    """Bytes of each file of a workdir that are to be compared."""
    return {
        str(path.relative_to(workdir)): path.read_bytes().replace(
            # `run.flags` says where it is.
            os.fsencode(workdir),
            b"",
        )
        for path in workdir.rglob("*")
        if path.is_file()
        and path.name not in NOT_COMPARED
        and path.parent.name != EVENTS
    }


if __name__ == "__main__":
    main()
