"""The stand-in for the model's server, as a separate process."""

import contextlib
import json
import subprocess
import sys
import urllib.error
import urllib.request
from typing import Any, Self

import msgspec

from sidecar.testing.openai_server import ModelFaults
from tests.ports import free_port
from tests.sidecar_process import eventually, get


class Model:
    """Runs while its context is open; returns its requests and can be made to fail.

    Args:
        say: Its answer to every request; if empty, the demo model answers.
    """

    def __init__(self, *, say: str = "") -> None:
        self._say = ["--say", say] if say else []
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "sidecar.testing.openai_server", "--port", str(self.port)]
        self._process = subprocess.Popen([*command, *self._say])

        def up() -> bool:
            with contextlib.suppress(urllib.error.URLError, OSError):
                return get(f"{self.url}/v1/models")[0] == 200
            return False

        eventually(up)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # it may be in the middle of a long fault
        self._process.wait(10)

    def begin_anew(self) -> None:
        """Remove all faults, and forget all requests."""
        self.faults(**msgspec.structs.asdict(ModelFaults()), clear=True)

    def faults(self, **faults: object) -> None:
        request = urllib.request.Request(
            f"{self.url}/_ctl", json.dumps(faults).encode(), {"Content-Type": "application/json"}
        )
        urllib.request.urlopen(request, timeout=5).close()

    def prompts(self) -> list[dict[str, Any]]:
        """The bodies of requests for a caller's reply, without those of the embedded Letta."""
        seen = json.loads(get(f"{self.url}/_log?tail=1000")[1])
        return [
            one["body"]
            for one in seen
            if one["path"] == "chat" and "You are Ada" in str(one["body"]["messages"][0]["content"])
        ]
