"""The sidecar's end of the link with peers that are strange, wrong or hostile."""

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, cast

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from sidecar.http.server import lift_file_limit
from sidecar.private import STATE_NAMES
from sidecar.wire.frames import MAX_FRAME_BYTES, SUBPROTOCOL
from tests.sidecar_process import SidecarProcess, eventually, get

pytestmark = pytest.mark.e2e

UPGRADE = (
    b"GET /link HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
CANARY = "canary-7c1e words of a caller"


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SidecarProcess]:
    with SidecarProcess(tmp_path_factory.mktemp("link") / "data") as process:
        yield process
        process.stop()
        assert CANARY not in "".join(process.log)


class Worker:
    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    def send(self, **frame: object) -> None:
        self.socket.send(json.dumps(frame))

    def until(self, kind: str, *, within_s: float = 10.0) -> dict[str, Any]:
        deadline = time.monotonic() + within_s
        while True:
            frame = json.loads(self.socket.recv(timeout=max(0.0, deadline - time.monotonic())))
            if frame["type"] == kind:
                return dict(frame)

    def open(self, call: str, **hints: str) -> None:
        self.send(type="call.open", call=call, channel="livekit", hints=hints, opened_at_s=1.0)

    def turn(self, call: str, item: str, *, seq: int = 1, text: str = CANARY) -> None:
        self.send(type="turn", call=call, item=item, seq=seq, speaker="caller", text=text, at_s=1.0)


@contextmanager
def worker(
    sidecar: SidecarProcess, name: str = "w", *, hello: bool = True, **options: Any
) -> Generator[Worker]:
    subprotocols = options.pop("subprotocols", [Subprotocol(SUBPROTOCOL)])
    # Without headers from a test it sends the token, which exists only once one was made.
    own = options.pop("additional_headers", None)
    headers: dict[str, str] = sidecar.bearer if own is None else own
    # With options of any type no overload fits.
    with cast(
        "ClientConnection",
        connect(sidecar.link_url, subprotocols=subprotocols, additional_headers=headers, **options),
    ) as socket:
        peer = Worker(socket)
        if hello:
            peer.send(type="hello", worker=name)
            peer.until("welcome")
        yield peer


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        ("{", ""),
        ("[]", ""),
        ('{"type": 5}', "type"),
        ('{"type": "turn"}', "call"),
        (
            '{"type":"turn","call":"c","item":"i","seq":-1,"speaker":"caller","text":"x","at_s":1}',
            "seq",
        ),
        (
            '{"type":"turn","call":"c","item":"i","seq":1,"speaker":"cat","text":"x","at_s":1}',
            "speaker",
        ),
        (
            '{"type":"turn","call":"c","item":"i","seq":1,"speaker":"caller","text":"","at_s":1}',
            "text",
        ),
        (
            (
                '{"type":"turn","call":"c","item":"i","seq":1,"speaker":"caller",'
                '"text":"\\ud800","at_s":1}'
            ),
            "",
        ),
        (
            (
                '{"type":"call.open","call":"c","channel":"livekit",'
                '"hints":{"phone":7},"opened_at_s":1}'
            ),
            "hints.phone",
        ),
        (b"\xff\xfe", ""),
        ("x" * (MAX_FRAME_BYTES + 1), ""),
    ],
)
def test_a_wrong_frame_is_answered_and_the_link_goes_on(
    sidecar: SidecarProcess, raw: str | bytes, field: str
) -> None:
    """Malformed, oversized and non-UTF-8 frames get an error with the field, and the link stays."""
    with worker(sidecar) as peer:
        peer.socket.send(raw)
        error = peer.until("error")
        assert error["code"] in {"malformed", "too_large", "bad_value"}
        assert error["field"] == field
        assert error["remedy"]
        peer.open("c-after")
        peer.until("memory")


def test_a_frame_far_over_the_limit_ends_the_connection(sidecar: SidecarProcess) -> None:
    """A frame far over the limit ends the connection."""
    with worker(sidecar) as peer:
        peer.socket.send("x" * (5 * MAX_FRAME_BYTES))
        with pytest.raises(ConnectionClosed):
            peer.until("never")


def test_all_that_it_keeps_is_looked_at_before_a_start(sidecar: SidecarProcess) -> None:
    """Every file that a sidecar makes is one whose owner is checked at the start."""
    with worker(sidecar) as peer:
        peer.open("c-kept", identity="ada")
        peer.until("memory")
    names = {path.name for path in sidecar.data_dir.iterdir()}
    assert names
    assert names <= STATE_NAMES


