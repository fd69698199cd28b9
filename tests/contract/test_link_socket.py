"""What the link asks of a connection: one of `websockets`, and the one in memory of the scripts."""

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import anyio
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from tests.link_wire import Socket

pytestmark = [pytest.mark.contract, pytest.mark.anyio]


@dataclass
class Peers:
    """Two ends of a connection; the far one sends "one" and "two" and ends it as it was told."""

    near: ClientConnection | Socket
    heard: list[str | bytes]


Making = Callable[[int | None], AbstractAsyncContextManager[Peers]]


@asynccontextmanager
async def over_a_socket(ends: int | None) -> AsyncGenerator[Peers]:
    heard: list[str | bytes] = []

    async def far(socket: ServerConnection) -> None:
        heard.append(await socket.recv())
        await socket.send("one")
        await socket.send("two")
        if ends is None:
            await socket.recv()  # the other end ends it
        elif ends == 1006:
            heard.append(await socket.recv())
            socket.transport.abort()
        else:
            await socket.close(ends, "0.5")

    async with serve(far, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        async with connect(f"ws://127.0.0.1:{port}/link", proxy=None) as near:
            yield Peers(near, heard)


@asynccontextmanager
async def in_memory(ends: int | None) -> AsyncGenerator[Peers]:
    heard: list[str | bytes] = []

    def far(raw: str | bytes) -> None:
        heard.append(raw)
        if len(heard) == 1:
            near.push("one")
            near.push("two")
        if ends is not None and (ends != 1006 or len(heard) == 2):
            near.end(ends, "" if ends == 1006 else "0.5")

    near = Socket(far)
    yield Peers(near, heard)


@pytest.fixture(params=[over_a_socket, in_memory])
def making(request: pytest.FixtureRequest) -> Making:
    return request.param


async def hear_out(near: ClientConnection | Socket) -> None:
    """Hear all there is, and answer the second frame."""
    async for raw in near:
        if raw == "two":
            await near.send("and this")


async def test_a_goodbye_is_heard_behind_what_was_sent_before_it(making: Making) -> None:
    """Frames come in order, then the code and the reason of the close; nothing is sent after it."""
    async with making(4503) as peers:
        await peers.near.send("hello")
        with anyio.fail_after(10.0):
            assert [await peers.near.recv(), await peers.near.recv()] == ["one", "two"]
            with pytest.raises(ConnectionClosed):
                await peers.near.recv()
        assert (peers.near.close_code, peers.near.close_reason) == (4503, "0.5")
        with pytest.raises(ConnectionClosed):
            await peers.near.send("too late")
    assert peers.heard == ["hello"]


async def test_a_cut_connection_is_an_end_without_a_goodbye(making: Making) -> None:
    """Who hears frames one by one learns that there are no more, and by the code of no close."""
    async with making(1006) as peers:
        await peers.near.send("hello")
        with anyio.fail_after(10.0), pytest.raises(ConnectionClosed):
            await hear_out(peers.near)
        assert peers.near.close_code == 1006
    assert peers.heard == ["hello", "and this"]


async def test_who_cuts_a_connection_hears_no_more_of_it(making: Making) -> None:
    """One's own end of a connection ends it for whoever waits at it."""
    async with making(None) as peers:
        await peers.near.send("hello")
        with anyio.fail_after(10.0):
            assert [await peers.near.recv(), await peers.near.recv()] == ["one", "two"]
        peers.near.transport.abort()
        with anyio.fail_after(10.0), pytest.raises(ConnectionClosed):
            await peers.near.recv()
        assert peers.near.close_code == 1006
