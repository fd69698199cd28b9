"""Become a command that does not outlive the process that started it.

Run as a script, `python -SE dies_with_parent.py PARENT_PID COMMAND…`: Linux sends SIGTERM to the
command as soon as its parent is gone, even after `kill -9`, and still does after `exec`. Elsewhere
a command that was left behind is found at the next start (`process.end_leftovers`). Only its user
can read the files that the command creates.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """Become the command."""
    parent, *command = sys.argv[1:]
    os.umask(0o077)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
    if os.getppid() != int(parent):
        sys.exit(1)  # the parent died before prctl took effect
    os.execv(command[0], command)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main()
