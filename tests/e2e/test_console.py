"""The local page's socket on the real process: a person types and is remembered."""

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


@pytest.fixture(scope="module")
def unheard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SidecarProcess]:
    """A sidecar without calls, for tests of who is let in."""
    with SidecarProcess(tmp_path_factory.mktemp("unheard") / "data") as process:
        yield process


def test_who_says_a_fact_is_remembered_in_the_next_call(sidecar: SidecarProcess) -> None:
    """A name said in one call is in the memory block and is known in the next call."""
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
    """A question at the very start of the second call is answered from the first one."""
    with opened(sidecar) as page:
        page.call("ada")
        page.say("My dog is called Rex.")
        page.hang_up()
        page.dial("ada")
        assert "Rex" in page.say("What is my dog called?")


def test_another_caller_is_not_told(sidecar: SidecarProcess) -> None:
    """What one caller said is not known in another caller's call."""
    with opened(sidecar) as page:
        page.call("ada")
        page.say("My name is Ada.")
        page.hang_up()
        eventually(lambda: sidecar.undelivered() == 0)
        page.call("bob")
        assert "Ada" not in page.say("What is my name?")


def test_words_said_again_are_stored_once(tmp_path: Path) -> None:
    """A page that takes its call up again after kill -9 and repeats turns stores each one once."""
    with SidecarProcess(tmp_path / "data") as sidecar:
        with opened(sidecar) as page:
            call = page.call("ada")
            first = page.begin_saying("My name is Ada.")
            reply = page.until("reply.end")
            sidecar.kill()
        sidecar.start()
        with opened(sidecar) as page:
            resumed = page.resume(call, "ada")
            assert [turn["id"] for turn in resumed["turns"]] == [first, f"reply-{first}"]
            assert page.say("My name is Ada.", turn=first) == reply["text"]
            second = page.begin_saying("I live in Lyon.")
            page.until("turn", turn=second, stored=True)
            page.say("I live in Lyon.", turn=second)
            page.send(type="call.watch", call=call)
            transcript = page.until("transcript", call=call)
            assert [turn["id"] for turn in transcript["turns"]] == [
                first,
                f"reply-{first}",
                second,
                f"reply-{second}",
            ]


def test_a_reply_read_aloud_is_kept_as_it_was_heard(sidecar: SidecarProcess) -> None:
    """A reply that is cut off is recorded as far as it was heard."""
    with opened(sidecar) as page:
        call = page.call("ada")
        turn = page.begin_saying("My name is Ada and I live in Lyon.", aloud=True)
        page.until("reply.spoken", turn=turn)
        page.send(type="reply.stop", call=call, heard_chars=12)
        end = page.until("reply.end", turn=turn)
        assert end["interrupted"] is True
        assert len(end["text"]) <= 12
        whole = page.begin_saying("I like jazz.", aloud=True)
        page.until("reply.spoken", turn=whole)
        page.send(type="reply.heard", call=call, turn=whole)
        assert page.until("reply.end", turn=whole)["interrupted"] is False


def test_a_page_sees_the_calls_of_another(sidecar: SidecarProcess) -> None:
    """Live calls of every page are listed, and another page can watch one."""
    with opened(sidecar) as page, opened(sidecar) as other:
        call = page.call("ada")
        page.say("My name is Ada.")
        while not any(live["call"] == call for live in other.until("calls")["live"]):
            pass
        other.send(type="call.watch", call=call)
        assert other.until("transcript", call=call)["live"] is True
        other.send(type="say", call=call, turn="x", text="I am somebody else.")
        assert "start a call" in other.until("error")["message"]


@pytest.mark.parametrize("call", ["", "console-1", "default/other-" + "0" * 36, 7])
def test_a_call_needs_an_id_of_its_own(unheard: SidecarProcess, call: object) -> None:
    """A page's call needs a UUID, so it can't use another channel's call."""
    with opened(unheard) as page:
        page.send(type="call.start", call=call, caller="ada")
        assert "UUID" in page.until("error")["message"]
        assert page.until("call")["live"] is False


def test_a_page_holds_so_many_calls_at_once(sidecar: SidecarProcess) -> None:
    """A page's 17th call is refused with an error, until others have ended."""
    with opened(sidecar) as page:
        for _ in range(16):
            page.call("ada")
        page.dial("ada")
        assert "16" in page.until("error")["message"]
        assert page.until("call", live=False)
        page.hang_up_all()
        page.call("ada")


def test_without_a_parent_it_is_not_killed(unheard: SidecarProcess) -> None:
    """The page's kill is refused where nothing would start the sidecar again."""
    with opened(unheard) as page:
        assert page.until("ready")["restarts"] is False
        page.send(type="kill")
        assert "--restart" in page.until("error")["message"]
    assert unheard.readiness()["ready"] is True


def test_killed_and_started_again_it_remembers(tmp_path: Path) -> None:
    """After kill -9 in the middle of a call, every turn reaches memory."""
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
def test_a_wrong_token_is_shown_the_door(unheard: SidecarProcess, token: str) -> None:
    """A page without this start's token is closed with 4401."""
    with opened(unheard, token=token) as page, pytest.raises(ConnectionClosed) as closed:
        page.until("ready")
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 4401


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "https://127.0.0.1", "http://127.0.0.1.evil.example"]
)
def test_a_foreign_page_cannot_open_the_socket(unheard: SidecarProcess, origin: str) -> None:
    """A browser's socket from another site is refused before any frame."""
    url = f"ws://127.0.0.1:{unheard.port}/console/ws"
    with pytest.raises(InvalidStatus) as refused:
        connect(url, origin=origin)  # type: ignore[arg-type]
    assert refused.value.response.status_code == 403


def test_a_rebound_name_gets_no_page(unheard: SidecarProcess) -> None:
    """A foreign name that resolves to this machine is answered 403."""
    with socket.create_connection(("127.0.0.1", unheard.port), 5) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
        assert b" 403 " in raw.recv(100)


def test_the_page_needs_no_inline_script_and_no_other_host(unheard: SidecarProcess) -> None:
    """The page has a strict content policy and needs nothing from the internet."""
    status, html = get(f"{unheard.url}/")
    assert status == 200
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|https?://", html)
    linked = re.findall(r'(?:src|href)="(/[^"]+)"', html)
    assert len(linked) >= 4
    for path in linked:
        assert get(f"{unheard.url}{path}")[0] == 200


def test_readiness_follows_the_drain(sidecar: SidecarProcess) -> None:
    """SIGTERM ends the page's call, drains the sidecar and exits with 0."""
    assert sidecar.readiness()["ready"] is True
    with opened(sidecar) as page:
        page.call("ada")
        page.say("My name is Ada.")
        sidecar.terminate()
    assert sidecar.wait() == 0
    eventually(lambda: any('"drained"' in line for line in sidecar.log))
    assert "Ada" not in "".join(sidecar.log)
