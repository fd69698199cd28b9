"""The routes of the stand-in for a classic Letta server (`letta_server.py`)."""

import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias, cast

import anyio
import msgspec
from aiohttp import web
from anyio.abc import TaskGroup

from sidecar.testing.faults import Fault, FaultDraw, FaultScript
from sidecar.testing.letta_runs import FAILING, frames_of, unchanged, work
from sidecar.testing.letta_state import (
    Digest,
    Json,
    LettaState,
    Run,
    StoredAgent,
    StoredConversation,
    iso,
)
from sidecar.testing.letta_wire import (
    BUSY,
    agent_json,
    between,
    block_json,
    block_of,
    cut,
    error_answer,
    included,
    json_object,
    limited,
    missing,
    page_of,
    run_json,
    text_of,
)

GATEWAY_PAGE = "<html><body><h1>503 Service Temporarily Unavailable</h1></body></html>"
_MAX_BODY_BYTES = 64 << 20
_FAULT = web.RequestKey("fault", object)

_Answer: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class StandInOptions:
    """How the stand-in behaves.

    Attributes:
        file: Where it is kept; None keeps it in memory alone.
        digest: Returns the blocks after a message; None changes nothing.
        delay_s: Every run takes this long, before it digests.
        dedupe: An otid that was posted before joins the run it started then.
        redis: Background posts and streams of runs work.
        password: Bearer token that every request needs; empty needs none.
    """

    file: Path | None = None
    digest: Digest | None = None
    delay_s: float = 0.0
    dedupe: bool = True
    redis: bool = True
    password: str = ""


