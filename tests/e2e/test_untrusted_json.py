"""JSON from outside to the page, the link and `/admin` is refused and never causes a fault."""

import contextlib
import http.client
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin, Subprotocol

from sidecar.wire.frames import SUBPROTOCOL
from tests.sidecar_process import SidecarProcess, get

pytestmark = pytest.mark.e2e

DEEP = "[" * 100_000
STRANGE = (
    "null",
    "true",
    "-1",
    "1.5",
    "1" + "0" * 400,
    str(2**63),
    "1e999",
    '""',
    '"\\u0000"',
    '"\\ud800"',
    json.dumps("x" * 20_000),
    json.dumps("../../etc/passwd"),
    "[]",
    "{}",
    "[[[1]]]",
    '{"a": {"b": [1, {}]}}',
    "[" * 900 + "]" * 900,
    "[" * 5_000 + "]" * 5_000,
    '{"a":' * 5_000 + "1" + "}" * 5_000,
)
WHOLE = (*STRANGE, "", "{", "\ufeff{}", DEEP, '{"type":' * 50_000, "nonsense")


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SidecarProcess]:
    with SidecarProcess(tmp_path_factory.mktemp("json") / "data") as process:
        yield process
        assert get(f"{process.url}/livez")[0] == 200
        process.stop()
        faults = [line for line in process.log if "Traceback" in line or "Exception in" in line]
        assert faults == []


def with_strange_fields(frame: Mapping[str, Any]) -> Iterator[str]:
    """The frame with each of its fields in turn replaced by each strange value, or left out."""
    for name in frame:
        rest = {key: value for key, value in frame.items() if key != name}
        yield json.dumps(rest)
        text = json.dumps({**rest, name: "HERE"})
        for value in STRANGE:
            yield text.replace('"HERE"', value)


COMMAND = {"call": "c1", "command": "say", "text": "hello"}
FORGET = {"tenant": "default", "caller_key": "phone:+12025550100", "really": False}


@pytest.mark.parametrize(("path", "body"), [("/admin/command", COMMAND), ("/admin/forget", FORGET)])
def test_admin_answers_what_it_can_not_read(
    sidecar: SidecarProcess, path: str, body: Mapping[str, Any]
) -> None:
    """`/admin` answers any body with 200 or 4xx, and does not read one that is too large."""
    control = json.loads((sidecar.data_dir / "control.json").read_text())
    shown = {"Authorization": f"Bearer {control['token']}", "Content-Type": "application/json"}
    connection = http.client.HTTPConnection("127.0.0.1", sidecar.port, timeout=10)
    seen: set[int] = set()
    for sent in (*WHOLE, *with_strange_fields(body), json.dumps({**body, "x": "y" * 100_000})):
        try:
            connection.request("POST", path, sent.encode(), shown)
            answer = connection.getresponse()
            seen.add(answer.status)
            json.loads(answer.read())
        except (BrokenPipeError, ConnectionResetError):  # answered before the body was whole
            connection.close()
        assert not [status for status in seen if status >= 500], sent[:200]
    connection.close()
    assert 400 in seen


def page(sidecar: SidecarProcess) -> ClientConnection:
    return connect(
        f"ws://127.0.0.1:{sidecar.port}/console/ws", origin=Origin(sidecar.url), max_size=None
    )


def test_the_pages_first_frame(sidecar: SidecarProcess) -> None:
    """Anything but a valid first frame of the page is refused with 4401."""
    hello = {"type": "hello", "token": "wrong"}
    for sent in (*WHOLE, *with_strange_fields(hello)):
        with page(sidecar) as socket:
            socket.send(sent)
            with pytest.raises(ConnectionClosed) as closed:
                socket.recv(timeout=10)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 4401


CALL = "console-00000000-0000-0000-0000-000000000001"
FRAMES: tuple[dict[str, Any], ...] = (
    {"type": "call.start", "call": CALL, "caller": "ada", "consent": "yes"},
    {"type": "speech.started", "call": f"default/{CALL}"},
    {"type": "say", "call": f"default/{CALL}", "turn": "t1", "text": "hello", "aloud": False},
    {"type": "reply.stop", "call": f"default/{CALL}", "heard_chars": 3},
    {"type": "reply.heard", "call": f"default/{CALL}", "turn": "t1"},
    {"type": "prompt.show", "call": f"default/{CALL}", "turn": "t1"},
    {"type": "call.watch", "call": f"default/{CALL}"},
    {"type": "outbox.replay", "batch": "b"},
    {"type": "outbox.drop", "batch": "b"},
    {"type": "plug", "pulled": False},
    {"type": "call.end", "call": f"default/{CALL}"},
)


def test_the_pages_later_frames(sidecar: SidecarProcess) -> None:
    """Whatever an open page sends, its connection stays open and valid frames are answered."""
    with page(sidecar) as socket:
        socket.send(json.dumps({"type": "hello", "token": sidecar.token}))
        for frame in FRAMES:
            for sent in (*with_strange_fields(frame), json.dumps(frame)):
                socket.send(sent)
        for sent in WHOLE:
            socket.send(sent)
        for n in itertools.count():
            frame = json.loads(socket.recv(timeout=20))
            if frame["type"] == "call" and not frame["live"]:
                break
            assert n < 10_000
        mark = "console-00000000-0000-0000-0000-000000000002"
        socket.send(json.dumps({"type": "call.start", "call": mark, "caller": "eve"}))
        while True:
            frame = json.loads(socket.recv(timeout=20))
            if frame["type"] == "call" and frame["call"].endswith(mark):
                assert frame["live"]
                break


def test_the_links_first_frame(sidecar: SidecarProcess) -> None:
    """Anything but a hello as a worker's first frame closes that connection and no other."""
    hello = {"type": "hello", "worker": "w", "version": "1"}
    for sent in (*WHOLE, *with_strange_fields(hello)):
        with connect(
            sidecar.link_url,
            subprotocols=[Subprotocol(SUBPROTOCOL)],
            additional_headers=sidecar.bearer,
        ) as socket:
            socket.send(sent)
            with contextlib.suppress(ConnectionClosed):
                assert json.loads(socket.recv(timeout=10))["type"] == "welcome"


def test_pages_that_show_no_token_are_bounded(sidecar: SidecarProcess) -> None:
    """Sixty-four pages may be open, with or without a token, and the next is refused."""
    with contextlib.ExitStack() as stack:
        for _ in range(64):
            stack.enter_context(page(sidecar))
        with pytest.raises(InvalidStatus), page(sidecar):
            pass
