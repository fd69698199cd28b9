"""Traces of real processes, as a collector receives them, from the caller's speech to Letta."""

import json
import os
import secrets
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from livekit.agents import Agent, AgentSession
from livekit.agents.telemetry import set_tracer_provider
from livekit.agents.testing import fake_job_context
from opentelemetry.trace import NoOpTracerProvider

from sidecar.livekit import (
    CallerMemory,
    LinkSettings,
    PortLlm,
    finish,
    language_model,
    remember,
)
from sidecar.worker.livekit.traces import JobTraces
from tests.e2e.test_link_server import Worker, worker
from tests.e2e.test_vapi import Model, body, post, settings
from tests.livekit_room.studio import Studio, on_air, studio
from tests.otlp_collector import Collector, ReceivedSpan
from tests.sidecar_process import SidecarProcess, eventually, get

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

CANARY = "canary-4d2f the words of a caller"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


def traceparent(trace: str) -> str:
    return f"00-{trace}-{secrets.token_hex(8)}-01"


def speak(peer: Worker, call: str, trace: str, *items: str) -> list[str]:
    """Open a call and say turns in it, each in a span of one trace; returns the spans' ids."""
    peer.send(
        type="call.open",
        call=call,
        channel="livekit",
        hints={"identity": "ada"},
        opened_at_s=1.0,
        traceparent=traceparent(trace),
    )
    peer.until("memory")
    peer.send(type="speech.started", call=call, traceparent=traceparent(trace))
    spans: list[str] = []
    for seq, item in enumerate(items, start=1):
        of_turn = traceparent(trace)
        spans.append(of_turn.split("-")[2])
        peer.send(
            type="turn",
            call=call,
            item=item,
            seq=seq,
            speaker="caller",
            text=f"{CANARY} {item}",
            at_s=1.0,
            traceparent=of_turn,
        )
        peer.until("ack")
    return spans


def hang_up(peer: Worker, call: str) -> None:
    peer.send(type="call.close", call=call, at_s=2.0)
    while not peer.until("ack")["closed"]:
        pass


def one(collector: Collector, name: str) -> ReceivedSpan:
    eventually(lambda: bool(collector.named(name)), saying=f"a span {name}")
    return collector.named(name)[0]


def test_one_trace_from_the_speech_to_the_settled_batch(
    collector: Collector, tmp_path: Path
) -> None:
    """The sidecar's spans for a turn are in the trace that the worker's frames name."""
    trace = secrets.token_hex(16)
    with SidecarProcess(tmp_path / "data", collector.env) as sidecar, worker(sidecar) as peer:
        turns = speak(peer, "call-1", trace, "a", "b")
        hang_up(peer, "call-1")
        delivered = one(collector, "deliver batch")
        for name in ("open call", "read memory", "store turns", "invoke_agent"):
            assert one(collector, name).trace == trace, name
    assert delivered.trace == trace
    assert delivered.parent == turns[0]
    assert [span for _, span in delivered.links] == turns
    assert delivered.attributes["sidecar.batch.state"] == "settled"
    assert delivered.attributes["gen_ai.conversation.id"] == "call-1"
    asked = one(collector, "invoke_agent")
    assert asked.parent == delivered.span
    assert asked.kind == 3  # CLIENT
    assert asked.attributes["gen_ai.operation.name"] == "invoke_agent"
    assert asked.attributes["gen_ai.provider.name"] == "letta"
    assert asked.attributes["gen_ai.agent.id"]
    assert {span.parent for span in collector.named("store turns")} == set(turns)
    assert {span.service for span in collector.spans} == {"letta-voice-sidecar"}
    assert b"canary" not in collector.raw


def test_a_batch_is_linked_to_its_turns_after_a_restart(
    collector: Collector, tmp_path: Path
) -> None:
    """After a restart a batch's span is still linked to the spans of its turns."""
    trace = secrets.token_hex(16)
    sidecar = SidecarProcess(tmp_path / "data", {**collector.env, "SIDECAR_ORPHAN_S": "1"})
    with sidecar:
        with worker(sidecar) as peer:
            turns = speak(peer, "call-1", trace, "a", "b")
            sidecar.kill()
        assert not collector.named("deliver batch")
        sidecar.start()
        delivered = one(collector, "deliver batch")
    assert delivered.trace == trace
    assert [span for _, span in delivered.links] == turns