class LettaStandIn:
    """The routes; made by `standing_in`.

    Args:
        options: How it behaves.
        tasks: Where runs go on when their client has gone.
        script: Its first faults.
    """

    def __init__(self, options: StandInOptions, tasks: TaskGroup, script: FaultScript) -> None:
        self.options = options
        self.state = LettaState(options.file)
        self.draw = FaultDraw(script)
        self.requests: Counter[str] = Counter()
        self._tasks = tasks
        self._unhung = anyio.Event()

    def app(self) -> web.Application:
        """Return the application, to be run once."""
        app = web.Application(client_max_size=_MAX_BODY_BYTES, middlewares=[self._guard])
        conversation = "/v1/conversations/{conversation}"
        app.add_routes(
            [
                web.get("/v1/health/", self._health),
                web.get("/v1/models/", self._models),
                web.get("/v1/models/embedding", self._models),
                web.get("/v1/agents/", self._list_agents),
                web.post("/v1/agents/", self._create_agent),
                web.get("/v1/agents/{agent}", self._read_agent),
                web.delete("/v1/agents/{agent}", self._delete_agent),
                web.post("/v1/agents/{agent}/archival-memory", self._add_passage),
                web.get("/v1/agents/{agent}/archival-memory/search", self._search_passages),
                web.patch("/v1/agents/{agent}/core-memory/blocks/{label}", self._set_block),
                web.post("/v1/conversations/", self._open_conversation),
                web.get(f"{conversation}/messages", self._list_messages),
                web.post(f"{conversation}/messages", self._post_messages),
                web.post(f"{conversation}/stream", self._stream_run),
                web.get("/v1/runs/", self._list_runs),
                web.get("/v1/runs/{run}", self._read_run),
                web.post("/_ctl", self._control),
                web.get("/_messages", self._accepted),
                web.get("/_stats", self._stats),
            ]
        )
        return app

    # Around every request

    @web.middleware
    async def _guard(self, request: web.Request, handler: _Answer) -> web.StreamResponse:
        if request.path.startswith(("/_", "/v1/health")):
            return await handler(request)
        is_post = request.method == "POST" and request.path.endswith("/messages")
        self.requests["posts" if is_post else "reads"] += 1
        if self.options.password and request.headers.get("Authorization") != (
            f"Bearer {self.options.password}"
        ):
            return error_answer(401, "Unauthorized")
        faults = self.draw.script.posts if is_post else self.draw.script.reads
        fault = self.draw.fault(faults)
        if wait_s := self.draw.latency_s(faults):
            await anyio.sleep(wait_s)
        if refusal := await self._refusal(request, fault):
            return refusal
        request[_FAULT] = fault
        return await handler(request)

    async def _refusal(self, request: web.Request, fault: Fault | None) -> web.Response | None:
        """Return the answer for a fault that comes before anything is taken; None for any other."""
        match fault:
            case "denied":
                return error_answer(401, "Unauthorized")
            case "unavailable":
                return error_answer(503, "Service unavailable")
            case "broken":
                return error_answer(500, "An internal server error occurred")
            case "limited":
                wait = {"Retry-After": str(self.draw.script.retry_after_s)}
                return error_answer(429, "Too many requests", headers=wait)
            case "busy":
                return error_answer(409, BUSY)
            case "cut_before":
                return cut(request)
            case "hang":
                await self._unhung.wait()
                return error_answer(503, "Service unavailable")
            case _:
                return None

    # Agents

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response({"version": "0.16.8", "status": "ok"})

    async def _models(self, _: web.Request) -> web.Response:
        name = "stand-in"
        return web.json_response([{"handle": f"demo/{name}", "name": name, "model": name}])

    async def _list_agents(self, request: web.Request) -> web.Response:
        tags = set(request.query.getall("tags", []))
        every = request.query.get("match_all_tags", "false").lower() == "true"
        newest_first = request.query.get("order", "desc") == "desc"
        found = [
            agent
            for agent in self.state.agents.values()
            if not tags or (tags <= set(agent.tags) if every else tags & set(agent.tags))
        ]
        found.sort(key=lambda agent: (agent.created_at_s, agent.agent_id), reverse=newest_first)
        ids = [agent.agent_id for agent in found]
        shown = found[page_of(request, ids)]
        return web.json_response([agent_json(agent, included(request)) for agent in shown])

    async def _create_agent(self, request: web.Request) -> web.Response:
        body = await json_object(request)
        blocks = [block_of(b) for b in cast("list[Json]", body.get("memory_blocks") or [])]
        if len({block.label for block in blocks}) != len(blocks):
            return error_answer(409, "A block of this label exists already")
        agent = self.state.create_agent(
            str(body.get("name") or "agent"),
            str(body.get("system") or ""),
            [str(tag) for tag in cast("list[object]", body.get("tags") or [])],
            blocks,
        )
        return web.json_response(agent_json(agent, {"agent.blocks", "agent.tags"}))

    async def _read_agent(self, request: web.Request) -> web.Response:
        agent = self._agent(request.match_info["agent"])
        shown = agent_json(agent, included(request))
        if request[_FAULT] == "empty":
            shown |= {"blocks": [], "memory": {"blocks": []}}
        return web.json_response(shown)

    async def _delete_agent(self, request: web.Request) -> web.Response:
        agent = self._agent(request.match_info["agent"])
        self.state.delete_agent(agent.agent_id)
        return web.json_response({"message": f"Agent id={agent.agent_id} successfully deleted"})

    async def _set_block(self, request: web.Request) -> web.Response:
        agent = self._agent(request.match_info["agent"])
        block = agent.blocks.get(request.match_info["label"])
        if block is None:
            return error_answer(404, "Block not found")
        value = str((await json_object(request)).get("value", block.value))
        self.state.set_block(agent.agent_id, replace(block, value=value))
        return web.json_response(block_json(agent.agent_id, agent.blocks[block.label]))

    async def _add_passage(self, request: web.Request) -> web.Response:
        agent = self._agent(request.match_info["agent"])
        text = str((await json_object(request)).get("text") or "")
        passage_id = self.state.add_passage(agent.agent_id, text)
        return web.json_response([{"id": passage_id, "text": text, "metadata": {}}])

    async def _search_passages(self, request: web.Request) -> web.Response:
        """Return the newest passages: a search by meaning finds something for every question."""
        agent = self._agent(request.match_info["agent"])
        newest = list(reversed(agent.passages.items()))[: int(request.query.get("top_k", 5))]
        found: list[Json] = [{"id": i, "content": text, "timestamp": ""} for i, text in newest]
        return web.json_response({"results": found, "count": len(found)})

    # Conversations

    async def _open_conversation(self, request: web.Request) -> web.Response:
        agent = self._agent(request.query.get("agent_id", ""))
        summary = str((await json_object(request)).get("summary") or "")
        opened = self.state.open_conversation(agent.agent_id, summary)
        return web.json_response(
            {
                "id": opened.conversation_id,
                "agent_id": opened.agent_id,
                "summary": opened.summary,
                "created_at": iso(opened.created_at_s),
                "updated_at": iso(opened.created_at_s),
                "in_context_message_ids": [],
            }
        )

    async def _list_messages(self, request: web.Request) -> web.Response:
        conversation = self._conversation(request)
        shown = [
            {
                "id": message.message_id,
                "date": iso(message.at_s),
                "message_type": "user_message",
                "content": message.text,
                "otid": message.otid,
            }
            for message in conversation.messages
        ]
        shown = shown[between(request, [str(message["id"]) for message in shown])]
        if request.query.get("order", "desc") == "desc":
            shown.reverse()
        return web.json_response(shown[limited(request)])

    async def _post_messages(self, request: web.Request) -> web.StreamResponse:
        conversation = self._conversation(request)
        body = await json_object(request)
        messages = cast("list[Json]", body.get("messages") or [])
        if len(messages) != 1 or messages[0].get("role") != "user":
            return error_answer(422, "this stand-in takes one user message")
        background = bool(body.get("background"))
        if background and not self.options.redis:
            return error_answer(503, "Background streaming requires Redis to be running.")
        otid = str(messages[0].get("otid") or "")
        known = self.state.run_of_otid.get(otid)
        if background and self.options.dedupe and known is not None:
            return await self._relate(request, known)
        if conversation.busy is not None:
            return error_answer(409, BUSY, run_id=conversation.busy.run_id)
        fault = cast("Fault | None", request[_FAULT])
        if fault == "delayed":
            text = text_of(messages[0].get("content"))
            start = partial(self._start_later, conversation, otid, text, background=background)
            self._tasks.start_soon(start)
            await self._unhung.wait()
            return cut(request)
        run = self.state.start_run(conversation, otid, background=background)
        digest = FAILING.get(fault, self.options.digest or unchanged)
        wait_s = self.options.delay_s + (self.draw.script.late_s if fault == "late" else 0.0)
        text = text_of(messages[0].get("content"))
        self._tasks.start_soon(partial(work, self.state, run, text, digest, wait_s=wait_s))
        return await self._relate(request, run, fault)

    async def _start_later(
        self, conversation: StoredConversation, otid: str, text: str, *, background: bool
    ) -> None:
        """Take a post that was long on its way; its client has gone, so nobody gets a 409."""
        await anyio.sleep(self.draw.script.late_s)
        if conversation.busy is None:
            run = self.state.start_run(conversation, otid, background=background)
            digest = self.options.digest or unchanged
            await work(self.state, run, text, digest, wait_s=self.options.delay_s)

    async def _stream_run(self, request: web.Request) -> web.StreamResponse:
        if not self.options.redis:
            return error_answer(503, "Background streaming requires Redis to be running.")
        body = await json_object(request)
        run = self.state.runs.get(str(body.get("run_id") or ""))
        run = run or self.state.run_of_otid.get(str(body.get("otid") or ""))
        if run is None:
            return error_answer(404, "No run found. The run may have expired or never existed.")
        return await self._relate(request, run)

    async def _read_run(self, request: web.Request) -> web.Response:
        run = self.state.runs.get(request.match_info["run"])
        if run is None:
            raise missing("Run not found")
        return web.json_response(run_json(run))

    async def _list_runs(self, request: web.Request) -> web.Response:
        active = request.query.get("active", "false").lower() == "true"
        wanted = {
            name: request.query[name]
            for name in ("agent_id", "conversation_id")
            if name in request.query
        }
        shown = [
            described
            for run in reversed(self.state.runs.values())
            if run.status == "running" or not active
            if wanted.items() <= (described := run_json(run)).items()
        ]
        return web.json_response(shown[page_of(request, [run["id"] for run in shown])])

    # Runs

    async def _relate(
        self, request: web.Request, run: Run, fault: Fault | None = None
    ) -> web.StreamResponse:
        """Answer with a run's stream, from its start to its end."""
        if fault == "gateway":
            return web.Response(status=503, text=GATEWAY_PAGE, content_type="text/html")
        if fault in {"broken_after", "cut_after", "mute"}:
            async for _ in frames_of(run):
                pass
            if fault == "broken_after":
                return error_answer(500, "An internal server error occurred")
            if fault == "mute":
                await self._unhung.wait()
            return cut(request)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            async for frame in frames_of(run):
                await response.write(frame)
        return response

    # For tests

    async def _control(self, request: web.Request) -> web.Response:
        asked = await json_object(request)
        merged: Json = msgspec.to_builtins(self.draw.script)
        for name, value in asked.items():
            part: object = merged.get(name)
            if isinstance(part, dict) and isinstance(value, dict):
                merged[name] = cast("Json", part) | cast("Json", value)
            else:
                merged[name] = value
        try:
            script = msgspec.convert(merged, FaultScript)
        except (msgspec.ValidationError, TypeError) as error:
            raise web.HTTPBadRequest(text=str(error)) from error
        if script.seed != self.draw.script.seed:
            self.draw = FaultDraw(script)
        self.draw.script = script
        self._unhung.set()
        self._unhung = anyio.Event()
        return web.json_response(msgspec.to_builtins(script))

    async def _accepted(self, _: web.Request) -> web.Response:
        return web.json_response(
            [
                {"conversation": m.conversation, "otid": m.otid, "text": m.text, "at_s": m.at_s}
                for m in self.state.messages
            ]
        )

    async def _stats(self, _: web.Request) -> web.Response:
        working = sum(run.status == "running" for run in self.state.runs.values())
        return web.json_response(
            {
                "posts": self.requests["posts"],
                "reads": self.requests["reads"],
                "messages": len(self.state.messages),
                "running": working,
                "faults": self.draw.drawn,
            }
        )

    # Looking up

    def _agent(self, agent_id: str) -> StoredAgent:
        agent = self.state.agents.get(agent_id)
        if agent is None:
            raise missing(f"Agent not found with id='{agent_id}'")
        return agent

    def _conversation(self, request: web.Request) -> StoredConversation:
        conversation_id = request.match_info["conversation"]
        conversation = self.state.conversations.get(conversation_id)
        if conversation is None:
            raise missing(f"Conversation {conversation_id} not found")
        return conversation
