"""A real Letta Code App Server on this machine, with a stand-in LLM.

`python -m tests.app_server.stack` starts one to look around.
"""

import argparse
import json
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

from typing_extensions import override

from sidecar.testing.openai_server import LOG_LIMIT
from tests.ports import free_ports
from tests.stack import REQUEST_S, ROOT, Stack, answers, run_until_stopped

LETTA = ROOT / ".app-server-venv/bin/letta"

MODEL = "openai-compatible/demo"
READY_S = 120.0


def installed() -> bool:
    """Return whether `make app-server` has run, and git, which the server needs, is installed."""
    return LETTA.exists() and shutil.which("git") is not None


class AppServerStack(Stack):
    """The server and its model.

    Args:
        workdir: For logs and the server's home; made if absent.
        openai_api: Have it serve its agents as models, too.

    Attributes:
        url: Of the server, the same over restarts.
        token: The token that it requires.
        llm_url: Of the stand-in LLM.
        home: The server's home folder, which holds the agents' memory.
    """

    def __init__(self, workdir: Path, *, openai_api: bool = False) -> None:
        self._port, llm_port = free_ports(2)
        super().__init__(workdir, llm_port=llm_port, ready_s=READY_S, groups=True)
        self._options = ["--openai-api"] if openai_api else []
        self.home = self._dir / "home"
        self.url = f"ws://127.0.0.1:{self._port}"
        self.token = secrets.token_urlsafe(24)

    @override
    def start(self) -> None:
        (self.home / "work").mkdir(parents=True, exist_ok=True)
        self.start_llm()
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
        """Start the server on its existing data and wait until it answers."""
        token_file = self._dir / "token"
        token_file.write_text(self.token)
        token_file.chmod(0o600)
        listening = ["--listen", self.url, "--ws-auth", "capability-token"]
        command = [str(LETTA), "server", "--backend", "local", *listening]
        self._spawn(
            "server",
            [*command, "--ws-token-file", str(token_file), *self._options],
            environ=self._environ(),
            cwd=self.home / "work",
            farewell=signal.SIGTERM,
        )
        self._wait("server", lambda: answers(f"http://127.0.0.1:{self._port}/readyz"))

    def kill_server(self) -> None:
        """End the server with `kill -9`; its data are kept."""
        self._end("server", signal.SIGKILL)

    def pause_server(self) -> None:
        """Suspend the server: the kernel accepts connections, and nothing answers."""
        self._send("server", signal.SIGSTOP)

    def resume_server(self) -> None:
        """Resume a suspended server."""
        self._send("server", signal.SIGCONT)

    def llm_requests(self, newest: int = LOG_LIMIT) -> list[dict[str, Any]]:
        """Return the bodies of the server's requests to its model, oldest first."""
        url = f"{self.llm_url}/_log?tail={newest}"
        with urllib.request.urlopen(url, timeout=REQUEST_S) as answer:
            return [one["body"] for one in json.load(answer)]

    def _environ(self) -> dict[str, str]:
        inherited = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        return inherited | {
            "DISABLE_AUTOUPDATER": "1",
            "DO_NOT_TRACK": "1",
            "HOME": str(self.home),
            "LETTA_CODE_TELEM": "0",
            "LETTA_DISABLE_CRON_SCHEDULER": "1",
            "LETTA_DISABLE_LSP_DOWNLOAD": "1",
            "LETTA_HOME": str(self.home / ".letta"),
            "LETTA_SKIP_KEYCHAIN_CHECK": "1",
            "NODE_COMPILE_CACHE": str(LETTA.parent.parent / ".compiled"),
            "NO_PROXY": "127.0.0.1,localhost",
        }


def main() -> None:
    """Start a stack, print where it is, and stop it on Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, default=Path(tempfile.gettempdir()) / "app-server")
    chosen = parser.parse_args()
    stack = AppServerStack(chosen.workdir)
    run_until_stopped(
        stack, lambda: {"url": stack.url, "token": stack.token, "llm_url": stack.llm_url}
    )


if __name__ == "__main__":
    main()
