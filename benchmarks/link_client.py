"""A worker process that only sends turns: `python -m benchmarks.link_client`.

It speaks the protocol itself (docs/link-protocol.md), so that only the link and the sidecar behind
it are measured. Prints its figures as JSON. SIDECAR_LINK_TOKEN is the link's token.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import anyio
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from sidecar.errors import LinkError
from sidecar.wire.frames import (
    SUBPROTOCOL,
    Ack,
    CallOpen,
    ErrorFrame,
    Hello,
    Hints,
    Memory,
    TurnFrame,
    decode_from_sidecar,
    encode,
)

CALLS = 20
"""Live calls of one worker; each turn goes to a random one."""
TEXT = "I would like to book a table for two, on Friday at eight, near the window if you can. " * 2
IN_FLIGHT = 512
"""Turns without an ack when it sends as fast as possible."""
LAST_ACK_S = 20.0


@dataclass
class Client:
    """One connection with `CALLS` live calls.

    Attributes:
        socket: The open link.
        name: Part of every id, so that several clients don't share one.
        caller: The caller of the calls; empty for nobody, whose turns are stored but not delivered.
    """

    socket: ClientConnection
    name: str
    caller: str
    acks_s: list[float] = field(default_factory=list[float])
    sent: int = 0
    _settled: set[str] = field(default_factory=set[str])
    _dice: random.Random = field(default_factory=random.Random)
    _sent_s: dict[str, float] = field(default_factory=dict[str, float])
    _room: anyio.Event = field(default_factory=anyio.Event)

    async def open_calls(self) -> None:
        """Open the calls, and wait until each has the memory of its caller."""
        for n in range(CALLS):
            hints = Hints(caller=f"{self.caller}-{n}") if self.caller else Hints()
            await self.socket.send(encode(CallOpen(f"{self.name}-{n}", "livekit", hints, 1.0)))
        with anyio.fail_after(LAST_ACK_S):
            while len(self._settled) < CALLS:
                self._room = anyio.Event()
                await self._room.wait()

    async def steadily(self, rate_per_s: float, seconds: float) -> None:
        """Send turns at random moments, without waiting for acks."""
        next_s = time.perf_counter()
        end_s = next_s + seconds
        while (next_s := next_s + self._dice.expovariate(rate_per_s)) < end_s:
            await anyio.sleep(max(0.0, next_s - time.perf_counter()))
            await self._send()

    async def at_full_speed(self, seconds: float) -> None:
        """Send turns, with up to `IN_FLIGHT` of them without an ack."""
        end_s = time.perf_counter() + seconds
        while time.perf_counter() < end_s:
            while len(self._sent_s) >= IN_FLIGHT:
                self._room = anyio.Event()
                await self._room.wait()
            await self._send()

    async def listen(self) -> None:
        """Read acks until the connection ends."""
        async for raw in self.socket:
            frame = decode_from_sidecar(raw)
            now_s = time.perf_counter()
            if isinstance(frame, ErrorFrame):
                raise LinkError(frame.code, frame.message)
            if isinstance(frame, Memory) and frame.newest:
                self._settled.add(frame.call)
                self._room.set()
            if isinstance(frame, Ack):
                self.acks_s += [now_s - self._sent_s.pop(item) for item in frame.items]
                self._room.set()

    async def all_acked(self) -> None:
        """Wait for the last ack."""
        with anyio.fail_after(LAST_ACK_S):
            while self._sent_s:
                self._room = anyio.Event()
                await self._room.wait()

    async def _send(self) -> None:
        self.sent += 1
        item = f"{self.name}-{self.sent}"
        turn = TurnFrame(
            call=f"{self.name}-{self._dice.randrange(CALLS)}",
            item=item,
            seq=self.sent,
            speaker="caller",
            text=TEXT,
            at_s=time.time(),
        )
        self._sent_s[item] = time.perf_counter()
        await self.socket.send(encode(turn))


async def run(asked: argparse.Namespace) -> dict[str, Any]:
    """Connect, wait for a line on standard input, send; return what was measured."""
    name = uuid.uuid4().hex[:12]
    async with connect(
        asked.url,
        subprotocols=[Subprotocol(SUBPROTOCOL)],
        additional_headers={"Authorization": f"Bearer {os.environ['SIDECAR_LINK_TOKEN']}"},
        compression=None,
        proxy=None,
    ) as socket:
        await socket.send(encode(Hello(name)))
        client = Client(socket, name, asked.caller)
        took_s = 0.0
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.listen)
            await client.open_calls()
            print("ready", flush=True)
            await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
            began_s = time.perf_counter()
            if asked.rate:
                await client.steadily(asked.rate, asked.seconds)
            else:
                await client.at_full_speed(asked.seconds)
            await client.all_acked()
            took_s = time.perf_counter() - began_s
            tasks.cancel_scope.cancel()
    return {"took_s": took_s, "sent": client.sent, "acks_s": client.acks_s}


def main() -> None:
    """Run one client and print what it measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--rate", type=float, default=0.0, help="turns a second; 0: all it can")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--caller", default="", help="nobody's calls without it")
    print(json.dumps(anyio.run(run, parser.parse_args())))


if __name__ == "__main__":
    main()
