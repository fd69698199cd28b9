"""The sidecar as its user runs it: a process with its own data directory."""

import atexit
import functools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tests.warm import Process, Warm

START_S = 120.0
COLD = (sys.executable, "-m", "sidecar", "run")
"""The command itself, where its start is what is meant."""
IMPORTED = ("sidecar.cli", "sidecar.app.serve", "sidecar.letta.rest.letta")


def without_settings() -> dict[str, str]:
    """Return this machine's environment without what a sidecar reads of it."""
    ours = ("SIDECAR_", "LETTA_", "LLM_", "OPENAI_", "LIVEKIT_", "VAPI_", "OTEL_", "COVERAGE")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


@functools.cache
def warm() -> Warm:
    """Return what starts `sidecar` without the second that its imports take."""
    started = Warm(IMPORTED, env=without_settings())
    atexit.register(started.close)
    return started


def sidecar_command(
    *args: str, env: Mapping[str, str], stdin: str = "", stderr: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `python -m sidecar` with arguments to its end.

    Args:
        args: The arguments.
        env: Its whole environment.
        stdin: What it can read.
        stderr: Where it writes errors; None: they are returned.
    """
    return warm().run(["sidecar", *args], env=env, stdin=stdin, stderr=stderr, timeout=60.0)


class SidecarProcess:
    """`python -m sidecar run` on a free port of this machine.

    Args:
        data_dir: Kept over restarts.
        env: Settings besides the data directory; the machine's own are removed.
        port: 0 takes a free one, and keeps it over restarts.
        command: Replaces this checkout's `sidecar run`, which is started warm.
        imported: Starts the `sidecar run` that it has imported, in place of this checkout's.
        cwd: The working directory; by default the test's.
    """

    def __init__(
        self,
        data_dir: Path,
        env: Mapping[str, str] | None = None,
        *,
        port: int = 0,
        command: Sequence[str] = (),
        imported: Warm | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.data_dir = data_dir
        self.port = port
        self.token = ""
        self.banner = ""
        self.log: list[str] = []
        self._env = dict(env or {})
        self._command = command
        self._imported = imported
        self._cwd = cwd
        self._process: Process | None = None
        self._readers: list[threading.Thread] = []

    def start(self) -> Self:
        """Start it and return when it answers."""
        env = without_settings() | {
            "SIDECAR_DATA_DIR": str(self.data_dir),
            "SIDECAR_PORT": str(self.port),
            "SIDECAR_LETTA": "embedded",  # unless a test sets another
            "SIDECAR_LOG_JSON": "1",
            "SIDECAR_LOG_LEVEL": "debug",
            "PYTHONUNBUFFERED": "1",
            **self._env,
        }
        banner: list[str] = []
        up = threading.Event()
        out, out_end = os.pipe()
        err, err_end = os.pipe()
        process: Process
        if self._command:
            process = subprocess.Popen(
                self._command,
                cwd=self._cwd,
                env=env,
                stdout=out_end,
                stderr=err_end,
                start_new_session=True,
            )
        else:
            process = (self._imported or warm()).start(
                ["sidecar", "run"], cwd=self._cwd, env=env, stdout=out_end, stderr=err_end
            )
        self._process = process
        os.close(out_end)
        os.close(err_end)

        def read_banner() -> None:
            with open(out, encoding="utf-8") as lines:  # noqa: PTH123 - a pipe
                for line in lines:
                    banner.append(line)
                    if line.strip().startswith("data "):
                        up.set()
            up.set()

        def read_log() -> None:
            with open(err, encoding="utf-8") as lines:  # noqa: PTH123 - a pipe
                self.log.extend(lines)

        self._readers = [threading.Thread(target=r, daemon=True) for r in (read_banner, read_log)]
        for reader in self._readers:
            reader.start()
        in_time = up.wait(START_S)
        self.banner = text = "".join(banner)
        link = re.search(r"link +ws://[^:]+:(\d+)/link", text)
        if link is None:
            try:
                process.wait(5.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            why = "".join(self.log) if in_time else f"no banner within {START_S:g} s"
            raise AssertionError(f"the sidecar did not start: {text} {why}")
        self.port = int(link[1])
        page = re.search(r"page +\S+/#(\S+)", text)
        self.token = page[1] if page else ""
        return self

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def link_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/link"

    @property
    def link_token(self) -> str:
        """The link's token, either set or made by the sidecar."""
        made = self.data_dir / "link-token"
        return self._env.get("SIDECAR_LINK_TOKEN") or made.read_text(encoding="ascii").strip()

    @property
    def bearer(self) -> dict[str, str]:
        """The headers with `link_token`."""
        return {"Authorization": f"Bearer {self.link_token}"}

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def readiness(self) -> dict[str, Any]:
        """The content of `/readyz`."""
        return dict(json.loads(get(f"{self.url}/readyz")[1]))

    def undelivered(self) -> int:
        """How many turns Letta has not digested."""
        return int(self.readiness()["undelivered_turns"])

    def live_calls(self) -> int:
        """How many calls are live."""
        return int(self.readiness()["live_calls"])

    def is_at_rest(self) -> bool:
        """Whether no call is live and Letta has digested all turns."""
        state = self.readiness()
        return state["live_calls"] == state["undelivered_turns"] == 0

    def has_logged(self, event: str) -> bool:
        """Whether its log has an event, which may come a moment after the answer to a request."""
        return any(f'"event": "{event}"' in line for line in self.log)

    def kill(self) -> None:
        """Kill it at once, as `kill -9` does."""
        if self._process is not None:
            self._process.kill()
            self.wait(10.0)

    def terminate(self) -> None:
        """Send SIGTERM and do not wait."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    def wait(self, timeout_s: float = 30.0) -> int:
        """Wait for the end and return the exit code."""
        assert self._process is not None
        code = self._process.wait(timeout_s)
        self._process = None
        for reader in self._readers:
            reader.join(5.0)
        return code

    def stop(self) -> None:
        """Send SIGTERM, twice if once is not enough, then kill."""
        if self._process is None:
            return
        for wait_s in (1.0, 20.0):  # the second signal skips the wait for live calls
            self.terminate()
            try:
                self.wait(wait_s)
            except subprocess.TimeoutExpired:
                continue
            return
        self.kill()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


RESTARTED = (sys.executable, "-m", "sidecar", "run", "--restart")
"""Runs it under a parent that starts it again when it is killed; `pid` is the parent's."""


def get(url: str) -> tuple[int, str]:
    """GET; returns status and body, also for an error."""
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def eventually(what: Callable[[], bool], *, within_s: float = 60.0, saying: str = "") -> None:
    """Return as soon as `what` holds; fail if that takes longer than the limit."""
    deadline = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {saying or what}"
        threading.Event().wait(0.05)
