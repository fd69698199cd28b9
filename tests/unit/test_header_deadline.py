"""The deadline on a request's headers, on a real socket."""

import anyio
import pytest
from anyio.abc import ByteStream
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from sidecar.server.deadline import DeadlineProtocol
from sidecar.server.http import listen, serving

pytestmark = [pytest.mark.unit, pytest.mark.anyio]

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def slow(_: Request) -> Response:
    await anyio.sleep(0.5)
    return PlainTextResponse("ok")


async def ended(stream: ByteStream) -> bool:
    with anyio.fail_after(5):
        try:
            return not await stream.receive()
        except anyio.EndOfStream:
            return True


async def test_a_body_that_nobody_reads_is_cut_off() -> None:
    """A request answered before its body is whole has no say in how long its connection lasts."""
    bound = listen("127.0.0.1", 0)
    host, port = bound.getsockname()
    async with (
        serving(Starlette(routes=[Route("/", slow, methods=["POST"])]), bound),
        await anyio.connect_tcp(host, port) as client,
    ):
        await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx")
        with anyio.fail_after(5):
            answered = await client.receive()
            while not answered.endswith(b"ok"):
                answered += await client.receive()
        assert await ended(client)


async def test_slow_headers_are_cut_and_slow_answers_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Headers that do not come end the connection; a request that is whole may take its time."""
    monkeypatch.setattr(DeadlineProtocol, "headers_s", 0.2)
    bound = listen("127.0.0.1", 0)
    host, port = bound.getsockname()
    async with (
        serving(Starlette(routes=[Route("/", slow)]), bound),
        await anyio.connect_tcp(host, port) as silent,
        await anyio.connect_tcp(host, port) as halting,
        await anyio.connect_tcp(host, port) as good,
    ):
        await halting.send(REQUEST[:-2])
        for _ in range(2):  # the second on a connection kept alive
            await good.send(REQUEST)
            with anyio.fail_after(5):
                answered = await good.receive()
                while not answered.endswith(b"ok"):
                    answered += await good.receive()
            assert b"200 OK" in answered
        await good.send(REQUEST[:-2])
        for stream in (silent, halting, good):
            assert await ended(stream)
