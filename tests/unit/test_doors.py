"""Every door that takes a bearer token reads it in the same way, and refuses in its own."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import anyio
import pytest
from starlette.applications import Starlette
from starlette.types import ASGIApp
from starlette.websockets import WebSocket

from sidecar.access.deliveries import Deliveries
from sidecar.access.door import Credential, Door
from sidecar.bearer import is_secret
from sidecar.channels.admin import Admin
from sidecar.channels.console.routes import Console
from sidecar.channels.link.server import LinkServer
from sidecar.channels.vapi.completions import Completions
from sidecar.channels.vapi.limits import RateCap
from sidecar.channels.vapi.webhook import Webhook
from sidecar.demo.model import DemoModel
from sidecar.llm.served import served
from sidecar.telemetry import Event, Telemetry
from sidecar.wire.frames import CLOSE_DENIED, SUBPROTOCOL

pytestmark = [pytest.mark.unit, pytest.mark.anyio]

Opens = Callable[[Sequence[bytes]], Awaitable[bool]]
"""Takes the `Authorization` headers of a request; returns whether the door opens."""

KEY = b"a-key-of-this-test-alone-0123456789"
OPEN: Mapping[str, list[bytes]] = {
    "plain": [b"Bearer " + KEY],
    "lower case": [b"bearer " + KEY],
    "upper case": [b"BEARER " + KEY],
    "doubled spaces": [b"Bearer   " + KEY],
    "blanks around": [b"  Bearer " + KEY + b"\t "],
    "two headers, one token": [b"Bearer " + KEY, b"bearer  " + KEY],
}
SHUT: Mapping[str, list[bytes]] = {
    "no header": [],
    "empty": [b""],
    "no token": [b"Bearer"],
    "a blank token": [b"Bearer   "],
    "another scheme": [b"Basic " + KEY],
    "a longer scheme": [b"Bearers " + KEY],
    "no space": [b"Bearer" + KEY],
    "a tab": [b"Bearer\t" + KEY],
    "a colon": [b"Bearer: " + KEY],
    "quoted": [b'Bearer "' + KEY + b'"'],
    "the scheme twice": [b"Bearer Bearer " + KEY],
    "a word more": [b"Bearer " + KEY + b" more"],
    "a list": [b"Bearer " + KEY + b", Bearer " + KEY],
    "cut short": [b"Bearer " + KEY[:-1]],
    "too long by one": [b"Bearer " + KEY + b"0"],
    "another case": [b"Bearer " + KEY.upper()],
    "not ASCII": [b"Bearer \xe9"],
    "no UTF-8": [b"\xff\xfe"],
    "a blank that is not ASCII": [b"Bearer\xa0" + KEY],
    "a letter that is not ASCII": ["\uff22earer ".encode() + KEY],
    "very long": [b"Bearer " + KEY + b"a" * 7_000],
    "two tokens, the right one first": [b"Bearer " + KEY, b"Bearer another"],
    "two tokens, the right one last": [b"Bearer another", b"Bearer " + KEY],
    "two headers, one empty": [b"Bearer " + KEY, b""],
}
WITHOUT_A_SCHEME = {"a key alone": [KEY], "a key and blanks": [b" " + KEY + b" "]}


async def answer_of(
    app: ASGIApp, values: Sequence[bytes], *, method: str = "POST", path: str = "/"
) -> tuple[int, bytes]:
    """Return the status and body that answer a request from this machine."""
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1"), *((b"authorization", value) for value in values)],
        "client": ("127.0.0.1", 1),
    }
    await app(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


class Doors:
    """Each door as a function of headers; `said` is what was logged."""

    def __init__(self, directory: Path, model_url: str) -> None:
        self.said: list[tuple[str, Mapping[str, object]]] = []
        self._events = Telemetry(strict=True, observe=self._note)
        nothing: Any = None
        self._admin = Admin(nothing, commands=nothing, forget=nothing, clock=lambda: 0.0)
        self._admin.announce(directory, "http://127.0.0.1:1")
        self._admin_key = json.loads((directory / "control.json").read_text())["token"].encode()
        self._link = LinkServer(
            nothing,
            tokens={"another-token": "zen", KEY.decode(): "acme"},
            memory_wait_s=0.1,
            cold_start_s=0.1,
            emit=self._events.emit,
        )
        door = Door(
            [Credential("acme", (KEY,), (KEY,))],
            wall=lambda: 1.0,
            deliveries=Deliveries(
                window_s=1.0, wall=nothing, clock=nothing, path=None, emit=self._events.emit
            ),
        )
        full: Any = {"rate": RateCap(1.0, 0.0), "emit": self._events.emit, "clock": lambda: 1.0}
        policy: Any = SimpleNamespace(fallback_s=1.0)
        self._model = Completions(nothing, nothing, door, policy=policy, budget=nothing, **full)
        self._webhook = Webhook(nothing, door, assistant=nothing, tools=(), recall=nothing, **full)
        self._model_url = urlsplit(model_url)

    def _note(self, event: Event, fields: Mapping[str, object]) -> None:
        self.said.append((event.name, fields))

    async def admin(self, values: Sequence[bytes]) -> bool:
        """The routes below `/admin`; the token is their own."""
        own = [value.replace(KEY, self._admin_key) for value in values]
        app = Starlette(routes=self._admin.routes())
        status, body = await answer_of(app, own, method="GET", path="/admin/status")
        if status != 200:
            assert (status, body) == (401, b'{"error":"not without the token of control.json"}')
        return status == 200

    async def link(self, values: Sequence[bytes]) -> bool:
        """The workers' WebSocket."""
        sent: list[MutableMapping[str, Any]] = []
        to_come = iter([{"type": "websocket.connect"}, {"type": "websocket.disconnect"}])

        async def receive() -> dict[str, Any]:
            return next(to_come)

        async def send(message: MutableMapping[str, Any]) -> None:
            sent.append(message)

        headers = [(b"authorization", value) for value in values]
        scope = {"type": "websocket", "headers": headers, "subprotocols": [SUBPROTOCOL]}
        await self._link.endpoint(WebSocket(scope, receive, send))
        opened = sent[0]["type"] == "websocket.accept"
        if not opened:
            assert sent[0] == {"type": "websocket.close", "code": CLOSE_DENIED, "reason": ""}
            assert ("link_refused", {"why": "wrong or missing token"}) == self.said[-1]
        return opened

    async def vapi_model(self, values: Sequence[bytes]) -> bool:
        """VAPI's model endpoint: a rate limit of zero behind its door answers 429."""
        return await self._vapi("chat", self._model, values)

    async def vapi_server_url(self, values: Sequence[bytes]) -> bool:
        """VAPI's server URL, without a signature."""
        return await self._vapi("webhook", self._webhook, values)

    async def _vapi(self, route: str, app: ASGIApp, values: Sequence[bytes]) -> bool:
        status, body = await answer_of(app, values)
        name, fields = self.said[-1]
        assert ("vapi_refused", route, status) == (name, fields["route"], fields["status"])
        if status != 429:
            assert 401 == status
            assert str(fields["why"]).startswith("wrong")
            assert str(fields["why"]) in body.decode()
        return status == 429

    async def own_model(self, values: Sequence[bytes]) -> bool:
        """The model that our App Server is given, on a real server with a real HTTP parser."""
        head = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        head += b"".join(b"Authorization: " + value + b"\r\n" for value in values)
        host, port = self._model_url.hostname, self._model_url.port
        assert host is not None
        assert port is not None
        answer = b""
        with anyio.fail_after(10):
            async with await anyio.connect_tcp(host, port) as stream:
                await stream.send(head + b"\r\n")
                async for piece in stream:
                    answer += piece
        status = int(answer.split(b" ", 2)[1])
        if status != 200:
            assert 401 == status
            assert answer.endswith(b"this endpoint needs its key")
        return status == 200


