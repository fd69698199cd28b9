"""VAPI's server URL as an ASGI application on fakes, in virtual time."""

import hashlib
import hmac
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio
import trio.testing

from sidecar.access.deliveries import Deliveries
from sidecar.access.door import REPLAY_WINDOW_S, Credential, Door
from sidecar.channels.vapi.bodies import about
from sidecar.channels.vapi.control import Control
from sidecar.channels.vapi.history import stretches_of
from sidecar.channels.vapi.limits import RateCap
from sidecar.channels.vapi.stored import transcript_of
from sidecar.channels.vapi.webhook import Assistant, Webhook
from sidecar.memory.archive import Archive
from sidecar.model import Passage
from sidecar.telemetry import Event
from sidecar.testing.memory_journal import MemoryJournal
from sidecar.tools.recall import DEADLINE_S, Recall
from tests.unit.test_vapi_call import VapiBench
from tests.vapi.bodies import SENT, VAPI_HISTORY, message

pytestmark = [pytest.mark.unit, pytest.mark.backend("virtual-time")]

SECRET = b"secret-0123456789abcdef"
CALL = {"id": "1", "type": "inboundPhoneCall", "customer": {"number": "+14155550123"}}
RECALL = {"id": "call-1", "name": "recall", "parameters": {"query": "boat"}}


class Source:
    """Archival memory that takes `search_s` and counts how often it is asked."""

    def __init__(self) -> None:
        self.search_s = 1.0
        self.asked = 0

    async def search_passages(
        self, agent_id: str, query: str, *, limit: int
    ) -> tuple[Passage, ...]:
        self.asked += 1
        await anyio.sleep(self.search_s)
        return (Passage("passage-1", "Her boat is called Möwe."),)