def test_an_unknown_type_and_an_unknown_field_are_ignored(sidecar: SidecarProcess) -> None:
    """Unknown frames and fields of a newer worker are ignored."""
    with worker(sidecar) as peer:
        peer.send(type="tomorrow", call="c")
        peer.send(
            type="call.open", call="c-new", channel="livekit", hints={}, opened_at_s=1.0, more=True
        )
        assert peer.until("memory")["call"] == "c-new"


def test_every_turn_is_acked_and_a_repeated_one_too(sidecar: SidecarProcess) -> None:
    """An ack lists its items, and a repeated item is acked again."""
    with worker(sidecar) as peer:
        peer.open("c-ack", identity="acker")
        for _ in range(2):
            peer.turn("c-ack", "i1")
            assert peer.until("ack")["items"] == ["i1"]
        peer.send(type="call.close", call="c-ack", at_s=2.0)
        assert peer.until("ack")["closed"] is True


def test_a_turn_after_the_close_is_stored(sidecar: SidecarProcess) -> None:
    """A late turn of a closed call is acked."""
    with worker(sidecar) as peer:
        peer.open("c-late", identity="late")
        peer.send(type="call.close", call="c-late", at_s=2.0)
        peer.until("ack")
        peer.turn("c-late", "i9", seq=2)
        assert peer.until("ack")["items"] == ["i9"]


def test_a_turn_of_a_call_never_opened_is_refused(sidecar: SidecarProcess) -> None:
    """A turn of a call that was never opened is refused with `unknown_call`."""
    with worker(sidecar) as peer:
        peer.turn("c-never", "i1")
        error = peer.until("error")
        assert (error["code"], error["field"]) == ("unknown_call", "call")


def test_two_workers_do_not_share_a_call(sidecar: SidecarProcess) -> None:
    """A second worker can't claim a call, and the first worker's call goes on."""
    with worker(sidecar, "w1") as first, worker(sidecar, "w2") as second:
        first.open("c-one", identity="x")
        first.until("memory")
        second.open("c-one", identity="x")
        assert second.until("error")["code"] == "call_claimed"
        first.turn("c-one", "i1")
        first.until("ack")


def test_a_worker_that_comes_back_replaces_its_old_connection(sidecar: SidecarProcess) -> None:
    """A worker with a new connection takes its call up at once, and the old one is closed."""
    with worker(sidecar, "w-back") as old:
        old.open("c-back", identity="back")
        old.turn("c-back", "i1")
        old.until("ack")
        with worker(sidecar, "w-back") as new:
            new.open("c-back", identity="back")
            new.turn("c-back", "i2", seq=2)
            assert new.until("ack")["items"] == ["i2"]
            with pytest.raises(ConnectionClosed):
                old.until("never")


def test_hello_comes_first(sidecar: SidecarProcess) -> None:
    """A peer that starts with anything but a hello is closed with 4400."""
    with worker(sidecar, hello=False) as peer:
        peer.open("c")
        with pytest.raises(ConnectionClosed) as closed:
            peer.socket.recv(timeout=10)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4400


@pytest.mark.parametrize(
    "options",
    [
        {"origin": "http://127.0.0.1"},
        {"subprotocols": None},
        {"subprotocols": [Subprotocol("other")]},
    ],
)
def test_browsers_and_other_protocols_are_refused(
    sidecar: SidecarProcess, options: dict[str, Any]
) -> None:
    """A link with an Origin header or the wrong subprotocol is refused at the handshake."""
    with pytest.raises(InvalidStatus), worker(sidecar, **options):
        pass


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Forwarded-For": "203.0.113.7"},
        {"Via": "1.1 tunnel"},
        {"Host": "abc.trycloudflare.com"},
        {"Host": "evil.example:8377"},
    ],
)
def test_without_a_token_a_tunnel_is_refused(
    sidecar: SidecarProcess, headers: dict[str, str]
) -> None:
    """A request through a proxy or under a foreign name gets neither a link nor metrics."""
    with socket.create_connection(("127.0.0.1", sidecar.port), 5) as raw:
        lines = {
            "Host": f"127.0.0.1:{sidecar.port}",
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Protocol": "letta-sidecar.v1",
        } | headers
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        raw.sendall(f"GET /link HTTP/1.1\r\n{head}\r\n".encode())
        assert b" 403 " in raw.recv(100)
    request = urllib.request.Request(f"{sidecar.url}/metrics", headers=headers)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=5)
    with refused.value as error:
        assert error.code == 403


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"SIDECAR_VAPI_KEY": "key-0123456789abc", "SIDECAR_VAPI_SECRET": "sec-0123456789abc"},
        {
            "SIDECAR_VAPI_TENANTS": json.dumps(
                {"acme": {"key": "key-0123456789abc", "secret": "sec-0123456789abc"}}
            )
        },
    ],
    ids=["nothing is set", "VAPI's secrets are set", "only VAPI has tenants"],
)
def test_without_a_token_set_one_is_made(tmp_path: Path, env: dict[str, str]) -> None:
    """A link needs a token even on this machine, and its user's workers find the one made."""
    data = tmp_path / "data"
    with SidecarProcess(data, env) as sidecar:
        for headers in ({}, {"Authorization": "Bearer made-up-0123456789"}):
            refused = pytest.raises(InvalidStatus)
            with refused, worker(sidecar, additional_headers=headers):
                pass
        if "SIDECAR_VAPI_TENANTS" in env:
            assert not (data / "link-token").exists()
        else:
            with worker(sidecar):
                pass
            assert (data / "link-token").stat().st_mode & 0o777 == 0o600
            token = sidecar.link_token
            sidecar.kill()
            sidecar.start()
            assert sidecar.link_token == token
            with worker(sidecar):
                pass
        assert get(f"{sidecar.url}/metrics")[0] == 200


