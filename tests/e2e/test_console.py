"""The console: a person types, is remembered, through the real process."""

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.console_page import opened
from tests.sidecar_process import SidecarProcess, eventually, get

pytestmark = pytest.mark.e2e


@pytest.fixture
def sidecar(tmp_path: Path) -> Iterator[SidecarProcess]:
    with SidecarProcess(tmp_path / "data") as process:
        yield process


def test_who_says_a_fact_is_remembered_in_the_next_call(sidecar: SidecarProcess) -> None:
    """Say a name, hang up, call again, ask: the agent knows it, from its memory block."""
    with opened(sidecar) as page:
        assert page.until("ready")["summary"]["letta"]
        page.call("ada")
        page.say("Hello, my name is Ada and I live in Lyon.")
        page.hang_up()
        eventually(lambda: sidecar.undelivered() == 0)
        page.call("ada")
        memory = page.until("memory", served="fresh")
        assert any("Ada" in block["value"] for block in memory["blocks"])
        assert "Ada" in page.say("What is my name?")


def test_who_calls_again_at_once_is_remembered(sidecar: SidecarProcess) -> None:
    """Asked in the very moment of its opening, the second call knows what the first one said."""
    with opened(sidecar) as page:
        page.call("ada")
        page.say("My dog is called Rex.")
        page.hang_up()
        page.send(type="call.start", caller="ada")
        assert "Rex" in page.say("What is my dog called?")


def test_another_caller_is_not_told(sidecar: SidecarProcess) -> None:
    """What one caller said is not in another's call."""
    with opened(sidecar) as page:
        page.call("ada")
        page.say("My name is Ada.")
        page.hang_up()
        eventually(lambda: sidecar.undelivered() == 0)
        page.call("bob")
        assert "Ada" not in page.say("What is my name?")


def test_killed_and_started_again_it_remembers(tmp_path: Path) -> None:
    """Kill -9 in the middle of a call: every turn reaches memory after the restart."""
    with SidecarProcess(tmp_path / "data") as sidecar:
        with opened(sidecar) as page:
            page.call("ada")
            page.say("My name is Ada.")
            sidecar.kill()
        sidecar.start()
        with opened(sidecar) as page:
            page.call("ada")
            assert "Ada" in page.say("What is my name?")


@pytest.mark.parametrize("token", ["", "wrong", "\u00e9"])
def test_a_wrong_token_is_shown_the_door(sidecar: SidecarProcess, token: str) -> None:
    """Without this start's token no call can be made."""
    with opened(sidecar, token=token) as page, pytest.raises(ConnectionClosed) as closed:
        page.until("ready")
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 4401


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "https://127.0.0.1", "http://127.0.0.1.evil.example"]
)
def test_a_foreign_page_cannot_open_the_socket(sidecar: SidecarProcess, origin: str) -> None:
    """A browser on another site is refused before it can say anything."""
    url = f"ws://127.0.0.1:{sidecar.port}/console/ws"
    with pytest.raises(InvalidStatus) as refused, connect(url, origin=origin):  # type: ignore[arg-type]
        pass
    assert refused.value.response.status_code == 403


def test_a_rebound_name_gets_no_page(sidecar: SidecarProcess) -> None:
    """A foreign name that resolves to this machine is answered 403."""
    with socket.create_connection(("127.0.0.1", sidecar.port), 5) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
        assert b" 403 " in raw.recv(100)


def test_the_page_needs_no_inline_script_and_no_other_host(sidecar: SidecarProcess) -> None:
    """The page works under a strict content policy and without the internet."""
    status, html = get(f"{sidecar.url}/")
    assert status == 200
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|https?://", html)
    for path in ("/console.js", "/console.css"):
        status, text = get(f"{sidecar.url}{path}")
        assert status == 200
        assert "https://" not in text


def test_readiness_follows_the_drain(sidecar: SidecarProcess) -> None:
    """Ready while serving; after SIGTERM the page's call is ended and the process leaves with 0."""
    assert sidecar.readiness()["ready"] is True
    with opened(sidecar) as page:
        page.call("ada")
        page.say("My name is Ada.")
        sidecar.terminate()
    assert sidecar.wait() == 0
    eventually(lambda: any('"drained"' in line for line in sidecar.log))
    assert "Ada" not in "".join(sidecar.log)
