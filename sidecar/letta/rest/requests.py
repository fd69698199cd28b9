"""The requests that calls make again and again, without the SDK's cost per request.

letta-client 1.12.1 takes 1.6 to 3.8 ms of CPU for a request (typed parameters, httpx, pydantic),
aiohttp 0.3 ms; the sidecar has one loop for all calls. These go where the SDK's would, with its
headers, and fail with its errors, so that `wire` can interpret the errors of both.
"""

import json
import ssl
import urllib.request
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Final, TypeAlias, TypeVar
from urllib.parse import urlsplit

import aiohttp
import anyio
import httpx
import msgspec
from letta_client import APIConnectionError, APIStatusError, AsyncLetta

from sidecar.errors import NotLetta
from sidecar.letta.rest.wire import NO_LETTA
from sidecar.untrusted import MALFORMED

T = TypeVar("T")
Params: TypeAlias = Mapping[str, str] | Sequence[tuple[str, str]]

_CONNECT_S: Final = 5.0
_REFUSED: Final = 300
_NO_CONTENT: Final = 204
ANSWER_BYTES: Final = 64 << 20
"""Limit on one answer; the longest are a hundred messages, or all blocks of an agent."""
LINE_BYTES: Final = 4 << 20
"""Limit on one event of a stream."""
_REFUSAL_BYTES: Final = 64 << 10
_END_S: Final = 0.05  # for what follows the last event: a connection read to its end is kept


Id: TypeAlias = Annotated[str, msgspec.Meta(min_length=1)]


class BlockAnswer(msgspec.Struct):
    """A block, as an agent's answer holds it."""

    value: str
    id: str = ""
    label: str | None = None
    description: str | None = None
    limit: int | None = None
    read_only: bool | None = None


class AgentAnswer(msgspec.Struct):
    """An agent that was asked for with its blocks; an answer without `blocks` is not valid."""

    blocks: list[BlockAnswer]


class IdAnswer(msgspec.Struct):
    """A thing that was made or exists: a conversation, an agent."""

    id: Id


class PassageAnswer(msgspec.Struct):
    """A piece of archival memory."""

    id: Id
    content: str


class PassagesAnswer(msgspec.Struct):
    """What a search in archival memory found, best first."""

    results: list[PassageAnswer]


class ListedAgentAnswer(msgspec.Struct):
    """An agent in a list that was asked for with tags."""

    id: Id
    name: str
    tags: list[str]
    created_at: datetime | None = None


class RunAnswer(msgspec.Struct):
    """A run."""

    id: Id
    status: str
    stop_reason: str | None = None
    created_at: datetime | None = None


class MessageAnswer(msgspec.Struct):
    """A stored message."""

    id: Id
    date: datetime
    message_type: str
    content: object = None
    otid: str | None = None


class EventAnswer(msgspec.Struct):
    """The fields that are used of an event in a run's stream."""

    message_type: str = ""
    stop_reason: str | None = None
    run_id: str | None = None