def test_a_token_says_who_the_tenant_is(tmp_path: Path) -> None:
    """Wrong and missing tokens are refused, and one caller in two tenants has two memories."""
    key_a, key_z = "key-a-0123456789", "key-z-0123456789"
    env = {"SIDECAR_TENANTS": json.dumps({"acme": key_a, "zeta": key_z})}
    with SidecarProcess(tmp_path / "data", env) as sidecar:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": key_a}):
            refused = pytest.raises(InvalidStatus)
            with refused, worker(sidecar, additional_headers=headers):
                pass
        texts: dict[str, str] = {}
        for key in (key_a, key_z):
            with worker(sidecar, additional_headers={"Authorization": f"Bearer {key}"}) as peer:
                peer.open("c1", phone="+12025550100")
                peer.turn("c1", "i1", text=f"Please remember that the secret of {key} is blue")
                peer.until("ack")
                peer.send(type="call.close", call="c1", at_s=2.0)
                peer.until("ack")
        for key in (key_a, key_z):
            with worker(sidecar, additional_headers={"Authorization": f"Bearer {key}"}) as peer:
                peer.open("c2", phone="+12025550100")
                texts[key] = peer.until("memory")["text"]
        assert f"secret of {key_a}" in texts[key_a]
        assert f"secret of {key_z}" not in texts[key_a]
        assert f"secret of {key_a}" not in texts[key_z]


def test_a_drain_lets_live_calls_finish(tmp_path: Path) -> None:
    """SIGTERM sends `drain`, refuses new calls, lets live ones end, closes with 4503, exits 0."""
    with SidecarProcess(tmp_path / "data") as sidecar, worker(sidecar) as peer:
        peer.open("c-live", identity="ada")
        peer.turn("c-live", "i1", text="my name is Ada")
        peer.until("ack")
        sidecar.terminate()
        assert peer.until("drain")["retry_after_s"] > 0
        assert sidecar.readiness()["ready"] is False
        peer.open("c-fresh", identity="bob")
        assert peer.until("error")["code"] == "draining"
        peer.turn("c-live", "i2", seq=2)
        assert peer.until("ack")["items"] == ["i2"]
        peer.send(type="call.close", call="c-live", at_s=2.0)
        peer.until("ack")
        with pytest.raises(ConnectionClosed) as closed:
            peer.until("never")
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4503
        assert sidecar.wait() == 0
        eventually(lambda: any('"drained"' in line for line in sidecar.log))
        assert '"undelivered": 0' in next(line for line in sidecar.log if '"drained"' in line)


def test_a_second_signal_skips_the_rest(tmp_path: Path) -> None:
    """With a call that never ends, a second SIGTERM ends the process, and acked turns stay."""
    with SidecarProcess(tmp_path / "data") as sidecar, worker(sidecar) as peer:
        peer.open("c-live", identity="ada")
        peer.turn("c-live", "i1", text="my name is Ada")
        peer.until("ack")
        sidecar.terminate()
        peer.until("drain")
        sidecar.terminate()
        assert sidecar.wait(10.0) == 0
        sidecar.start()
        with worker(sidecar, "w2") as again:
            again.open("c-again", identity="ada")
            assert "Ada" in again.until("memory")["text"]


