# SPDX-License-Identifier: Apache-2.0
"""Noisy Student Training from the command line: `python main.py --help`."""

import errno
import logging
import os
import signal
import sys
import sysconfig

from noisy_student import command_line
from noisy_student import startup
from noisy_student import stopping
from noisy_student.errors import UserError


def main(argv):
    """Run one command.

    Args:
        argv: As `sys.argv`.

    Returns:
        Exit code: 0 for success, 2 for what the user can mend, 143 after
        SIGTERM, 130 after Ctrl-C, 129 after SIGHUP.
    """
    try:
        with stopping.signals():
            return run(argv)
    except stopping.Stopped as stopped:
        print(
            f"stopped by {stopped}; the same command goes on", file=sys.stderr
        )
        return stopped.exit_code


def run(argv):
    """`main`, but for signals."""
    try:
        config = command_line.parse(argv, say=print)
        # Only now, so that --help and a wrong flag are answered at once.
        # Keras would write a file of settings into the home folder, and take
        # those that it finds there, such as another order of dimensions.
        os.environ.setdefault("KERAS_HOME", os.devnull)
        logging.getLogger("tensorflow").setLevel(logging.ERROR)
        # TensorFlow's notes on itself help nobody here; its errors still show.
        startup.import_tensorflow()
        from noisy_student import phases

        phases.run_mode(config)
    except command_line.HelpRequested as help_requested:
        # `--help | head` is no error.
        if hasattr(signal, "SIGPIPE"):
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        print(help_requested)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if not error.filename or _is_installed(error.filename):
            raise
        way_out = "nothing that was finished is lost, and the same command"
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            way_out = "change its permissions, or give another path"
        elif error.errno == errno.ENOENT:
            way_out = f"bring it back; {way_out} goes on"
        else:
            way_out += " goes on"
        print(
            f"error: {error.filename}: {error.strerror or error}; {way_out}",
            file=sys.stderr,
        )
        return 2
    return 0


def _is_installed(path):
    """Whether a file is part of Python or a package: none of the user's."""
    path = os.path.abspath(os.fspath(path))
    return any(
        path.startswith(os.path.join(sysconfig.get_paths()[name], ""))
        for name in ("stdlib", "platlib", "purelib")
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv))
