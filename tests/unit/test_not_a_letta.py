"""An answer from something other than a Letta is recognised at every call of the adapter."""

import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import anyio
import pytest
from aiohttp import web

from sidecar import telemetry
from sidecar.delivery.decisions import DeliveryPolicy
from sidecar.delivery.relay import Relay
from sidecar.errors import LettaUnavailable, NotLetta, OutcomeUnknown
from sidecar.journal.policy import PostPolicy
from sidecar.letta.port import AgentSpec, Letta, Post
from sidecar.letta.rest import requests
from sidecar.letta.rest.letta import RestLetta
from sidecar.model import AgentRef, Call, Turn
from sidecar.testing.memory_journal import MemoryJournal

pytestmark = [pytest.mark.unit, pytest.mark.anyio]

POST = Post("b1", "agent-1", "conv-1", "hello", 0.0)
SPEC = AgentSpec("ada", "", (), ("caller-1",), model="demo/m", embedding="demo/e")
_ENDLESS = 16
"""An endless answer is at least so many times the bound, as buffers hold more than one."""
PAGE = "<html><body>Please log in</body></html>"
ANSWERS = {
    "login page": (PAGE, "text/html"),
    "login page called JSON": (PAGE, "application/json"),
    "empty": ("", "text/html"),
    "empty JSON": ("", "application/json"),
    "text": ("ok", "text/plain"),
    "null": ("null", "application/json"),
    "number": ("5", "application/json"),
    "list of numbers": ("[1, 2]", "application/json"),
    "list of lists": ("[[]]", "application/json"),
    "object": ('{"status": "ok"}', "application/json"),
    "page of another API": ('{"items": [], "total": 0}', "application/json"),
    "thing without a name": ('{"id": "", "blocks": null}', "application/json"),
}
CALLS: dict[str, Callable[[Letta], Awaitable[object]]] = {
    "read_blocks": lambda letta: letta.read_blocks("agent-1"),
    "search_passages": lambda letta: letta.search_passages("agent-1", "boat", limit=5),
    "open_conversation": lambda letta: letta.open_conversation("agent-1", label="a call"),
    "find": lambda letta: letta.find(POST),
    "find_agents": lambda letta: letta.find_agents(["caller-1"]),
    "create_agent": lambda letta: letta.create_agent(SPEC),
    "erase_agent": lambda letta: letta.erase_agent("agent-1"),
}


@asynccontextmanager
async def answered(body: str, content_type: str) -> AsyncGenerator[RestLetta]:
    """An adapter on a server that answers every request with this body and status 200."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(text=body, content_type=content_type)

    app = web.Application()
    app.router.add_route("*", "/{any:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    letta = RestLetta(f"http://{host}:{port}", None)
    try:
        yield letta
    finally:
        await letta.aclose()
        await runner.cleanup()


@pytest.mark.parametrize("answer", ANSWERS)
async def test_no_other_answer_passes_for_a_lettas(answer: str) -> None:
    """An answer that is not Letta's raises NotLetta at every call."""
    passed: list[str] = []
    async with answered(*ANSWERS[answer]) as letta:
        for name, call in CALLS.items():
            with suppress(NotLetta):
                await call(letta)
                passed.append(name)
    assert passed == []


@pytest.mark.parametrize("answer", ANSWERS)
async def test_a_post_that_something_else_answers_is_in_doubt(answer: str) -> None:
    """A post answered by something else is neither digested nor refused, but in doubt."""
    async with answered(*ANSWERS[answer]) as letta:
        with pytest.raises((NotLetta, OutcomeUnknown)):
            await letta.post(POST)


@pytest.mark.parametrize("answer", ["login page", "empty", "text"])
async def test_nothing_is_deleted_by_a_login_page(answer: str) -> None:
    """A deletion answered by something else counts as failed."""
    async with answered(*ANSWERS[answer]) as letta:
        for deleted in (
            letta.delete_agent("agent-1"),
            letta.erase_conversation("agent-1", "conv-1"),
        ):
            with pytest.raises(LettaUnavailable):
                await deleted