@pytest.mark.parametrize("signals", [1, 2])
def test_a_stop_in_the_middle_of_calls_logs_no_failure(tmp_path: Path, signals: int) -> None:
    """Workers that send during a stop cause no failure in the sidecar."""
    drain = {"SIDECAR_DRAIN_CALLS_S": "0" if signals == 1 else "30", "SIDECAR_DRAIN_FLUSH_S": "1"}
    with SidecarProcess(tmp_path / "data", drain) as sidecar:
        speaking = threading.Barrier(4)
        threads: list[threading.Thread] = []

        def speak(name: str) -> None:
            with worker(sidecar, name) as peer, suppress(ConnectionClosed):
                peer.open(f"c-{name}", identity=name)
                for n in count(1):
                    peer.turn(f"c-{name}", f"i{n}", seq=n)
                    peer.send(type="speech.started", call=f"c-{name}")
                    peer.until("ack")
                    if n == 10:
                        speaking.wait(30.0)

        for name in ("w1", "w2", "w3"):
            threads.append(threading.Thread(target=speak, args=(name,), daemon=True))
            threads[-1].start()
        speaking.wait(30.0)
        for _ in range(signals):
            sidecar.terminate()
            eventually(lambda: any('"draining"' in line for line in sidecar.log))
        assert sidecar.wait(20.0) == 0
        for thread in threads:
            thread.join(10.0)
        unwell = [line for line in sidecar.log if not line.startswith("{") or '"error"' in line]
        assert unwell == []


def test_a_port_that_is_taken_is_a_clear_error(sidecar: SidecarProcess, tmp_path: Path) -> None:
    """A second sidecar on the same port or data directory exits with the reason."""
    other = SidecarProcess(tmp_path / "data", port=sidecar.port)
    with pytest.raises(AssertionError, match="can't listen"):
        other.start()
    assert other.wait() == 2
    same = SidecarProcess(sidecar.data_dir)
    with pytest.raises(AssertionError, match="SIDECAR_DATA_DIR"):
        same.start()
    assert same.wait() == 1


def test_a_slow_reader_of_memory_holds_nobody_up(sidecar: SidecarProcess) -> None:
    """A worker that never reads does not keep another worker's acks waiting."""
    stop = threading.Event()
    with worker(sidecar, "w-mute") as mute, worker(sidecar, "w-quick") as quick:
        mute.open("c-mute", identity="mute")

        def shout() -> None:
            n = 0
            while not stop.is_set() and n < 2_000:
                n += 1
                mute.send(type="speech.started", call="c-mute")

        shouting = threading.Thread(target=shout)
        shouting.start()
        quick.open("c-quick", identity="quick")
        for n in range(20):
            quick.turn("c-quick", f"i{n}", seq=n + 1)
            assert quick.until("ack")["items"] == [f"i{n}"]
        stop.set()
        shouting.join(10)


@pytest.mark.parametrize("sent", [b"", b"GET /livez HTTP/1.1\r\n"], ids=["silent", "half asked"])
def test_thousands_of_idle_connections_starve_nobody(sidecar: SidecarProcess, sent: bytes) -> None:
    """With 4,200 idle connections, health checks are answered and a worker's turn is acked."""
    lift_file_limit()
    with ExitStack() as stack:
        for _ in range(4_200):
            idle = stack.enter_context(socket.create_connection(("127.0.0.1", sidecar.port)))
            idle.sendall(sent)
        for path in ("/livez", "/readyz"):
            assert get(f"{sidecar.url}{path}")[0] == 200
        with worker(sidecar, f"w-late-{len(sent)}") as peer:
            peer.open(f"c-late-{len(sent)}", identity="ada")
            peer.turn(f"c-late-{len(sent)}", "i1")
            assert peer.until("ack")["items"] == ["i1"]


def test_a_flood_of_strangers_fills_no_log(tmp_path: Path) -> None:
    """Hundreds of refused and broken requests are counted, and write few lines to the log."""
    with SidecarProcess(tmp_path / "data") as sidecar:
        for _ in range(300):
            for asked in (
                b"POST /vapi/webhook HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}",
                b"rubbish\r\n\r\n",
                UPGRADE,
            ):
                with socket.create_connection(("127.0.0.1", sidecar.port), timeout=5) as stranger:
                    stranger.sendall(asked)
                    assert stranger.recv(100).startswith(b"HTTP/1.1 4")
        counted = get(f"{sidecar.url}/metrics")[1]
        sidecar.stop()
        assert len(sidecar.log) < 60
        for event in ("vapi_refused", "link_refused"):
            assert f'sidecar_events_total{{event="{event}"}} 300.0' in counted