@pytest.fixture
async def doors(tmp_path: Path) -> AsyncIterator[Doors]:
    async with served(DemoModel(), key=KEY.decode()) as url:
        yield Doors(tmp_path, url)


def all_of(doors: Doors) -> dict[str, Opens]:
    return {
        "admin": doors.admin,
        "link": doors.link,
        "vapi model": doors.vapi_model,
        "vapi server url": doors.vapi_server_url,
        "own model": doors.own_model,
    }


@pytest.mark.parametrize("case", OPEN)
async def test_every_door_opens_to_its_token(doors: Doors, case: str) -> None:
    """The scheme's case, blanks and a repeated header change nothing at any door."""
    found = {name: await opens(OPEN[case]) for name, opens in all_of(doors).items()}
    assert dict.fromkeys(found, True) == found


@pytest.mark.parametrize("case", SHUT)
async def test_every_door_is_shut_to_all_else(doors: Doors, case: str) -> None:
    """No door opens to a malformed or wrong token, and each refuses with its own answer."""
    found = {name: await opens(SHUT[case]) for name, opens in all_of(doors).items()}
    assert dict.fromkeys(found, False) == found


@pytest.mark.parametrize("case", WITHOUT_A_SCHEME)
async def test_only_vapis_doors_take_a_key_without_its_scheme(doors: Doors, case: str) -> None:
    """Only VAPI's doors accept a key without a scheme, as VAPI can be set to send one."""
    values = WITHOUT_A_SCHEME[case]
    found = {name for name, opens in all_of(doors).items() if await opens(values)}
    assert {"vapi model", "vapi server url"} == found


@pytest.mark.parametrize(
    "token",
    [
        "",
        " ",
        KEY.decode().upper(),
        KEY.decode()[:-1],
        f"{KEY.decode()} ",
        "é",
        "\ud800",
        "a" * 70_000,
    ],
)
def test_the_page_is_opened_by_its_token_alone(token: str) -> None:
    """The page's first frame is admitted with the exact token only."""
    nothing: Any = None
    page = Console(nothing, token=KEY.decode())
    assert page.admits(KEY.decode())
    assert not page.admits(token)


def test_an_empty_secret_is_nobodys() -> None:
    """An empty secret matches nothing, not even an empty token."""
    assert not is_secret(b"", b"")
    assert is_secret(KEY, KEY)
