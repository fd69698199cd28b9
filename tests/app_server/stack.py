"""A real Letta Code App Server on this machine, with a stand-in LLM.

Everything listens on free ports of 127.0.0.1 and dies with the process that started it. The
kernel sees to that when the *thread* that forked a child ends, so use a stack from the main one.

`python -m tests.app_server.stack` starts one for a look around.
"""

import argparse
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from sidecar.testing.openai_server import LOG_LIMIT
from tests.ports import free_ports

ROOT = Path(__file__).resolve().parent.parent.parent
LETTA = ROOT / ".app-server-venv/bin/letta"
MORTAL = ROOT / "tests/letta_server/mortal.py"

MODEL = "openai-compatible/demo"
READY_S = 120.0
STOP_S = 10.0
REQUEST_S = 5.0


class StackError(Exception):
    """A part of the stack did not start."""


def installed() -> bool:
    """Return whether `make app-server` has run, and git is there, which the server needs."""
    return LETTA.exists() and shutil.which("git") is not None


class AppServerStack:
    """The server and its model, as processes.

    Args:
        workdir: For logs and the server's home; made if absent.
        openai_api: Let it serve its agents as models, too.

    Attributes:
        url: Of the server, the same over restarts.
        token: The one it takes.
        llm_url: Of the stand-in LLM.
        home: The server's home folder, with agents' memory below it.
    """

    def __init__(self, workdir: Path, *, openai_api: bool = False) -> None:
        self._dir = workdir.resolve()
        self._options = ["--openai-api"] if openai_api else []
        self._port, self._llm_port = free_ports(2)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.home = self._dir / "home"
        self.url = f"ws://127.0.0.1:{self._port}"
        self.llm_url = f"http://127.0.0.1:{self._llm_port}"
        self.token = secrets.token_urlsafe(24)

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

    def start(self) -> None:
        """Start both; returns when the server answers.

        Raises:
            StackError: one ended or did not answer in time; the message holds its log's tail.
        """
        (self.home / "work").mkdir(parents=True, exist_ok=True)
        module = "sidecar.testing.openai_server"
        command = [sys.executable, "-m", module, "--port", str(self._llm_port)]
        self._spawn("llm", command, environ={**os.environ, "PYTHONPATH": str(ROOT)})
        self._wait("llm", lambda: _answers(f"{self.llm_url}/v1/models"))
        model = ["--base-url", f"{self.llm_url}/v1", "--api-key", "sk-stand-in"]
        subprocess.run(
            [str(LETTA), "--backend", "local", "connect", "openai-compatible", *model],
            check=True,
            env=self._environ(),
            cwd=self.home / "work",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=READY_S,
        )
        self.start_server()

    def start_server(self) -> None:
        """Start the server on the data that are there and wait until it answers."""
        token_file = self._dir / "token"
        token_file.write_text(self.token)
        token_file.chmod(0o600)
        listening = ["--listen", self.url, "--ws-auth", "capability-token"]
        command = [str(LETTA), "server", "--backend", "local", *listening]
        self._spawn(
            "server",
            [*command, "--ws-token-file", str(token_file), *self._options],
            environ=self._environ(),
        )
        self._wait("server", lambda: _answers(f"http://127.0.0.1:{self._port}/readyz"))

    def kill_server(self) -> None:
        """End the server with `kill -9`; its data stay."""
        process = self._processes.pop("server")
        # It is a launcher with the real server as its child.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(STOP_S)

    def pause_server(self) -> None:
        """Stop the server's clock: the kernel takes connections, nothing answers."""
        os.killpg(self._processes["server"].pid, signal.SIGSTOP)

    def resume_server(self) -> None:
        """Let a paused server go on."""
        os.killpg(self._processes["server"].pid, signal.SIGCONT)

    def control_llm(self, **faults: float | bool) -> None:
        """Set faults of the stand-in LLM (`sidecar.testing.openai_server.Faults`)."""
        request = urllib.request.Request(
            f"{self.llm_url}/_ctl",
            data=json.dumps(faults).encode(),
            headers={"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=REQUEST_S).close()

    def llm_requests(self, newest: int = LOG_LIMIT) -> list[dict[str, object]]:
        """Return the bodies of what the server asked its model, oldest first."""
        url = f"{self.llm_url}/_log?tail={newest}"
        with urllib.request.urlopen(url, timeout=REQUEST_S) as answer:
            return [one["body"] for one in json.load(answer)]

    def stop(self) -> None:
        """Stop both. Safe to call twice."""
        for name in reversed(list(self._processes)):
            process = self._processes.pop(name)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(STOP_S)

    def _environ(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        return kept | {
            "DISABLE_AUTOUPDATER": "1",
            "DO_NOT_TRACK": "1",
            "HOME": str(self.home),
            "LETTA_CODE_TELEM": "0",
            "LETTA_DISABLE_CRON_SCHEDULER": "1",
            "LETTA_DISABLE_LSP_DOWNLOAD": "1",
            "LETTA_HOME": str(self.home / ".letta"),
            "LETTA_SKIP_KEYCHAIN_CHECK": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }

    def _spawn(self, name: str, command: Sequence[str], *, environ: Mapping[str, str]) -> None:
        farewell = str(signal.SIGTERM.value)
        with (self._dir / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-SE", str(MORTAL), farewell, "", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.home / "work",
                env=environ,
                start_new_session=True,
            )

    def _wait(self, name: str, ready: Callable[[], bool]) -> None:
        process = self._processes[name]
        deadline_s = time.monotonic() + READY_S
        while time.monotonic() < deadline_s:
            if process.poll() is not None:
                raise StackError(f"{name} ended with {process.returncode}: {self._tail(name)}")
            if ready():
                return
            time.sleep(0.05)
        raise StackError(f"{name} did not answer in {READY_S:.0f} s: {self._tail(name)}")

    def _tail(self, name: str) -> str:
        return (self._dir / f"{name}.log").read_text(errors="replace")[-2000:]


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def main() -> None:
    """Start a stack, print where it is, and stop it on Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, default=Path(tempfile.gettempdir()) / "app-server")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with AppServerStack(chosen.workdir) as stack:
        where = {"url": stack.url, "token": stack.token, "llm_url": stack.llm_url}
        print(json.dumps(where), flush=True)
        try:
            signal.pause()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()