def test_a_worker_without_traces_gets_one_per_call(collector: Collector, tmp_path: Path) -> None:
    """Turns without a span are in the trace that the sidecar began for their call."""
    with SidecarProcess(tmp_path / "data", collector.env) as sidecar, worker(sidecar) as peer:
        peer.open("call-1", identity="ada")
        peer.turn("call-1", "i1", text=CANARY)
        hang_up(peer, "call-1")
        delivered = one(collector, "deliver batch")
    opened = one(collector, "open call")
    stored = one(collector, "store turns")
    assert not opened.parent
    assert {opened.trace} == {stored.trace, delivered.trace}
    assert delivered.links == ((stored.trace, stored.span),)


def test_words_are_in_traces_by_opt_in_alone(collector: Collector, tmp_path: Path) -> None:
    """With SIDECAR_TRACE_TEXT a turn's text is on its span, redacted as in the journal."""
    env = {**collector.env, "SIDECAR_TRACE_TEXT": "1", "SIDECAR_REDACT": "emails"}
    with SidecarProcess(tmp_path / "data", env) as sidecar, worker(sidecar) as peer:
        peer.open("call-1", identity="ada")
        peer.turn("call-1", "i1", text=f"{CANARY}, ada@example.org")
        peer.until("ack")
        stored = one(collector, "store turns")
    assert CANARY in str(stored.attributes["sidecar.pii.text"])
    assert b"example.org" not in collector.raw


def test_a_request_from_vapi_is_traced_on_to_the_model(
    collector: Collector, tmp_path: Path
) -> None:
    """The chat span is in the request's trace and names the model, which gets the span's id."""
    trace = secrets.token_hex(16)
    given = traceparent(trace)
    with Model() as model:
        env = {**settings(model), **collector.env}
        with SidecarProcess(tmp_path / "data", env) as sidecar:
            headers = {"Content-Type": "application/json", "traceparent": given, **sidecar.bearer}
            asked = json.dumps(body(CANARY)).encode()
            assert post(sidecar, "/vapi/chat/completions", asked, headers)[0] == 200
            traced = one(collector, "chat demo")
        seen = json.loads(get(f"{model.url}/_log?tail=1000")[1])
    opened = one(collector, "open call")
    assert (traced.trace, traced.parent) == (trace, given.split("-")[2])
    assert traced.links == ((opened.trace, opened.span),)
    assert f"00-{trace}-{traced.span}-01" in {request["traceparent"] for request in seen}
    said = traced.attributes
    assert said["gen_ai.operation.name"] == "chat"
    assert said["gen_ai.provider.name"] == "127.0.0.1"
    assert said["gen_ai.request.model"] == "demo"
    assert said["gen_ai.conversation.id"] == "call-1"
    first_chunk_s = said["gen_ai.response.time_to_first_chunk"]
    assert isinstance(first_chunk_s, float)
    assert 0 < first_chunk_s < traced.end_s - traced.start_s + 1
    assert b"canary" not in collector.raw


