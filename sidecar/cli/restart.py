"""`sidecar run --restart`: a small parent that starts the sidecar again when it is killed.

The parent holds no call and no journal: it waits for its child, passes signals on, and exits with
its exit code. It starts the child again only if a signal killed it and the parent received none: a
wrong setting, or an end that was asked for, is final. The parent passes the page's token to each
child, so that an open page reconnects by itself.

Parent and child hold the two ends of one socket. The parent sends one line: the token, and the
process groups of earlier children in which something still runs (the voice worker, whose calls go
on). The child sends one byte once it serves. When the parent dies, the child reads the end of the
stream and drains as on SIGTERM.
"""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
STILLBORN_LIMIT = 3
AGAIN_S = 0.2
_SIGNAL_EXIT = 128


class Parent:
    """Keeps one command running.

    Args:
        command: Started with `--parent-fd N` added.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._token = secrets.token_urlsafe(24)
        self._child: subprocess.Popen[bytes] | None = None
        self._groups: list[int] = []
        self._asked: int | None = None

    def run(self) -> int:
        """Run until the command ends by itself or was told to; returns the exit code."""
        for number in PASSED_ON:
            signal.signal(number, self._pass_on)
        stillborn = 0
        while True:
            code, came_up = self._run_once()
            if code >= 0:
                return code
            stillborn = 0 if came_up else stillborn + 1
            if self._asked is not None or stillborn == STILLBORN_LIMIT:
                return _SIGNAL_EXIT - code
            sys.stderr.write(f"sidecar: killed by signal {-code}; starting it again\n")
            time.sleep(AGAIN_S)

    def _run_once(self) -> tuple[int, bool]:
        """Start the command and wait for its end; returns its code and whether it came up."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            # Its own process group: the terminal's Ctrl-C reaches only the parent, and only once.
            self._child = child = subprocess.Popen(  # noqa: S603 - our own command
                [*self._command, "--parent-fd", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                process_group=0,
            )
            theirs.close()
            self._groups = [group for group in self._groups if _runs(group)]
            groups = " ".join(map(str, self._groups))
            with contextlib.suppress(BrokenPipeError):
                ours.sendall(f"{self._token} {groups}\n".encode())
            if self._asked is not None:
                child.send_signal(self._asked)
            code = child.wait()
            self._groups.append(child.pid)
            ours.setblocking(False)
            with contextlib.suppress(OSError):
                return code, bool(ours.recv(1))
            return code, False

    def _pass_on(self, number: int, _: FrameType | None) -> None:
        self._asked = number
        if self._child is not None:
            self._child.send_signal(number)


class Child:
    """The child's end of the socket.

    Args:
        fd: Number of the inherited socket.

    Attributes:
        page_token: The token that admits the page.
        earlier_groups: Process groups of killed predecessors in which something still runs.
    """

    def __init__(self, fd: int) -> None:
        self._line = socket.socket(fileno=fd)
        self._line.set_inheritable(False)  # uvloop closes nothing in the processes it starts
        with self._line.makefile("r") as lines:
            self.page_token, *groups = lines.readline().split() or [""]
        self.earlier_groups = [int(group) for group in groups]
        threading.Thread(target=self._watch_parent, daemon=True).start()

    def came_up(self) -> None:
        """Tell the parent that the sidecar serves."""
        with contextlib.suppress(OSError):
            self._line.send(b"u")

    def _watch_parent(self) -> None:
        with contextlib.suppress(OSError):
            self._line.recv(1)
        os.kill(os.getpid(), signal.SIGTERM)


def _runs(group: int) -> bool:
    """Whether a process of this group still exists."""
    try:
        os.killpg(group, 0)
    except OSError:
        return False
    return True