class Served(VapiBench):
    def __init__(
        self, deliveries_file: Path | None = None, journal: MemoryJournal | None = None
    ) -> None:
        super().__init__(journal)
        self.deliveries_file = deliveries_file
        self.source = Source()
        self.archive = Archive(self.source, emit=self.telemetry.emit, clock=self.clock)
        recall = Recall(self.archive)
        self.webhook = Webhook(
            self.vapi,
            Door(
                [Credential("acme", (b"key",), (SECRET,))],
                wall=self.clock,
                deliveries=Deliveries(
                    window_s=REPLAY_WINDOW_S,
                    wall=self.clock,
                    clock=self.clock,
                    path=self.deliveries_file,
                    emit=self.telemetry.emit,
                ),
            ),
            assistant=Assistant(assistant_id="5b0a4a08"),
            tools=(recall.tool,),
            recall=recall,
            rate=RateCap(200.0, 600.0),
            emit=self.telemetry.emit,
            clock=self.clock,
        )

    async def deliver(
        self, sent: Mapping[str, Any], headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> tuple[int, Any]:
        """Deliver a server message; returns status and answer."""
        raw = json.dumps({"message": sent}).encode()
        answered: list[Any] = []
        bearer = (b"authorization", b"Bearer " + SECRET)

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": raw}

        async def send(part: Any) -> None:
            answered.append(part)

        scope = {"type": "http", "headers": [*(headers or [bearer])], "client": ("127.0.0.1", 1)}
        await self.webhook(scope, receive, send)
        return answered[0]["status"], json.loads(answered[1]["body"])

    def signed(self, sent: Mapping[str, Any]) -> list[tuple[bytes, bytes]]:
        raw = json.dumps({"message": sent}).encode()
        stamp = str(int(self.clock())).encode()
        mac = hmac.new(SECRET, stamp + b"." + raw, hashlib.sha256).hexdigest()
        return [(b"x-signature", mac.encode()), (b"x-timestamp", stamp)]


@asynccontextmanager
async def opened(journal: MemoryJournal | None = None) -> AsyncGenerator[Served]:
    """A sidecar, new or started anew on another one's journal."""
    bench = Served(journal=journal)
    async with trio.open_nursery() as nursery:
        for part in (bench.snapshots, bench.calls, bench.vapi, bench.archive):
            await nursery.start(part.run)
        yield bench
        await trio.testing.wait_all_tasks_blocked()  # no read begins while its part ends
        nursery.cancel_scope.cancel()


async def tell_late(bench: Served, histories: Sequence[Mapping[str, Any]]) -> None:
    """Deliver what may come after a report: histories by every route, and other messages."""
    for history in histories:
        for kind in ("conversation-update", "knowledge-base-request", "assistant-request"):
            assert (await bench.deliver(message(kind, call=CALL, **history)))[0] == 200
        late = await bench.vapi.of("acme", about({"call": CALL}, trust_web=False))
        if late is not None:
            await late.call.take(stretches_of(history["messages"]), stamp_ms=0.0)
    for kind, sent in SENT.items():
        if kind != "end-of-call-report":
            assert (await bench.deliver({**sent.message, "call": CALL}))[0] == 200
    await trio.sleep(1_000)


@pytest.mark.anyio
class TestWebhook:
    async def test_an_assistant_request_is_no_prompt(self) -> None:
        """It reads the memory, counts no prompt, and leaves guidance to VAPI's own control."""
        sent: list[str] = []

        async def post(_url: str, command: Mapping[str, Any]) -> int:
            sent.append(command["type"])
            return 200

        async with opened() as bench:
            bench.vapi.control = Control(emit=bench.telemetry.emit, post=post)
            call = {**CALL, "monitor": {"controlUrl": "https://phone.vapi.ai/1/control"}}
            status, answer = await bench.deliver(message("assistant-request", call=call))
            assert status == 200
            assert "letta_memory" in answer["assistantOverrides"]["variableValues"]
            assert not bench.telemetry.counts["prompt_served"]
            (live,) = bench.calls.live
            live.guide("Ask for the date.")
            await trio.sleep(1)
        assert sent == ["add-message"]

    async def test_a_tool_runs_once_also_when_it_is_repeated_meanwhile(self) -> None:
        """Repeats of a tool call wait for the first run, and all get the same answer."""
        async with opened() as bench:
            answers: list[Any] = []

            async def call_it() -> None:
                sent = message("tool-calls", call=CALL, toolCallList=[RECALL])
                answers.append(await bench.deliver(sent))

            await bench.deliver(message("status-update", call=CALL, status="in-progress"))
            await trio.sleep(5)
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(call_it)
                    await trio.sleep(0.1)
            await trio.sleep(120)
            await call_it()
            assert bench.source.asked == 1
            assert {json.dumps(answer) for answer in answers} == {json.dumps(answers[0])}
            assert "Möwe" in answers[0][1]["results"][0]["result"]

    @pytest.mark.parametrize("reported", [True, False])
    async def test_no_tool_repeats_what_was_erased(self, reported: bool) -> None:
        """After `forget`, a repeated tool call returns none of the erased words."""
        async with opened() as bench:
            sent = message("tool-calls", call=CALL, toolCallList=[RECALL])
            said = [{"role": "user", "content": "My boat is called Rex."}]
            await bench.deliver(message("conversation-update", call=CALL, messages=said))
            await trio.sleep(5)
            assert "Rex" in str(await bench.deliver(sent))
            if reported:
                await bench.deliver(message("end-of-call-report", call=CALL, messages=said))
            await trio.sleep(1_000)
            (row,) = await bench.journal.calls(limit=2)
            await bench.journal.erase_caller(row.call.caller_key, now_s=bench.clock())
            assert "Rex" not in str(await bench.deliver(sent))

    async def test_a_report_that_another_replica_had_is_the_last_word(self) -> None:
        """A replica that waits for a report in vain adds nothing to a call that has had it."""
        async with opened() as bench:
            said = [
                {"role": role, "content": text}
                for role, text in (("user", "Hello."), ("assistant", "Hi."), ("user", "And you?"))
            ]
            await bench.deliver(message("conversation-update", call=CALL, messages=said))
            await bench.deliver(message("status-update", call=CALL, status="ended"))
            await trio.sleep(5)
            (row,) = await bench.journal.calls(limit=2)
            key = row.call.key
            before = await bench.journal.turns(key)
            await bench.journal.close_call(key, at_s=bench.clock(), epoch=None, final=True)
            await trio.sleep(1_000)
            assert await bench.journal.turns(key) == before
            assert len(before) < len(said)

    async def test_a_tool_answers_within_its_budget(self) -> None:
        """If archival memory hangs, the tool still answers in time."""
        async with opened() as bench:
            bench.source.search_s = 3_600.0
            await bench.deliver(message("status-update", call=CALL, status="in-progress"))
            await trio.sleep(5)
            began_s = trio.current_time()
            sent = message("tool-calls", call=CALL, toolCallList=[RECALL])
            status, answered = await bench.deliver(sent)
            assert trio.current_time() - began_s < DEADLINE_S
            assert (status, answered["results"][0]["toolCallId"]) == (200, "call-1")
            assert "result" in answered["results"][0]

    async def test_a_delivery_that_was_here_before(self) -> None:
        """A repeated signed delivery gets no memory again, while a repeated report is accepted."""
        async with opened() as bench:
            for kind in ("assistant-request", "knowledge-base-request", "tool-calls"):
                sent = SENT[kind].message
                headers = bench.signed(sent)
                assert (await bench.deliver(sent, headers))[0] == 200
                assert (await bench.deliver(sent, headers))[0] == 401
            report = SENT["end-of-call-report"].message
            headers = bench.signed(report)
            for _ in range(2):
                assert await bench.deliver(report, headers) == (200, {})

    async def test_a_report_alone_is_a_whole_call(self) -> None:
        """A call known only by its report is stored with every word, once."""
        async with opened() as bench:
            for _ in range(2):
                sent = {**SENT["end-of-call-report"].message, "call": CALL}
                assert await bench.deliver(sent) == (200, {})
            assert [text for text, _ in await bench.texts()] == [
                "Hello, this is Ada. How can I help?",
                "My dog is called Rex.",
                "nice to meet rex",
                "Which dog do I have?",
            ]
            assert not bench.calls.live

    async def test_what_comes_late_wakes_no_call(self) -> None:
        """Messages that come after the report leave the call closed and unchanged."""
        async with opened() as bench:
            await bench.deliver({**SENT["end-of-call-report"].message, "call": CALL})
            before = await bench.texts()
            for kind, sent in SENT.items():
                if kind.startswith(("speech", "transcript", "user-", "hang", "conv", "status")):
                    assert (await bench.deliver({**sent.message, "call": CALL}))[0] == 200
            assert not bench.calls.live
            assert await bench.texts() == before

    async def test_a_final_transcript_of_nobody_is_refused_and_said(self) -> None:
        """A final transcript that names nobody is not stored in a call with a known caller."""
        async with opened() as bench:
            await bench.deliver(message("conversation-update", call=CALL, messages=VAPI_HISTORY))
            nobody = {key: value for key, value in CALL.items() if key != "customer"}
            said = {**SENT["transcript, final"].message, "call": nobody}
            said.pop("customer", None)
            assert (await bench.deliver(said))[0] == 200
            assert bench.telemetry.counts["turn_refused"] == 1

    @pytest.mark.parametrize("restarted", [False, True])
    async def test_a_reported_call_is_final(self, restarted: bool) -> None:
        """Late messages of any kind neither reopen a reported call nor change its turns."""
        report = {**SENT["end-of-call-report"].message, "call": CALL}
        other = [{"role": "user", "message": "I never said that."}, *VAPI_HISTORY[2:]]
        late = [
            {"messages": VAPI_HISTORY[:2]},
            {"messages": [*VAPI_HISTORY, {"role": "bot", "message": "Rex."}, VAPI_HISTORY[1]]},
            {"messages": other},
        ]
        async with opened() as bench:
            await bench.deliver(report)
            before = await bench.texts()
            journal = bench.journal
            if not restarted:
                await tell_late(bench, late)
                assert await bench.texts() == before
        if restarted:
            async with opened(journal) as bench:
                await tell_late(bench, late)
                assert await bench.texts() == before
        stored = await journal.call("acme/1")
        assert stored is not None
        assert stored.closed_at_s is not None

    @pytest.mark.parametrize("restarted", [False, True])
    async def test_a_further_report_corrects_what_it_names(self, restarted: bool) -> None:
        """A further report corrects a reported call, and the call stays closed."""
        report = {**SENT["end-of-call-report"].message, "call": CALL}
        heard = [dict(one) for one in VAPI_HISTORY]
        heard[1]["message"] = "My frog is called Rex."
        again = {**report, "artifact": {"messages": heard}}
        async with opened() as bench:
            await bench.deliver(report)
            journal = bench.journal
            if not restarted:
                await bench.deliver(again)
        if restarted:
            async with opened(journal) as bench:
                await bench.deliver(again)
        texts = [stretch.text for stretch in transcript_of(await journal.turns("acme/1"))]
        assert texts == [one["message"] for one in heard]
        assert not bench.calls.live
        stored = await journal.call("acme/1")
        assert stored is not None
        assert stored.closed_at_s is not None

    @pytest.mark.parametrize(
        ("reason", "logged"),
        [
            ("customer-ended-call", "customer-ended-call"),
            ("call.in-progress.error-vapifault-openai-429-exceeded-quota", None),
            ({"text": "canary"}, "other"),
            (["canary"], "other"),
            ("I said canary", "other"),
            ("customer-+14155550123", "other"),
            ("customer-4155550123", "other"),
            ("canary" * 40, "other"),
            (7, "other"),
        ],
    )
    async def test_no_ended_reason_brings_words_into_the_log(
        self, reason: object, logged: str | None
    ) -> None:
        """Only known reasons for a call's end are logged, and any other text as `other`."""
        async with opened() as bench:
            said: list[Mapping[str, object]] = []

            def observe(event: Event, fields: Mapping[str, object]) -> None:
                said.append({"": event.name, **fields})

            bench.telemetry.observe = observe
            sent = {**SENT["end-of-call-report"].message, "call": CALL, "endedReason": reason}
            assert await bench.deliver(sent) == (200, {})
            reasons = [one["reason"] for one in said if one[""] in {"vapi_reported", "call_closed"}]
            assert reasons == [(logged or reason)] * 2
            assert "canary" not in str(said)

    async def test_no_more_tools_run_than_a_few(self) -> None:
        """Of thousands of tool calls in one message 32 run, and strange ones cause no fault."""
        async with opened() as bench:
            deep = {"id": "d", "function": {"name": "recall", "arguments": "[" * 9_999}}
            asked = [deep, *({**RECALL, "id": f"a{n}"} for n in range(9_000))]
            status, answered = await bench.deliver(
                message("tool-calls", call=CALL, toolCallList=asked)
            )
            assert status == 200
            assert len(answered["results"]) == 32

    async def test_a_message_without_a_type_is_refused(self) -> None:
        """A body without a type is refused with an error that says so."""
        async with opened() as bench:
            status, answered = await bench.deliver({"call": CALL})
            assert status == 400
            assert "type" in answered["error"]["message"]
