"""The model behind the model endpoint: any OpenAI-compatible server, bytes in and bytes out.

Nothing is retried here, because a retry in the middle of a reply would say it twice, and nothing is
re-serialised. Connections are kept longer than the pause between two turns of a call, because a new
TLS handshake costs more than the request (httpx and openai's client drop them after 5 s).
"""

import contextlib
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any, Protocol

import aiohttp
import anyio
import msgspec
from yarl import URL

from sidecar.errors import LlmError
from sidecar.llm.openai import next_piece, opened_response
from sidecar.llm.port import Llm, Reply
from sidecar.llm.reader import BROKE_OFF
from sidecar.llm.writer import DONE, ChatWriter

KEEP_ALIVE_S = 90.0
_CONNECT_S = 5.0


class Answer(Protocol):
    """An answer under way. It is read once, to its end or until `close`."""

    async def next(self) -> bytes:
        """Return what has come since the last call, at least one byte; empty at the end.

        Raises:
            LlmError: the server broke off.
        """
        ...

    def close(self) -> None:
        """Stop reading: closes the connection at once unless the reply was read to its end."""
        ...


class Upstream(Protocol):
    """Who writes the replies."""

    async def ask(self, body: bytes, traceparent: str = "") -> Answer:
        """Send a request and return once the response's headers say that it succeeded.

        Has no deadline of its own: use a cancel scope. `traceparent` names the request's span.

        Raises:
            LlmError: the server cannot be reached; the error quotes neither side.
            Refusal: it answered with another status than 200.
        """
        ...

    async def warm(self) -> None:
        """Open a connection ahead of the first request. Never raises."""
        ...

    async def aclose(self) -> None:
        """Close connections. Safe to call twice."""
        ...


class HttpUpstream:
    """A server that speaks OpenAI's chat completions.

    Args:
        base_url: Up to and without ``/chat/completions``.
        api_key: Sent as a bearer token; empty sends none.
    """

    def __init__(self, base_url: str, api_key: str) -> None:
        self._base_url = base_url.rstrip("/")
        self._chat_url = URL(f"{self._base_url}/chat/completions")
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._session: aiohttp.ClientSession | None = None

    async def ask(self, body: bytes, traceparent: str = "") -> Answer:
        """See `Upstream.ask`."""
        traced = {**self._headers, "traceparent": traceparent} if traceparent else self._headers
        return _HttpAnswer(await opened_response(self._connected(), self._chat_url, body, traced))

    async def warm(self) -> None:
        """See `Upstream.warm`."""
        with contextlib.suppress(aiohttp.ClientError, OSError), anyio.move_on_after(_CONNECT_S):
            async with self._connected().get(
                f"{self._base_url}/models", headers=self._headers, allow_redirects=False
            ) as response:
                await response.read()

    async def aclose(self) -> None:
        """See `Upstream.aclose`."""
        if self._session is not None:
            await self._session.close()

    def _connected(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=True,
            )
        return self._session


class _HttpAnswer:
    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self._content = response.content

    async def next(self) -> bytes:
        try:
            return await next_piece(self._content)
        except (aiohttp.ClientError, OSError) as error:
            raise LlmError(BROKE_OFF) from error

    def close(self) -> None:
        self._response.close()


class LlmUpstream:
    """A model of this process as an upstream: the demo model, where no other is configured.

    Tools are not passed to it.
    """

    def __init__(self, llm: Llm) -> None:
        self._llm = llm

    async def ask(self, body: bytes, traceparent: str = "") -> Answer:
        """See `Upstream.ask`."""
        asked = msgspec.json.decode(body, type=dict[str, Any])
        return _LlmAnswer(self._llm, asked)

    async def warm(self) -> None:
        """See `Upstream.warm`."""

    async def aclose(self) -> None:
        """See `Upstream.aclose`. Does not close the model, which belongs to its owner."""


class _LlmAnswer:
    def __init__(self, llm: Llm, asked: dict[str, Any]) -> None:
        self._frames = self._spoken(llm, asked)

    async def next(self) -> bytes:
        return await anext(self._frames, b"")

    def close(self) -> None:
        pass

    @staticmethod
    async def _spoken(llm: Llm, asked: dict[str, Any]) -> AsyncIterator[bytes]:
        writer = ChatWriter(
            str(asked.get("model", "")),
            created_s=time.time(),
            answer_id=f"chatcmpl-{uuid.uuid4().hex}",
        )
        if not asked.get("stream"):
            reply = await llm.complete(asked["messages"])
            yield writer.whole(Reply(reply.text))
            return
        async for piece in llm.stream(asked["messages"]):
            yield writer.delta({"content": piece})
        yield writer.delta({}, "stop") + DONE
