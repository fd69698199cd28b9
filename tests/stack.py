"""A real server on this machine with a stand-in LLM, as processes that die with this one.

Everything listens on free ports of 127.0.0.1. The kernel ends a child when the *thread* that forked
it ends, so a stack starts its processes from the main thread.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, NoReturn, Self

import pytest

from tests.warm import Process

ROOT = Path(__file__).resolve().parent.parent
DIES_WITH_PARENT = ROOT / "tests/dies_with_parent.py"

STOP_S = 10.0
REQUEST_S = 5.0


class StackError(Exception):
    """A part of the stack did not start."""


class Stack(ABC):
    """A server and what it needs.

    Args:
        workdir: For logs and the server's own files.
        llm_port: For the stand-in LLM.
        ready_s: The longest that a part may take until it answers.
        groups: Send signals to process groups, as a process is only the launcher of the server.

    Attributes:
        llm_url: Of the stand-in LLM, the same over restarts.
    """

    # Signals for parts with clients that SIGTERM does not end at once.
    _STOP_SIGNALS: ClassVar[Mapping[str, signal.Signals]] = {}

    def __init__(
        self, workdir: Path, *, llm_port: int, ready_s: float, groups: bool = False
    ) -> None:
        self._dir = workdir.resolve()
        self._llm_port = llm_port
        self._ready_s = ready_s
        self._groups = groups
        self._processes: dict[str, Process] = {}
        self.llm_url = f"http://127.0.0.1:{llm_port}"

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @abstractmethod
    def start(self) -> None:
        """Start every part; returns when the server answers.

        Raises:
            StackError: a part ended or did not answer in time; the message holds its log's tail.
        """

    def stop(self) -> None:
        """Stop every part that runs. Safe to call twice."""
        for name in reversed(list(self._processes)):
            self._end(name, self._STOP_SIGNALS.get(name, signal.SIGTERM))

    # The stand-in LLM

    def start_llm(self) -> None:
        """Start the stand-in LLM."""
        module = "sidecar.testing.openai_server"
        command = [sys.executable, "-m", module, "--port", str(self._llm_port)]
        self._spawn("llm", command, environ={**os.environ, "PYTHONPATH": str(ROOT)})
        self._wait("llm", lambda: answers(f"{self.llm_url}/v1/models"))

    def control_llm(self, **faults: float | bool) -> None:
        """Set faults of the stand-in LLM (`sidecar.testing.openai_server.Faults`)."""
        request = urllib.request.Request(
            f"{self.llm_url}/_ctl",
            data=json.dumps(faults).encode(),
            headers={"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=REQUEST_S).close()

    # Processes

    def _spawn(
        self,
        name: str,
        command: Sequence[str],
        *,
        environ: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        farewell: signal.Signals = signal.SIGKILL,
        user: str = "",
    ) -> None:
        """Start a process that gets the signal `farewell` when this one dies."""
        if threading.current_thread() is not threading.main_thread():
            raise StackError(f"{name} would die with this thread: start it from the main one")
        with (self._dir / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-SE", str(DIES_WITH_PARENT), str(farewell.value), user, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=cwd or self._dir,
                env=environ,
                start_new_session=True,
            )

    def _send(self, name: str, sent: signal.Signals) -> None:
        self._signal(self._processes[name], sent)

    def _end(self, name: str, with_signal: signal.Signals) -> None:
        process = self._processes.pop(name, None)
        if process is None:
            return
        self._signal(process, with_signal)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._signal(process, signal.SIGKILL)
            process.wait(STOP_S)

    def _signal(self, process: Process, sent: signal.Signals) -> None:
        if process.poll() is not None:
            return
        if self._groups:
            os.killpg(process.pid, sent)
        else:
            process.send_signal(sent)

    def _wait(self, name: str, ready: Callable[[], bool]) -> None:
        process = self._processes[name]
        deadline_s = time.monotonic() + self._ready_s
        while time.monotonic() < deadline_s:
            if process.poll() is not None:
                raise StackError(f"{name} ended with {process.returncode}: {self._tail(name)}")
            if ready():
                return
            time.sleep(0.1)
        raise StackError(f"{name} did not answer in {self._ready_s:.0f} s: {self._tail(name)}")

    def _tail(self, name: str) -> str:
        return (self._dir / f"{name}.log").read_text(errors="replace")[-2000:]


def listens(port: int) -> bool:
    """Return whether something accepts connections."""
    try:
        socket.create_connection(("127.0.0.1", port), 0.5).close()
    except OSError:
        return False
    return True


def answers(url: str) -> bool:
    """Return whether a GET is answered with 200."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def not_installed(why: str) -> NoReturn:
    """Skip the test, or fail it on CI, where every server is installed."""
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)


def run_until_stopped(stack: Stack, where: Callable[[], Mapping[str, object]]) -> None:
    """Start a stack, print where it is, and stop it on Ctrl-C or SIGTERM."""

    def leave(_number: int, _frame: object) -> None:
        sys.exit(0)

    signal.signal(signal.SIGTERM, leave)
    with stack:
        print(json.dumps(where()), flush=True)
        try:
            signal.pause()
        except KeyboardInterrupt:
            return
