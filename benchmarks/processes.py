"""The processes that are measured, or that the others are compared with."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from tests.sidecar_process import COLD, SidecarProcess

START_S = 30.0
MEMORY = "remembered-fact"
"""A text in the memory of every agent made here, and nowhere else."""


def sidecar(data_dir: Path, letta: "LettaProcess | None", **settings: str) -> SidecarProcess:
    """Return a sidecar with its default settings, not started yet.

    Args:
        data_dir: Its data directory.
        letta: Its Letta; None is the embedded one.
        settings: Further environment variables.
    """
    env = {"SIDECAR_LOG_LEVEL": "info", **settings}
    if letta is not None:
        env["LETTA_BASE_URL"] = letta.url
    return SidecarProcess(data_dir, env, command=COLD)


class LettaProcess:
    """A stand-in for a Letta server, in a separate process.

    Args:
        delay_ms: How long it digests each post.
    """

    def __init__(self, *, delay_ms: float = 20.0) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._command = [sys.executable, "-m", "sidecar.testing.letta_server"]
        self._command += ["--port", str(port), "--delay-ms", str(delay_ms)]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, env=dict(os.environ))
        deadline_s = time.monotonic() + START_S
        while True:
            try:
                self._ask("GET", "/v1/health/")
            except (urllib.error.URLError, ConnectionError):
                assert time.monotonic() < deadline_s, "the stand-in did not start"
                time.sleep(0.05)
            else:
                return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)

    @property
    def pid(self) -> int:
        """Of the process."""
        assert self._process is not None
        return self._process.pid

    def fault(self, script: dict[str, Any]) -> None:
        """Merge `script` into the current faults."""
        self._ask("POST", "/_ctl", script)

    def agent(self, name: str, *, chars: int = 1_500) -> str:
        """Make an agent with two blocks of `chars` in total; returns its id."""
        half = (f"{MEMORY} " + "likes sailing and tea. " * (chars // 20))[: chars // 2]
        blocks = [{"label": label, "value": half} for label in ("human", "notes")]
        made = self._ask("POST", "/v1/agents/", {"name": name, "memory_blocks": blocks})
        return str(made["id"])

    def archive(self, agent_id: str, text: str) -> None:
        """Put a text into an agent's archival memory."""
        self._ask("POST", f"/v1/agents/{agent_id}/archival-memory", {"text": text})

    def accepted(self) -> Sequence[str]:
        """Return the text of every accepted message, in order."""
        return [message["text"] for message in self._ask("GET", "/_messages")]

    def posts(self) -> int:
        """Return how many posts came in."""
        return int(self._ask("GET", "/_stats")["posts"])

    def _ask(self, method: str, path: str, body: object = None) -> Any:
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.loads(answer.read() or b"null")