class LeanRequests:
    """Sends requests over its own pool of connections.

    Args:
        client: Whose server and headers are used.
        timeout_s: Longest silence of the server, and longest wait for a connection of the pool.
        limit: Connections.
        keepalive_s: How long an idle connection is kept.
    """

    def __init__(
        self, client: AsyncLetta, *, timeout_s: float, limit: int, keepalive_s: float
    ) -> None:
        self._base_url = str(client.base_url).rstrip("/")
        self._client = client
        self._limit = limit
        self._keepalive_s = keepalive_s
        self._timeout = aiohttp.ClientTimeout(
            total=None,
            connect=timeout_s,
            sock_connect=min(_CONNECT_S, timeout_s),
            sock_read=timeout_s,
        )
        self._proxy = _proxy_of(self._base_url)
        self._session: aiohttp.ClientSession | None = None

    async def ask(
        self,
        method: str,
        path: str,
        answered: type[T],
        *,
        params: Params | None = None,
        body: Mapping[str, object] | None = None,
    ) -> T:
        """Make a request and return its answer, as `answered` describes it.

        Raises:
            APIStatusError: the server refused.
            APIConnectionError: there is no answer; its cause says why.
            NotLetta: the answer is not of that type.
        """
        async with self._answer(method, path, params=params, body=body) as answer:
            raw = await _whole(answer) if answer.status != _NO_CONTENT else b"null"
        try:
            return msgspec.json.decode(raw, type=answered)
        except MALFORMED as error:
            raise NotLetta(
                "the server that answered is not Letta: unexpected JSON", hint=NO_LETTA
            ) from error

    @asynccontextmanager
    async def events(
        self, path: str, *, body: Mapping[str, object]
    ) -> AsyncGenerator[AsyncIterator[EventAnswer]]:
        """Make a POST and yield the server-sent events of its answer as they come.

        Raises:
            APIStatusError: the server refused, or (with status 200) said so in an event.
            APIConnectionError: there is no answer, or it broke off; its cause says why.
            NotLetta: the answer is not a stream of events.
            ValueError: an event is not as expected.
        """
        async with self._answer("POST", path, params=None, body=body) as answer:
            if answer.content_type != "text/event-stream":
                raise NotLetta(
                    "the server that answered is not Letta: no event stream", hint=NO_LETTA
                )
            yield _events_of(answer)

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    @asynccontextmanager
    async def _answer(
        self,
        method: str,
        path: str,
        *,
        params: Params | None,
        body: Mapping[str, object] | None,
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        session = self._open_session()
        try:
            async with session.request(
                method,
                self._base_url + path,
                params=params,
                data=None if body is None else msgspec.json.encode(body),
                proxy=self._proxy,
            ) as answer:
                if answer.status >= _REFUSED:
                    raise _status_error(answer, await _refusal(answer))
                yield answer
        except (aiohttp.ClientError, OSError) as error:
            request = httpx.Request(method, self._base_url + path)
            raise APIConnectionError(request=request) from error

    def _open_session(self) -> aiohttp.ClientSession:
        """Return the session; it is made on the loop that uses it."""
        if self._session is None:
            headers = self._client.default_headers.items()
            self._session = aiohttp.ClientSession(
                headers={name: value for name, value in headers if isinstance(value, str)},
                connector=aiohttp.TCPConnector(
                    limit=self._limit,
                    keepalive_timeout=self._keepalive_s,
                    ssl=_tls(self._base_url),
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=self._timeout,
            )
        return self._session


async def _whole(answer: aiohttp.ClientResponse) -> bytes:
    """Return an answer's body; raise NotLetta for one longer than `ANSWER_BYTES`."""
    whole = bytearray()
    async for chunk in answer.content.iter_any():
        whole += chunk
        if len(whole) > ANSWER_BYTES:
            raise NotLetta(
                "the server that answered is not Letta: its answer has no end", hint=NO_LETTA
            )
    return bytes(whole)


async def _refusal(answer: aiohttp.ClientResponse) -> str:
    """Return what a server says in a refusal, at most `_REFUSAL_BYTES` of it."""
    said = bytearray()
    async for chunk in answer.content.iter_any():
        said += chunk
        if len(said) > _REFUSAL_BYTES:
            break
    return said[:_REFUSAL_BYTES].decode("utf-8", "replace")


def _status_error(answer: aiohttp.ClientResponse, text: str) -> APIStatusError:
    """Return the SDK's error for a refusal, with the body it would carry."""
    try:
        body: object = json.loads(text)
    except MALFORMED:
        body = text
    response = httpx.Response(
        answer.status,
        headers=list(answer.headers.items()),
        request=httpx.Request(answer.method, str(answer.url)),
    )
    return APIStatusError(f"Error code: {answer.status}", response=response, body=body)


_event_decoder = msgspec.json.Decoder(EventAnswer)


async def _lines_of(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Yield the lines of a stream, without their ends."""
    rest = b""
    async for chunk in answer.content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > LINE_BYTES:
            raise ValueError("an event has no end")
        for line in lines:
            yield line.rstrip(b"\r")


async def _events_of(answer: aiohttp.ClientResponse) -> AsyncIterator[EventAnswer]:
    """Yield the events of a stream up to its end.

    Letta writes one line of data per event, with `event: error` above one that reports a failure.
    """
    event = b""
    async for line in _lines_of(answer):
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if not name:
            event = b"" if not value else event  # a line with a colon first is a comment
        elif name == b"event":
            event = value
        elif name == b"data" and value.startswith(b"[DONE]"):
            with anyio.move_on_after(_END_S):
                while await answer.content.readany():
                    pass
            return
        elif name == b"data" and event == b"error":
            raise _status_error(answer, value.decode("utf-8", "replace"))
        elif name == b"data" and not event:
            try:
                said = _event_decoder.decode(value)
            except MALFORMED as error:
                raise ValueError("an event is not as expected") from error
            yield said


def _tls(base_url: str) -> ssl.SSLContext | bool:
    """Return the certificates the SDK trusts; without TLS, load none."""
    return httpx.create_ssl_context() if base_url.startswith("https:") else True


def _proxy_of(base_url: str) -> str | None:
    """Return the proxy that the environment names for a server, as the SDK would choose it."""
    server = urlsplit(base_url)
    host = server.hostname or ""
    if host in {"localhost", "127.0.0.1", "::1"} or urllib.request.proxy_bypass(host):
        return None
    proxies = urllib.request.getproxies()
    return proxies.get(server.scheme) or proxies.get("all")
