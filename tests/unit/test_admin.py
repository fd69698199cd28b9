"""The commands that the command line sends to a running sidecar."""

import json
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any, cast

import pytest
from starlette.applications import Starlette

from sidecar.call_names import short_id
from sidecar.calls.commands import CallCommands
from sidecar.channels.admin import Admin
from sidecar.model import AgentRef, Call
from sidecar.testing.memory_journal import MemoryJournal

pytestmark = [pytest.mark.unit, pytest.mark.anyio, pytest.mark.backend("asyncio", "trio")]


class Line:
    """A live call that notes its commands."""

    def __init__(self, call_id: str) -> None:
        self.call = Call(f"t/{call_id}", AgentRef("t"), "livekit", "", 0.0)
        self.guidance: list[str] = []

    @property
    def key(self) -> str:
        return self.call.key

    def guide(self, text: str) -> None:
        self.guidance.append(text)


async def asked(directory: Path, live: list[Line], call: str) -> tuple[int, dict[str, Any]]:
    """Ask for guidance in a call; returns the status and the answer."""
    nothing = cast("Any", None)
    commands = CallCommands(MemoryJournal(), live=lambda: cast("Any", live))
    admin = Admin(nothing, commands=commands, forget=nothing, clock=lambda: 0.0)
    admin.announce(directory, "http://127.0.0.1:1")
    token = json.loads((directory / "control.json").read_text())["token"]
    body = json.dumps({"call": call, "command": "guide", "text": "Be brief."}).encode()
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/admin/command",
        "raw_path": b"/admin/command",
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1"), (b"authorization", f"Bearer {token}".encode())],
        "client": ("127.0.0.1", 1),
    }
    await Starlette(routes=admin.routes())(scope, receive, send)
    answer = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], json.loads(answer)


async def test_a_live_call_goes_by_any_of_its_names(tmp_path: Path) -> None:
    """A key, an id, a short id or the start of one reaches its call; another name reaches none."""
    line, other = Line("AJ_one"), Line("AJ_two")
    for name in ("t/AJ_one", "AJ_one", "AJ_o", short_id("t/AJ_one"), short_id("t/AJ_one")[:6]):
        assert await asked(tmp_path, [line, other], name) == (200, {"done": True})
    assert len(line.guidance) == 5
    assert other.guidance == []
    assert await asked(tmp_path, [line, other], "AJ_three") == (200, {"done": False})


async def test_an_ambiguous_name_reaches_nobody(tmp_path: Path) -> None:
    """A name that fits two calls reaches neither, and the answer names both."""
    lines = [Line("console-1"), Line("console-2")]
    status, answer = await asked(tmp_path, lines, "console")
    assert status == 409
    assert all(line.guidance == [] and short_id(line.key) in answer["hint"] for line in lines)
