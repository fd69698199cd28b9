"""A process that holds many calls, each with a link of its own, as LiveKit's jobs have them.

    python -m benchmarks.many_calls LINK_URL NAME NUMBER CALLS SPOOL

The callers have the numbers from NUMBER on. Each call is the worker's real `Link` and `LinkedCall`.
A caller takes a turn every `TURN_EVERY_S`: begins to speak, says it `SPEECH_S` later, reads the
memory for the prompt, and is answered. One command of JSON a line is read and answered:
`{"do": "open"}`, `{"do": "talk", "seconds": 20}`, `{"do": "close"}`. SIDECAR_LINK_TOKEN is the
link's token.
"""

import argparse
import json
import os
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread

from sidecar.model import Utterance
from sidecar.telemetry import Telemetry
from sidecar.wire.frames import Hints, Memory
from sidecar.worker.call import LinkedCall
from sidecar.worker.link import Link
from tests.acks import on_ack
from tests.quiet import Quiet

TURN_EVERY_S: Final = 5.0
SPEECH_S: Final = 1.5
ANSWER_S: Final = 0.5
OPENED_S: Final = 120.0
TEXT: Final = (
    "I would like to book a table for two, on Friday at eight, near the window if you can."
)
_OPENED_AT_ONCE: Final = 20


@dataclass
class Talk:
    """What was measured, in seconds.

    Attributes:
        acks_s: From each turn to its ack.
        prompts_s: From each of a caller's turns to the memory for its prompt.
        with_memory: How many of these prompts had a memory.
        memories: How many memories came.
        lags_s: By how much this process was late, ten times a second: what it measures is no
            better than that.
    """

    acks_s: list[float] = field(default_factory=list[float])
    prompts_s: list[float] = field(default_factory=list[float])
    lags_s: list[float] = field(default_factory=list[float])
    with_memory: int = 0
    memories: int = 0


class OneCall:
    """A call, and its link.

    Args:
        url: Of the link.
        name: Of the call.
        number: Of the caller.
        spool: Directory of the spool.
        talk: Where its figures go.
    """

    def __init__(self, url: str, name: str, number: str, spool: Path, talk: Talk) -> None:
        self._name = name
        self._number = number
        self._talk = talk
        self._said = 0
        self._sent_s: dict[str, float] = {}
        self.link = Link(
            url,
            os.environ["SIDECAR_LINK_TOKEN"],
            worker=name,
            spool_dir=spool,
            emit=Telemetry(strict=True, logger=Quiet()).emit,
            clock=time.time,
            dice=random.random,
        )
        self.call: LinkedCall | None = None

    async def open(self) -> None:
        """Open it, and wait for its first memory."""
        self.call = call = self.link.open_call(
            self._name, "livekit", Hints(phone=self._number), opened_at_s=time.time()
        )
        self._watch(call)
        await call.ready(OPENED_S)

    async def talk(self, seconds: float) -> None:
        """Take turns until the time is over."""
        assert self.call is not None
        end_s = time.perf_counter() + seconds
        await anyio.sleep(random.uniform(0.0, TURN_EVERY_S))
        while time.perf_counter() < end_s:
            self.call.speech_started()
            await anyio.sleep(SPEECH_S)
            began_s = time.perf_counter()
            self._say("caller")
            await self.call.ready()
            self._talk.prompts_s.append(time.perf_counter() - began_s)
            memory = self.call.memory
            self._talk.with_memory += memory is not None and bool(memory.text)
            await anyio.sleep(ANSWER_S)
            self._say("agent")
            await anyio.sleep(TURN_EVERY_S - SPEECH_S - ANSWER_S)

    async def close(self) -> None:
        """Hang up, and wait until everything is acked."""
        assert self.call is not None
        self.call.close("hung up")
        await self.call.flushed(OPENED_S)

    def _say(self, speaker: Any) -> None:
        assert self.call is not None
        self._said += 1
        item = str(self._said)
        self._sent_s[item] = time.perf_counter()
        self.call.record(Utterance(item, speaker, TEXT))

    def _watch(self, call: LinkedCall) -> None:
        take = call.take_memory

        def acked(item: str) -> None:
            self._talk.acks_s.append(time.perf_counter() - self._sent_s.pop(item))

        def taken(memory: Memory) -> None:
            self._talk.memories += 1
            take(memory)

        on_ack(call, acked)
        call.take_memory = taken


async def watch_lag(talk: Talk) -> None:
    """Note how late a sleep ends, until cancelled."""
    while True:
        began_s = time.perf_counter()
        await anyio.sleep(0.1)
        talk.lags_s.append(time.perf_counter() - began_s - 0.1)


async def main(asked: argparse.Namespace) -> None:
    """Do what standard input asks until it ends."""
    talk = Talk()
    calls = [
        OneCall(asked.url, f"{asked.name}-{n}", f"+{asked.number + n}", asked.spool, talk)
        for n in range(asked.calls)
    ]
    at_once = anyio.CapacityLimiter(_OPENED_AT_ONCE)
    async with anyio.create_task_group() as links:
        links.start_soon(watch_lag, talk)
        while line := await anyio.to_thread.run_sync(sys.stdin.readline):
            command = json.loads(line)
            if command["do"] == "open":

                async def opened(one: OneCall) -> None:
                    async with at_once:
                        links.start_soon(one.link.run)
                        await one.open()

                async with anyio.create_task_group() as opening:
                    for one in calls:
                        opening.start_soon(opened, one)
                answer: dict[str, Any] = {"open": len(calls)}
            elif command["do"] == "close":
                async with anyio.create_task_group() as closing:
                    for one in calls:
                        closing.start_soon(one.close)
                answer = {"closed": len(calls)}
            else:
                for measured in (talk.acks_s, talk.prompts_s, talk.lags_s):
                    measured.clear()
                talk.with_memory = talk.memories = 0
                async with anyio.create_task_group() as talking:
                    for one in calls:
                        talking.start_soon(one.talk, command["seconds"])
                for one in calls:
                    assert one.call is not None
                    await one.call.flushed(OPENED_S)
                answer = vars(talk)
            print(json.dumps(answer), flush=True)
        links.cancel_scope.cancel()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("url")
    parser.add_argument("name")
    parser.add_argument("number", type=int)
    parser.add_argument("calls", type=int)
    parser.add_argument("spool", type=Path)
    anyio.run(main, parser.parse_args(), backend_options={"use_uvloop": True})
