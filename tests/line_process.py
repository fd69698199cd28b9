"""A process that reads a command of JSON a line, and answers each with a line of JSON."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from tests.sidecar_process import SidecarProcess

ROOT = Path(__file__).parents[1]


class LineProcess:
    """A module of ours as such a process, a worker of a sidecar.

    Args:
        module: Which.
        words: Its arguments.
        sidecar: Whose token it has, in SIDECAR_LINK_TOKEN.
        code: Where the `sidecar` package is that it imports; None: this checkout.
    """

    def __init__(
        self, module: str, *words: str, sidecar: SidecarProcess, code: Path | None = None
    ) -> None:
        # With -P the directory it runs in does not come before the others.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": f"{code or ROOT}{os.pathsep}{ROOT}",
                "SIDECAR_LINK_TOKEN": sidecar.link_token,
            },
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def ask(self, **what: object) -> dict[str, Any]:
        """Have it do something, and return its answer."""
        self.send(**what)
        return self.answer()

    def send(self, **what: object) -> None:
        """Have it do something; `answer` returns when that is done."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Return its next answer."""
        assert self._process.stdout is not None
        return dict(json.loads(self._process.stdout.readline()))

    def freeze(self) -> None:
        """Let it do nothing more, with its connections open."""
        self._process.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        """Kill it, as a host does that dies. Safe to call twice."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
