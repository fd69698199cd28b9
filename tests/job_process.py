"""A worker process with one call, as a LiveKit job has it (`one_job.py`); it may be killed."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.sidecar_process import SidecarProcess

ROOT = Path(__file__).parents[1]


class Job:
    """The process.

    Args:
        name: Of the job.
        sidecar: Which it reaches.
        spool: Of all workers.
    """

    def __init__(self, name: str, sidecar: SidecarProcess, spool: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.one_job", name, sidecar.link_url, str(spool)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "SIDECAR_LINK_TOKEN": sidecar.link_token},
        )

    def ask(self, **what: object) -> dict[str, Any]:
        """Have it do something, and return its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        return dict(json.loads(self._process.stdout.readline()))

    def say(self, *texts: str, acked: bool = True) -> None:
        """Say something; `acked` waits until the sidecar has all of it."""
        for text in texts:
            self.ask(do="say", text=text)
        if acked:
            self.ask(do="flush")

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


@contextmanager
def job(name: str, sidecar: SidecarProcess, spool: Path) -> Generator[Job]:
    """Start a job, and kill it in the end."""
    one = Job(name, sidecar, spool)
    try:
        yield one
    finally:
        one.kill()