@pytest.mark.parametrize("fault", ["away", "hangs"])
def test_a_lost_collector_costs_nothing(collector: Collector, tmp_path: Path, fault: str) -> None:
    """With a lost collector calls, delivery and the drain go on, and one log line says so."""
    env = collector.env | {"OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
    if fault == "away":
        env["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:1"
    collector.hangs = True
    sidecar = SidecarProcess(tmp_path / "data", env)
    with sidecar:
        with worker(sidecar) as peer:
            for n in range(20):
                speak(peer, f"call-{n}", secrets.token_hex(16), "a", "b")
                hang_up(peer, f"call-{n}")
        eventually(lambda: sidecar.undelivered() == 0)
        eventually(lambda: "traces_lost" in "".join(sidecar.log))
        sidecar.terminate()
        assert sidecar.wait(30) == 0
    log = "".join(sidecar.log)
    assert log.count("traces_lost") == 1
    assert "opentelemetry" not in log
    assert "Traceback" not in log


# From the caller's speech in a LiveKit job


class Friend(CallerMemory, Agent):
    def __init__(self) -> None:
        # LiveKit leaves the event type of speech engines open.
        super().__init__(instructions="Be brief.")  # pyright: ignore[reportUnknownMemberType]


def _ignored(_reason: str) -> None: ...


@asynccontextmanager
async def traced_job(
    sidecar: SidecarProcess,
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    *,
    text: bool,
) -> AsyncGenerator[Studio]:
    """A session run in this process as by a job, with traces on."""
    for name, value in collector.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(JobTraces, "_of_process", None)
    made = studio(lambda _: f"{CANARY}, I reply.")
    link = LinkSettings(sidecar.link_url, sidecar.link_token, tmp_path / "spool", trace_text=text)
    with fake_job_context(job_id="AJ_1", job_metadata='{"caller": "ada"}') as ctx:
        try:
            ctx._on_shutdown = _ignored
            call = await remember(ctx, made.session, settings=link)
            try:
                async with on_air(made, Friend()):
                    await made.until(lambda: call.memory is not None and call.memory.newest)
                    yield made
            finally:
                with anyio.CancelScope(shield=True):
                    await finish(ctx)
        finally:
            ctx._tempdir.cleanup()
            set_tracer_provider(NoOpTracerProvider())


@pytest.mark.parametrize("text", [False, True])
async def test_the_callers_speech_and_the_settled_batch_are_in_one_trace(
    collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: bool
) -> None:
    """Worker, LiveKit and sidecar share a trace per call, with no word in it unless opted in."""
    with SidecarProcess(tmp_path / "data", collector.env) as sidecar:
        async with traced_job(sidecar, collector, monkeypatch, tmp_path, text=text) as made:
            made.ear.says(CANARY)
            await made.until_committed(2)
        await anyio.to_thread.run_sync(lambda: one(collector, "deliver batch"))
    of_service = {
        service: {span.name for span in collector.spans if span.service == service}
        for service in ("letta-voice-worker", "letta-voice-sidecar")
    }
    assert {"call", "caller turn", "agent turn", "wait for memory"} <= of_service[
        "letta-voice-worker"
    ]
    assert {"agent_session", "llm_node"} <= of_service["letta-voice-worker"]  # LiveKit's own
    assert {"read memory", "store turns", "deliver batch"} <= of_service["letta-voice-sidecar"]
    assert len({span.trace for span in collector.spans}) == 1
    (caller,), (agent,) = collector.named("caller turn"), collector.named("agent turn")
    (call,) = collector.named("call")
    assert caller.parent == agent.parent == call.span
    assert {span for _, span in one(collector, "deliver batch").links} == {caller.span, agent.span}
    assert caller.span in {span.parent for span in collector.named("read memory")}
    waited = one(collector, "wait for memory")
    assert waited.parent in {span.span for span in collector.spans if span.name == "llm_node"}
    assert "sidecar.turn.llm_node_ttft" in agent.attributes
    assert (b"canary" in collector.raw) is text


async def test_a_workers_own_model_is_told_of_its_trace(
    collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model's request in `voice_worker.py` carries LiveKit's span of that request."""
    with Model() as model:
        for name, value in {**collector.env, "LLM_BASE_URL": f"{model.url}/v1"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(JobTraces, "_of_process", None)
        session: Any = AgentSession[None](llm=PortLlm(language_model(os.environ)))
        link = LinkSettings("ws://127.0.0.1:9/link", None, tmp_path / "spool")
        with fake_job_context(job_id="AJ_1", job_metadata='{"caller": "ada"}') as ctx:
            try:
                ctx._on_shutdown = _ignored
                await remember(ctx, session, settings=link)
                await session.start(Friend())
                await session.run(user_input="Hello")
                await session.aclose()
                await finish(ctx)
            finally:
                ctx._tempdir.cleanup()
                set_tracer_provider(NoOpTracerProvider())
        seen = json.loads((await anyio.to_thread.run_sync(get, f"{model.url}/_log"))[1])
    (request,) = (one for one in seen if one["path"] == "chat")
    _, trace, span, _ = request["traceparent"].split("-")
    await anyio.to_thread.run_sync(one, collector, "call")
    assert trace == collector.named("call")[0].trace
    assert span in {known.span for known in collector.spans if known.name.startswith("llm_request")}