@asynccontextmanager
async def streaming(
    piece: bytes, *, status: int = 200, content_type: str = "application/json"
) -> AsyncGenerator[tuple[RestLetta, list[int]]]:
    """An adapter on a server that answers without end, and how many bytes each answer sent."""
    sent: list[int] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        sent.append(0)
        response = web.StreamResponse(status=status, headers={"Content-Type": content_type})
        await response.prepare(request)
        with suppress(ConnectionError):
            while sent[-1] < _ENDLESS * requests.ANSWER_BYTES:
                await response.write(piece)
                sent[-1] += len(piece)
        return response

    app = web.Application()
    app.router.add_route("*", "/{any:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    letta = RestLetta(f"http://{host}:{port}", None, read_timeout_s=60.0)
    try:
        yield letta, sent
    finally:
        await letta.aclose()
        await runner.cleanup()


@pytest.mark.parametrize("status", [200, 500])
async def test_an_answer_without_an_end_is_not_read_to_it(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long an answer or an error is, only a bounded part of it is read."""
    monkeypatch.setattr(requests, "ANSWER_BYTES", 4 << 20)
    async with streaming(b"[" + b" " * 65_535, status=status) as (letta, sent):
        with pytest.raises(LettaUnavailable):
            await letta.read_blocks("agent-1")
        with pytest.raises(LettaUnavailable):
            await letta.find_agents(["caller-1"])
    assert len(sent) == 2
    assert max(sent) < _ENDLESS * requests.ANSWER_BYTES


async def test_an_event_without_an_end_is_not_read_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event stream without line ends leaves the post in doubt, and is not read to the end."""
    monkeypatch.setattr(requests, "ANSWER_BYTES", 4 << 20)
    monkeypatch.setattr(requests, "LINE_BYTES", 1 << 20)
    async with streaming(b"data: " + b"x" * 65_530, content_type="text/event-stream") as (
        letta,
        sent,
    ):
        with pytest.raises(OutcomeUnknown):
            await letta.post(POST)
    assert max(sent) < _ENDLESS * requests.ANSWER_BYTES


async def test_a_list_that_knows_no_pages_has_an_end() -> None:
    """If a server answers each page with the first one, each agent is listed once."""
    named = [{"id": f"agent-{n}", "name": "ada", "tags": ["caller-1"]} for n in range(100)]
    async with answered(json.dumps(named), "application/json") as letta:
        found = await letta.find_agents(["caller-1"])
    assert sorted(agent.agent_id for agent in found) == sorted(str(one["id"]) for one in named)


async def test_a_relay_before_a_login_page_backs_off_and_says_so() -> None:
    """Behind a login page the relay's breaker opens after eight failures, and tries are few."""
    failed = anyio.Event()
    asked = 0

    def emit(event: object, **_: object) -> None:
        if event is telemetry.relay_breaker_opened:
            failed.set()

    async with answered(PAGE, "text/html") as letta:
        journal = MemoryJournal(PostPolicy(max_turns=1, max_age_s=60.0))

        async def resolve(_: AgentRef) -> str:
            nonlocal asked
            asked += 1
            await letta.find_agents(["caller-1"])
            return "agent-1"

        relay = Relay(
            journal,
            letta,
            resolve,
            policy=DeliveryPolicy(retry_base_s=0.01),
            clock=time.time,
            dice=lambda: 0.5,
            emit=emit,
        )
        ref = AgentRef("acme", caller_key="k1")
        await journal.open_call(Call("acme/one", ref, "livekit", "k1", 0.0))
        await journal.append([Turn("acme/one", "i1", 1, "caller", "hello", 0.0)])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(relay.run)
            with anyio.fail_after(30):
                await failed.wait()
            assert relay.degraded
            assert asked == 8
            tasks.cancel_scope.cancel()
