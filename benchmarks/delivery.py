"""Turns from the journal to Letta: 1,000 agents, one call each, 20 turns a call.

Every turn is appended on its own, as from a link, by callers who talk at the same time, while the
relay runs. The time is taken from the first append to the last settled batch, and what Letta got is
compared with what was said, word for word and in order.
"""

import random
import re
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import anyio.to_thread

from benchmarks.figures import Figures
from benchmarks.processes import LettaProcess
from sidecar.delivery.decisions import DeliveryPolicy
from sidecar.delivery.relay import Relay
from sidecar.journal.policy import PostPolicy
from sidecar.journal.sqlite import SqliteJournal
from sidecar.letta.port import Letta
from sidecar.letta.rest.letta import RestLetta
from sidecar.model import AgentRef, Call, Turn
from sidecar.telemetry import Event
from sidecar.testing.fake_letta import FakeLetta

AGENTS = 1_000
QUICK_AGENTS = 30
TURNS = 20
TALKING = 200
"""Callers who talk at the same time."""
LETTA_S = 0.02
IN_FLIGHT = 64
BUDGET_S = 80.0


async def measure(quick: bool) -> Figures:
    """Return `turns_per_s`, `posts`, `lost`, `doubled` and `misordered`.

    The figures on top are those of the row `over HTTP`: `RestLetta` on the stand-in server, which
    is a separate process. `in process` has a Letta in memory that also takes 20 ms, so that it
    measures the journal and the relay alone. The baseline, `bare HTTP`, sends the same server as
    much in as many posts with aiohttp, with as many in flight and without a journal.
    """
    agents = QUICK_AGENTS if quick else AGENTS
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))

        def start() -> tuple[LettaProcess, list[str]]:
            server = stack.enter_context(LettaProcess(delay_ms=LETTA_S * 1000))
            return server, [server.agent(f"agent {n}", chars=100) for n in range(agents)]

        server, agent_ids = await anyio.to_thread.run_sync(start)
        bare = await _bare(server.url, agent_ids)
        before = server.posts()
        skip = len(server.accepted())
        rest = RestLetta(server.url, None)
        try:
            linked = await _deliver(directory / "http.db", rest, agent_ids)
        finally:
            await rest.aclose()
        linked |= {"posts": server.posts() - before}
        linked |= _compared(server.accepted()[skip:], agent_ids)
        fake = FakeLetta(clock=time.time, latency_s=LETTA_S)
        memory = await _deliver(directory / "memory.db", fake, agent_ids)
        memory |= {"posts": fake.posts}
        memory |= _compared([taken.post.text for taken in fake.taken], agent_ids)
    return {"over HTTP": linked, "in process": memory, "bare HTTP": bare} | linked


async def _deliver(path: Path, letta: Letta, agent_ids: Sequence[str]) -> Figures:
    journal = await SqliteJournal.open(path, policy=PostPolicy(max_turns=20, max_age_s=60.0))
    settled = Counter[str]()

    def emit(event: Event, /, **_: object) -> None:
        settled[event.name] += 1

    async def known(ref: AgentRef) -> str:
        assert ref.agent_id is not None
        return ref.agent_id

    relay = Relay(
        journal,
        letta,
        known,
        policy=DeliveryPolicy(),
        clock=time.time,
        dice=random.random,
        emit=emit,
        concurrency=IN_FLIGHT,
    )
    talking = anyio.CapacityLimiter(TALKING)
    began_s = time.perf_counter()
    talked_s = took_s = BUDGET_S
    cpu_s = time.process_time()
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(relay.run)
            with anyio.move_on_after(BUDGET_S):
                async with anyio.create_task_group() as callers:
                    for agent_id in agent_ids:
                        callers.start_soon(_call, journal, agent_id, talking)
                talked_s = time.perf_counter() - began_s
                # The journal has no event for this, and the relay's flush would speed it up.
                while (await journal.backlog()).undelivered:  # noqa: ASYNC110
                    await anyio.sleep(0.01)
            took_s = time.perf_counter() - began_s
            cpu_s = time.process_time() - cpu_s
            tasks.cancel_scope.cancel()
    finally:
        await journal.aclose()
    turns = TURNS * len(agent_ids)
    return {
        "turns_per_s": round(turns / took_s),
        "talked_s": round(talked_s, 2),
        "took_s": round(took_s, 2),
        "cpu_ms_per_batch": round(1000 * cpu_s / max(1, settled["batch_settled"]), 2),
        "retried": settled["batch_retried"] + settled["batch_in_doubt"],
    }


async def _call(journal: SqliteJournal, agent_id: str, talking: anyio.CapacityLimiter) -> None:
    async with talking:
        ref = AgentRef("bench", agent_id=agent_id)
        call = Call(f"bench/{agent_id}", ref, "livekit", "", opened_at_s=time.time())
        await journal.open_call(call)
        for n in range(TURNS):
            turn = Turn(call.key, f"{n}", n + 1, "caller", _text(agent_id, n), time.time())
            await journal.append([turn])
        await journal.close_call(call.key, epoch=1, at_s=time.time())


def _text(agent_id: str, number: int) -> str:
    return f"[{agent_id}#{number}] I would like a table for two, on Friday at eight, if you can."


_MARK = re.compile(r"\[([\w-]+)#(\d+)\]")


def _compared(texts: Sequence[str], agent_ids: Sequence[str]) -> dict[str, int]:
    """Compare the texts that Letta took, in order, with what was said."""
    heard: dict[str, list[int]] = {agent_id: [] for agent_id in agent_ids}
    for text in texts:
        for agent_id, number in _MARK.findall(text):
            heard[agent_id].append(int(number))
    result = Counter[str](lost=0, doubled=0, misordered=0)
    for numbers in heard.values():
        result["lost"] += TURNS - len(set(numbers))
        result["doubled"] += len(numbers) - len(set(numbers))
        result["misordered"] += sum(b < a for a, b in pairwise(numbers))
    return dict(result)


async def _bare(url: str, agent_ids: Sequence[str]) -> Figures:
    """Post the same amount with aiohttp alone: a conversation and a message for each agent."""
    words = [" ".join(_text("nobody", n) for n in range(TURNS)) + " " * 80 * TURNS]
    waiting = list(agent_ids)

    async def post(session: aiohttp.ClientSession) -> None:
        while waiting:
            params = {"agent_id": waiting.pop()}
            async with session.post("/v1/conversations/", params=params, json={}) as answer:
                opened: dict[str, Any] = await answer.json()
            message = {"role": "user", "content": words[0], "otid": opened["id"]}
            body = {"messages": [message], "background": True}
            path = f"/v1/conversations/{opened['id']}/messages"
            async with session.post(path, json=body) as answer:
                await answer.read()
                assert answer.status == 200, answer.status

    began_s, cpu_s = time.perf_counter(), time.process_time()
    async with aiohttp.ClientSession(url) as session, anyio.create_task_group() as tasks:
        for _ in range(IN_FLIGHT):
            tasks.start_soon(post, session)
    took_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
    return {
        "turns_per_s": round(TURNS * len(agent_ids) / took_s),
        "took_s": round(took_s, 2),
        "cpu_ms_per_batch": round(1000 * cpu_s / len(agent_ids), 2),
        "posts": len(agent_ids),
    }
