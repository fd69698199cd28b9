"""What an owner copies from examples/vapi runs unchanged."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vapi.api import Api

pytestmark = pytest.mark.e2e

EXAMPLES = Path(__file__).parents[2] / "examples" / "vapi"


def test_the_demo_remembers() -> None:
    """`make vapi-demo` runs without any key, and its second call knows the first."""
    env = os.environ | {"SPEED": "0"}
    shown = subprocess.run(
        [sys.executable, str(EXAMPLES / "demo.py")],
        env=env,
        capture_output=True,
        text=True,
        timeout=160,
        check=True,
    ).stdout
    assert "hears    Your dog is Rex." in shown
    assert "<memory-" in shown
    letta = shown.partition("what reached Letta")[2]
    assert letta.count("Hi, my name is Sam and my dog is called Rex.") == 1
    assert "Dog: Rex" in shown.partition("what Letta remembers")[2]


@pytest.fixture
def api() -> Iterator[Api]:
    with Api() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_the_script_creates_and_then_updates(api: Api, tmp_path: Path) -> None:
    """The first run creates credentials and the assistant, and the next only updates it."""
    for name in ("assistant.py", "assistant.json"):
        (tmp_path / name).write_text((EXAMPLES / name).read_text())
    keys = {"VAPI_API_KEY": "k", "SIDECAR_VAPI_KEY": "new,old", "SIDECAR_VAPI_SECRET": "s"}
    env = os.environ | keys | {"VAPI_API_URL": f"http://127.0.0.1:{api.server_port}"}
    command = [sys.executable, str(tmp_path / "assistant.py"), "https://tunnel.example/"]
    for _ in range(2):
        subprocess.run(command, env=env, check=True, timeout=60, capture_output=True)
    assert [(method, path) for method, path, _ in api.asked] == [
        ("POST", "/credential"),
        ("POST", "/credential"),
        ("POST", "/assistant"),
        ("PATCH", "/assistant/id-3"),
    ]
    assert api.asked[0][2]["apiKey"] == "new"
    assistant = json.dumps(api.asked[3][2])
    assert "https://tunnel.example/vapi/webhook" in assistant
    assert "YOUR-TUNNEL" not in assistant
    assert "end-of-call-report" in assistant
