"""The limits on how long a connection may take and on how many there are, on a real socket."""

import resource
from collections.abc import Callable
from contextlib import AsyncExitStack

import anyio
import pytest
from anyio.abc import ByteStream
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from sidecar.http.deadline import DeadlineProtocol
from sidecar.http.server import connections_limit, listen, serving

pytestmark = [pytest.mark.unit, pytest.mark.anyio]

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


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
    """A connection ends if its request was answered before the whole body came."""
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
    """A connection whose headers don't come ends; a complete request may take its time."""
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


async def answered(stream: ByteStream) -> bytes:
    with anyio.fail_after(5):
        got = await stream.receive()
        while b"\r\n\r\n" not in got:
            got += await stream.receive()
    return got


def health(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


def waiting(goes_on: anyio.Event, begins: Callable[[], None]) -> Starlette:
    """An application with a route that answers at once, and one that waits for an event."""

    async def waits(_: Request) -> Response:
        begins()
        await goes_on.wait()
        return PlainTextResponse("waited")

    async def livez(_: Request) -> Response:
        return PlainTextResponse("ok")

    return Starlette(routes=[Route("/waits", waits), Route("/livez", livez)])


async def test_idle_connections_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle connections are closed to make room for a new request, and busy ones are kept."""
    monkeypatch.setattr(DeadlineProtocol, "headers_s", 60.0)
    goes_on, served = anyio.Event(), anyio.Event()
    app = waiting(goes_on, served.set)
    bound = listen("127.0.0.1", 0)
    host, port = bound.getsockname()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(serving(app, bound, limit=10))

        async def connected() -> ByteStream:
            return await stack.enter_async_context(await anyio.connect_tcp(host, port))

        busy = await connected()
        await busy.send(health("/waits"))
        with anyio.fail_after(5):
            await served.wait()
        idle = [await connected() for _ in range(8)]
        for stream in idle[4:]:  # idle after a request, or within one
            await stream.send(health("/livez"))
            assert b"200 OK" in await answered(stream)
        await idle[3].send(health("/livez")[:-2])
        for _ in range(50):
            late = await connected()
            await late.send(health("/livez"))
            assert b"200 OK" in await answered(late)
        assert await ended(idle[0])
        goes_on.set()
        assert b"200 OK" in await answered(busy)


async def test_past_as_many_requests_the_next_is_told_to_come_back() -> None:
    """Past the limit a request gets 503 and when to retry, and `/livez` still answers."""
    goes_on, full = anyio.Event(), anyio.Event()
    begun = 0

    def begins() -> None:
        nonlocal begun
        begun += 1
        if begun == 4:
            full.set()

    app = waiting(goes_on, begins)
    bound = listen("127.0.0.1", 0)
    host, port = bound.getsockname()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(serving(app, bound, limit=4))
        streams = [
            await stack.enter_async_context(await anyio.connect_tcp(host, port)) for _ in range(4)
        ]
        for stream in streams:
            await stream.send(health("/waits"))
        with anyio.fail_after(5):
            await full.wait()
        for path, status in (("/waits", b" 503 "), ("/livez", b" 200 ")):
            late = await stack.enter_async_context(await anyio.connect_tcp(host, port))
            await late.send(health(path))
            got = await answered(late)
            assert status in got
            assert (b"retry-after" in got) is (status == b" 503 ")
        goes_on.set()
        for stream in streams:
            assert b" 200 " in await answered(stream)


@pytest.mark.parametrize(
    ("files", "limit"), [(1_024, 384), (4_096, 1_920), (20_000, 4_000), (-1, 4_000), (300, 64)]
)
def test_connections_leave_files_for_the_rest(
    files: int, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit on connections leaves open files for models and the journal."""

    def limits(_: int) -> tuple[int, int]:
        return files, files

    monkeypatch.setattr(resource, "getrlimit", limits)
    assert connections_limit() == limit
