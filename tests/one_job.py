"""A worker process with one call in one room, driven line by line; it may be killed at any time.

usage: one_job.py NAME LINK_URL SPOOL_DIR

Reads a JSON object a line and answers each with one. `do` is `connect` (wait until the link is up),
`open` (the same, and then the call; the answer has the first memory, and how long that took), `say`
(with `text`), `flush` (wait for every ack) or `close` (end the call, and wait for its ack).
"""

import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from sidecar.model import Utterance
from sidecar.telemetry import Telemetry
from sidecar.wire.frames import Hints
from sidecar.worker.call import LinkedCall
from sidecar.worker.link import Link
from tests.quiet import Quiet

ROOM = "RM_1"
CALLER = Hints(caller="ada")
WAIT_S = 60.0


class OneJob:
    def __init__(self, name: str, link: Link) -> None:
        self._name = name
        self._link = link
        self._call: LinkedCall | None = None
        self._said = 0

    @property
    def call(self) -> LinkedCall:
        assert self._call is not None
        return self._call

    async def do(self, what: str, text: str = "") -> dict[str, Any]:
        """Do one thing, and return the answer."""
        match what:
            case "connect":
                with anyio.fail_after(WAIT_S):
                    while not self._link.connected:  # noqa: ASYNC110 - the link has no event for it
                        await anyio.sleep(0.01)
            case "open":
                await self.do("connect")
                self._call = self._link.open_call(
                    self._name, "livekit", CALLER, opened_at_s=time.time(), room=ROOM
                )
                began_s = time.monotonic()
                continues = await self.call.goes_on(WAIT_S)
                return {
                    "continues": continues,
                    "text": self.call.memory.text if self.call.memory else "",
                    "took_s": time.monotonic() - began_s,
                }
            case "say":
                self._said += 1
                speaker = "caller" if self._said % 2 else "agent"
                self.call.record(Utterance(f"item-{self._said}", speaker, text))
            case "flush":
                with anyio.fail_after(WAIT_S):
                    while self.call.unacked.count:  # noqa: ASYNC110 - the ack has no event here
                        await anyio.sleep(0.02)
            case "close":
                self.call.close("hung up")
                await self.call.flushed(WAIT_S)
            case _:
                raise ValueError(what)
        return {}


async def main(name: str, url: str, spool: Path) -> None:
    link = Link(
        url,
        os.environ["SIDECAR_LINK_TOKEN"],
        worker=f"worker of {name}",
        spool_dir=spool,
        emit=Telemetry(strict=True, logger=Quiet()).emit,
        clock=time.time,
        dice=random.random,
    )
    job = OneJob(name, link)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(link.run)
        while line := await anyio.to_thread.run_sync(sys.stdin.readline):
            asked = json.loads(line)
            answer = await job.do(asked["do"], asked.get("text", ""))
            print(json.dumps(answer), flush=True)
        tasks.cancel_scope.cancel()


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2], Path(sys.argv[3]))
