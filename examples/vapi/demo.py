"""`make vapi-demo`: two recorded VAPI calls of one caller, on this machine, without any key.

Starts a stand-in for the model's server and the sidecar with its embedded Letta, plays the calls,
and shows what the caller hears, which memory went into each prompt, and what reached Letta.
"""

import contextlib
import json
import os
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from pathlib import Path
from typing import Any

from play import Player

HERE = Path(__file__).parent
START_S = 30.0
SPEED = float(os.environ.get("SPEED", "2"))


def free_port() -> int:
    """Return a port that is free at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get(url: str) -> Any:
    """GET JSON, or the text of an answer that is no JSON."""
    with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - this machine's own
        raw = answer.read()
    try:
        return json.loads(raw)
    except ValueError:
        return raw.decode()


@contextlib.contextmanager
def running(command: list[str], ready: str, env: dict[str, str], log: Path) -> Generator[None]:
    """Run a process until the context closes; it is entered once `ready` answers."""
    with (
        log.open("w") as out,
        subprocess.Popen(command, env=env, stdout=out, stderr=out) as process,  # noqa: S603
    ):
        try:
            deadline = time.monotonic() + START_S
            while True:
                with contextlib.suppress(urllib.error.URLError, OSError):
                    get(ready)
                    break
                if process.poll() is not None or time.monotonic() > deadline:
                    sys.exit(f"{command[2]} did not start:\n{log.read_text()[-2000:]}")
                threading.Event().wait(0.1)
            yield
        finally:
            process.terminate()
            process.wait(20)


def play(name: str, url: str, token: str, upstream: str) -> None:
    """Play one call and show the memory in its last prompt."""
    recorded = json.loads((HERE / "calls" / name).read_text(encoding="utf-8"))
    sys.stdout.write(f"\n{name}\n")
    Player(url, key=token, secret=token, speed=SPEED).play(recorded)
    prompts = [seen for seen in get(f"{upstream}/_log?tail=50") if seen["path"] == "chat"]
    ours = [
        p["body"]["messages"]
        for p in prompts
        if p["body"]["messages"][0]["content"][:11] == "You are Ada"
    ]
    memory = (
        [m["content"] for m in ours[-1] if m["content"] and m["content"].startswith("<memory-")]
        if ours
        else []
    )
    sys.stdout.write("  injected\n")
    for line in (memory[0] if memory else "(nothing is known of this caller yet)").splitlines():
        sys.stdout.write(f"    {line}\n")


def show_letta(database: Path) -> None:
    """Show the messages that the embedded Letta was sent, and its memory."""
    sys.stdout.write("\nwhat reached Letta\n")
    with contextlib.closing(sqlite3.connect(database)) as letta:
        for (text,) in letta.execute("SELECT text FROM messages ORDER BY at_s"):
            for line in str(text).splitlines():
                sys.stdout.write(f"    {line}\n")
        sys.stdout.write("\nwhat Letta remembers\n")
        for label, value in letta.execute("SELECT label, value FROM blocks WHERE value <> ''"):
            sys.stdout.write(f"    {label}: {value}\n")


def main() -> None:
    """Run the demo."""
    with tempfile.TemporaryDirectory(prefix="vapi-demo-") as temporary:
        directory = Path(temporary)
        model_port, port = free_port(), free_port()
        upstream, url = f"http://127.0.0.1:{model_port}", f"http://127.0.0.1:{port}"
        ours = ("SIDECAR_", "LETTA_", "LLM_", "OPENAI_", "LIVEKIT_")
        env = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
        sidecar_env = env | {
            "SIDECAR_DATA_DIR": str(directory / "data"),
            "SIDECAR_PORT": str(port),
            "SIDECAR_LETTA": "embedded",
            "LLM_BASE_URL": f"{upstream}/v1",
            "LLM_MODEL": "demo",
            "SIDECAR_VAPI_ASSISTANT": str(HERE / "assistant.json"),
        }
        python = [sys.executable, "-m"]
        model = [*python, "sidecar.testing.openai_server", "--port", str(model_port)]
        with (
            running(model, f"{upstream}/v1/models", env, directory / "model.log"),
            running(
                [*python, "sidecar", "run"], f"{url}/livez", sidecar_env, directory / "sidecar.log"
            ),
        ):
            token = (directory / "data" / "link-token").read_text(encoding="ascii").strip()
            play("first-call.json", url, token, upstream)
            play("second-call.json", url, token, upstream)
            deadline = time.monotonic() + START_S
            while get(f"{url}/readyz")["undelivered_turns"] and time.monotonic() < deadline:
                threading.Event().wait(0.1)
        show_letta(directory / "data" / "letta.db")


if __name__ == "__main__":
    main()
