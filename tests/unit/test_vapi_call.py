"""VAPI calls on a journal in memory, in virtual time: reports, silence, repeats, consent."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio
import trio.testing
from typing_extensions import override

from sidecar.access.callers import IdentityRules
from sidecar.channels.vapi.bodies import About
from sidecar.channels.vapi.call import VapiCall
from sidecar.channels.vapi.calls import Ends, VapiCalls
from sidecar.channels.vapi.control import Control
from sidecar.channels.vapi.history import UNCONFIRMED_NOTE, VOICEMAIL_NOTE, stretches_of
from sidecar.channels.vapi.stored import transcript_of
from sidecar.errors import JournalFull
from sidecar.journal.sql import SqlJournal
from sidecar.journal.sql.replicas import enter
from sidecar.model import Call, CallerHints
from sidecar.prompt_wait import Waits
from sidecar.testing.memory_journal import POLICY, MemoryJournal
from tests.unit.test_calls import ADA, BOB, CallsBench

pytestmark = [pytest.mark.unit, pytest.mark.backend("virtual-time")]

USER_1 = {"role": "user", "content": "My name is Ada."}
REPLY_1 = {"role": "assistant", "content": "hello ada"}
USER_2 = {"role": "user", "content": "Bye."}
HISTORY = stretches_of([USER_1, REPLY_1, USER_2])


def said(hints: CallerHints = ADA, call_id: str = "1", stamp_ms: float = 0.0) -> About:
    return About(call_id, hints, "https://phone.vapi.ai/1/control", stamp_ms)


class Failing(MemoryJournal):
    """A journal with another one's content, which fails while `fails` is set."""

    def __init__(self, other: MemoryJournal) -> None:
        self.__dict__.update(other.__dict__)
        self.fails = False

    @override
    async def call(self, key: str) -> Call | None:
        if self.fails:
            raise JournalFull("no room")
        return await super().call(key)

    @override
    async def identify(self, call: Call) -> Call:
        if self.fails:
            raise JournalFull("no room")
        return await super().identify(call)


class VapiBench(CallsBench):
    def __init__(self, journal: MemoryJournal | None = None) -> None:
        super().__init__(journal=journal)
        self.vapi = VapiCalls(
            self.calls,
            self.journal,
            Control(emit=self.telemetry.emit),
            waits=Waits(),
            ends=Ends(report_s=30.0, idle_s=300.0),
            redact=None,
            emit=self.telemetry.emit,
            clock=self.clock,
        )

    async def call(self, about: About | None = None) -> VapiCall:
        found = await self.vapi.of("acme", about or said())
        assert found is not None
        return found.call

    async def texts(self) -> list[tuple[str, str]]:
        stretches = transcript_of(await self.journal.turns("acme/1"))
        return [(stretch.text, stretch.note) for stretch in stretches]


async def both_are_strangers(bench: VapiBench) -> None:
    """Name two callers in one call, twice."""
    for hints in (BOB, ADA, CallerHints(), BOB):
        found = await bench.vapi.of("acme", said(hints))
        if found is not None:
            assert hints is not BOB
            await found.call.take(HISTORY, stamp_ms=9.0)
    for stage in ("live", "over", "report"):
        found = await bench.vapi.of("acme", said(), stage=stage)
        assert found is None or not found.call.live.may_be_stored
    assert bench.telemetry.counts["vapi_caller_changed"] <= 1


@asynccontextmanager
async def opened(journal: MemoryJournal | None = None) -> AsyncGenerator[VapiBench]:
    bench = VapiBench(journal)
    async with trio.open_nursery() as nursery:
        await nursery.start(bench.snapshots.run)
        await nursery.start(bench.calls.run)
        await nursery.start(bench.vapi.run)
        yield bench
        await trio.testing.wait_all_tasks_blocked()  # no read begins while its part ends
        nursery.cancel_scope.cancel()


@pytest.mark.anyio
class TestVapiCalls:
    async def test_a_report_has_the_last_word(self) -> None:
        """Settled turns come from histories, the end from the report, and then the call closes."""
        async with opened() as bench:
            call = await bench.call()
            await call.take(HISTORY, stamp_ms=1.0)
            assert await bench.texts() == [("My name is Ada.", ""), ("hello ada", "")]
            await call.report((*HISTORY, *stretches_of([{"role": "bot", "message": "bye ada"}])))
            await bench.vapi.end(call, "over")
            assert [text for text, _ in await bench.texts()][2:] == ["Bye.", "bye ada"]
            assert not bench.calls.live

    async def test_a_call_that_was_at_another_replica_is_mended_all_the_same(self) -> None:
        """What another sidecar stored of a call meanwhile is read again before turns are mended."""
        async with opened() as bench:
            call = await bench.call()
            await call.take(HISTORY, stamp_ms=1.0)
            other = SqlJournal(
                bench.journal.executor,
                policy=POLICY,
                secret=b"",
                clock=bench.clock,
                replica="other",
            )
            await bench.journal.executor.write(lambda tx: enter(tx, "other", now_s=0.0))
            taken = await other.open_call(call.live.call)
            corrected = {"role": "assistant", "content": "hello Ada, good to hear you"}
            await call.report(stretches_of([USER_1, corrected, USER_2]))
            assert bench.telemetry.counts["turns_mended"] == 1
            assert call.live.call.epoch == taken.epoch + 1
            assert [text for text, _ in await bench.texts()][:2] == [
                "My name is Ada.",
                "hello Ada, good to hear you",
            ]

    @pytest.mark.parametrize("posted", [True, False])
    async def test_a_report_of_the_last_assistant_alone(self, posted: bool) -> None:
        """A report of only the last assistant keeps earlier turns and the words seen last."""
        greeting = {"role": "assistant", "content": "Thank you for calling Acme."}
        bye = {"role": "bot", "message": "Thank you for calling Acme. Goodbye."}
        async with opened() as bench:
            call = await bench.call()
            await call.take(stretches_of([greeting, USER_1, REPLY_1, USER_2]), stamp_ms=1.0)
            call.heard(stretches_of([{"role": "user", "content": "And thanks."}]), stamp_ms=2.0)
            if posted:
                await bench.journal.hurry(now_s=bench.clock())
                assert await bench.journal.claim(1, now_s=bench.clock(), post_timeout_s=9.0)
            for _ in range(2):
                await call.report(stretches_of([bye]))
            turns = await bench.journal.turns("acme/1")
            expected = ["My name is Ada.", "hello ada", "Bye. And thanks.", bye["message"]]
            assert [turn.text for turn in turns] == [greeting["content"], *expected]

    @pytest.mark.parametrize("reported", [True, False])
    async def test_a_window_that_moves_on(self, reported: bool) -> None:
        """The caller's last words of one history are kept when the next history lacks them."""
        expected = [
            "Hello.",
            "Oslo, please.",
            "Which day?",
            "Yes.",
            "On Friday?",
            "Yes.",
            "Booked.",
        ]
        roles = ["assistant", "user"] * 4
        history = [{"role": r, "content": t} for r, t in zip(roles, expected, strict=False)]
        async with opened() as bench:
            call = await bench.call()
            for end in (2, 4, 6):
                await call.take(stretches_of(history[end - 2 : end]), stamp_ms=float(end))
            await (call.report(stretches_of(history[6:])) if reported else call.give_up())
            assert [text for text, _ in await bench.texts()] == (
                expected if reported else expected[:6]
            )

    async def test_what_was_seen_is_stored_when_models_are_asked(self) -> None:
        """The newest histories of many calls are stored a little later, each only once."""
        async with opened() as bench:
            calls = [await bench.call(said(call_id=str(number))) for number in range(1, 41)]
            for call in calls:
                assert not call.saw(HISTORY[:1], stamp_ms=1.0)
                for stamp_ms in (2.0, 3.0):
                    assert call.saw(HISTORY, stamp_ms=stamp_ms)
                    bench.vapi.store_soon(call)
            assert await bench.texts() == []
            await trio.sleep(1.0)
            for call in calls:
                turns = await bench.journal.turns(call.live.key)
                assert [turn.text for turn in turns] == ["My name is Ada.", "hello ada"]

    async def test_silence_ends_a_call(self) -> None:
        """Without a report, the last history is stored and an unheard reply is marked."""
        async with opened() as bench:
            call = await bench.call()
            stream = call.written.begin(2, "Bye.", trio.CancelScope())  # type: ignore[arg-type]
            call.written.end(stream, "Goodbye Ada!", follow_up=False)
            await call.take(HISTORY, stamp_ms=1.0)
            call.ended_s = bench.clock()
            await trio.sleep(40)
            assert (await bench.texts())[2:] == [("Bye.", ""), ("Goodbye Ada!", UNCONFIRMED_NOTE)]
            assert not bench.calls.live

    async def test_a_report_after_all(self) -> None:
        """A report after the silence still corrects turns, and the call stays closed."""
        async with opened() as bench:
            call = await bench.call()
            await call.take(HISTORY, stamp_ms=1.0)
            await trio.sleep(400)
            found = await bench.vapi.of("acme", said(), stage="report")
            assert found is not None
            late = found.call
            await late.report((*HISTORY, *stretches_of([{"role": "bot", "message": "bye"}])))
            await bench.vapi.end(late, "over", final=True)
            assert (await bench.texts())[-1] == ("bye", "")
            assert not bench.calls.live

    async def test_words_heard_and_never_asked_about(self) -> None:
        """A final transcript after the newest history is stored once when the call gets silent."""
        async with opened() as bench:
            call = await bench.call()
            await call.take(HISTORY, stamp_ms=5.0)
            call.heard(stretches_of([USER_1]), stamp_ms=2.0)
            call.heard(
                stretches_of([{"role": "user", "content": "Bye. And thanks."}]), stamp_ms=6.0
            )
            await call.give_up()
            assert (await bench.texts())[2:] == [("Bye. And thanks.", "")]

    async def test_final_transcripts_are_stored_in_the_order_of_their_times(self) -> None:
        """Final transcripts that arrive in another order are stored as they were said."""
        async with opened() as bench:
            call = await bench.call()
            await call.take(stretches_of([REPLY_1]), stamp_ms=1.0)
            late = {"role": "assistant", "content": "Okay."}
            call.heard(stretches_of([late]), stamp_ms=3.0)
            call.heard(stretches_of([USER_1]), stamp_ms=2.0)
            await call.give_up()
            said = [text for text, _ in await bench.texts()]
            assert said == [REPLY_1["content"], USER_1["content"], "Okay."]

    @pytest.mark.parametrize("stamp_ms", [0.0, 9.0])
    async def test_words_whose_message_names_no_time(self, stamp_ms: float) -> None:
        """Words without a time go after what was seen before and before what comes next."""
        async with opened() as bench:
            call = await bench.call()
            await call.take(HISTORY, stamp_ms=stamp_ms)
            call.heard(stretches_of([{"role": "user", "content": "And thanks."}]), stamp_ms=0.0)
            longer = (*HISTORY, *stretches_of([REPLY_1, USER_1]))
            seen = await bench.call(said(call_id="2"))
            seen.heard(stretches_of([USER_2]), stamp_ms=0.0)
            await seen.take(longer, stamp_ms=stamp_ms)
            for one in (call, seen):
                await one.give_up()
            assert (await bench.texts())[2:] == [("Bye. And thanks.", "")]
            turns = await bench.journal.turns("acme/2")
            assert [turn.text for turn in turns] == [stretch.text for stretch in longer]

    async def test_a_greeting_that_the_model_wrote(self) -> None:
        """A greeting that neither a report nor a history has is stored as not confirmed."""
        async with opened() as bench:
            call = await bench.call()
            stream = call.written.begin(0, "", trio.CancelScope())  # type: ignore[arg-type]
            call.written.end(stream, "Hello, this is Ada.", follow_up=False)
            await call.give_up()
            assert await bench.texts() == [("Hello, this is Ada.", UNCONFIRMED_NOTE)]

    @pytest.mark.parametrize("seen", ["before", "posted", "never"])
    @pytest.mark.parametrize("reported", [True, False])
    async def test_a_voicemails_greeting_is_no_callees_words(
        self, seen: str, reported: bool
    ) -> None:
        """Each turn of a voicemail says that nobody was on the line, even if one was posted."""
        async with opened() as bench:
            call = await bench.call()
            if seen != "never":
                await call.take(HISTORY, stamp_ms=1.0)
            if seen == "posted":
                await bench.journal.hurry(now_s=bench.clock())
                assert await bench.journal.claim(1, now_s=bench.clock(), post_timeout_s=9.0)
            call.voicemail = True
            for _ in range(2):
                await (call.report(HISTORY) if reported else call.give_up())
            turns = await bench.journal.turns("acme/1")
            words = {"My name is Ada.", "Bye."} if reported or seen != "never" else set[str]()
            stored = {one.text for one in turns if one.speaker == "caller"}
            expected = {f"[{VOICEMAIL_NOTE}]\n{text}" for text in words}
            if seen == "posted":
                expected.remove(f"[{VOICEMAIL_NOTE}]\nMy name is Ada.")
                note = f'correction: "My name is Ada.", noted before, was {VOICEMAIL_NOTE}'
                expected |= {f"[{note}]\nMy name is Ada.", "My name is Ada."}
            assert stored == expected
            assert len(turns) == len(stored) + sum(one.speaker == "agent" for one in turns)
            notes = {
                stretch.note for stretch in transcript_of(turns) if stretch.speaker == "caller"
            }
            assert notes == ({VOICEMAIL_NOTE} if words else set())

    async def test_an_older_history_is_no_news(self) -> None:
        """An older history changes nothing."""
        async with opened() as bench:
            call = await bench.call()
            await call.take(HISTORY, stamp_ms=9.0)
            before = await bench.texts()
            other = stretches_of([{"role": "user", "content": "My name is"}, REPLY_1, USER_2])
            await call.take(other, stamp_ms=3.0)
            assert await bench.texts() == before

    @pytest.mark.parametrize("restarted", [False, True])
    async def test_two_callers_in_one_call(self, restarted: bool) -> None:
        """Once a second number is named in a call, it gets no memory and no more is stored."""
        async with opened() as bench:
            call = await bench.call()
            await call.take(HISTORY, stamp_ms=1.0)
            journal = bench.journal
            if not restarted:
                await both_are_strangers(bench)
        if restarted:
            async with opened(journal) as bench:
                await bench.vapi.of("acme", said(ADA))
                await both_are_strangers(bench)
        async with opened(journal) as bench:
            await both_are_strangers(bench)
            assert [text for text, _ in await bench.texts()][:2] == ["My name is Ada.", "hello ada"]

    async def test_a_caller_named_otherwise_after_a_restart(self) -> None:
        """After a restart, a body with another kind of name gets no memory but keeps its words."""
        async with opened() as bench:
            named = await bench.vapi.of("acme", said(CallerHints(caller="ada-1")))
            assert named is not None
            await named.call.take(HISTORY, stamp_ms=1.0)
            journal = bench.journal
        async with opened(journal) as bench:
            found = await bench.vapi.of("acme", said(CallerHints(phone="+12025550100")))
            assert found is not None
            assert not found.own
            assert found.call.live.may_be_stored
            assert await bench.vapi.of_history(found, HISTORY) is found.call
            named = await bench.vapi.of("acme", said(CallerHints(caller="ada-1")))
            assert named is not None
            assert named.own

    @pytest.mark.parametrize(
        "phone",
        [
            "+1 202 555 0100",
            "+1 (202) 555-0100",
            "sip:+12025550100@carrier.example",
            "tel:+12025550100",
            "2025550100",
            "(202) 555-0100",
            "0012025550100",
            "12025550100",
        ],
    )
    async def test_a_number_spelled_differently_is_the_same_caller(self, phone: str) -> None:
        """Another spelling of the call's number is the same caller, with the call's memory."""
        async with opened() as bench:
            call = await bench.call()
            found = await bench.vapi.of("acme", said(CallerHints(phone=phone)))
            assert found is not None
            assert (found.call, found.own) == (call, True)
            assert (await bench.vapi.of("acme", said())) == found

    @pytest.mark.parametrize(
        ("region", "first", "other"),
        [
            ("IN", "+14155550123", "914155550123"),
            ("US", "4155550123", "+914155550123"),
            ("US", "+914155550123", "4155550123"),
        ],
    )
    async def test_a_valid_number_that_ends_like_the_callers(
        self, region: str, first: str, other: str
    ) -> None:
        """Another valid number ends the call, even if one number is the end of the other."""
        async with opened() as bench:
            bench.calls._rules = IdentityRules(default_region=region)
            await bench.call(said(CallerHints(phone=first)))
            assert await bench.vapi.of("acme", said(CallerHints(phone=other))) is None
            assert bench.telemetry.counts["vapi_caller_changed"] == 1

    @pytest.mark.parametrize(
        ("first", "less", "other"),
        [
            (ADA, CallerHints(phone="5550100"), CallerHints(phone="+16505550100")),
            (CallerHints(phone="+12025550100", caller="ada"), ADA, replace(ADA, caller="bob")),
        ],
    )
    async def test_a_name_that_fits_two_callers(
        self, first: CallerHints, less: CallerHints, other: CallerHints
    ) -> None:
        """A body that names less of its caller does not let another caller into the call."""
        async with opened() as bench:
            await bench.call(said(first))
            found = await bench.vapi.of("acme", said(less))
            assert found is not None
            assert found.own
            assert await bench.vapi.of("acme", said(other)) is None

    @pytest.mark.parametrize("hints", [CallerHints(), CallerHints(phone="anonymous")])
    @pytest.mark.parametrize("restarted", [False, True])
    async def test_a_body_that_names_nobody(self, hints: CallerHints, restarted: bool) -> None:
        """A body that names nobody gets no memory, and its words count only as a continuation."""
        other = stretches_of([{"role": "user", "content": "I am somebody else."}])
        async with opened() as bench:
            await (await bench.call()).take(HISTORY, stamp_ms=1.0)
            found = await bench.vapi.of("acme", said(hints))
            assert found is not None
            assert not found.own
            journal = bench.journal
            bench.calls.orphan("vapi")
        async with opened(journal if restarted else None) as bench:
            if not restarted:
                await (await bench.call()).take(HISTORY, stamp_ms=1.0)
            found = await bench.vapi.of("acme", said(hints))
            assert found is not None
            assert not found.own
            assert found.call.live.call.caller_key
            assert await bench.vapi.of_history(found, HISTORY) is found.call
            assert await bench.vapi.of_history(found, other) is None

    async def test_a_journal_that_fails_makes_no_reported_call_less_final(self) -> None:
        """A late history changes no reported call, even while the journal fails."""
        async with opened() as bench:
            call = await bench.call()
            await call.report(HISTORY)
            await bench.vapi.end(call, "over", final=True)
            journal, before = bench.journal, await bench.texts()
        failing = Failing(journal)
        async with opened(failing) as bench:
            failing.fails = True
            late = await bench.call()
            failing.fails = False
            await late.take(
                stretches_of([USER_1, {**REPLY_1, "content": "no"}, USER_2]), stamp_ms=1.0
            )
            assert await bench.texts() == before

    async def test_a_caller_who_could_not_be_stored_is_tried_again(self) -> None:
        """If the journal fails when a caller is named, the next body that names it tries again."""
        async with opened() as bench:
            call = await bench.call(said(CallerHints()))
            failing = bench.vapi._calls._journal = Failing(bench.journal)
            failing.fails = True
            found = await bench.vapi.of("acme", said())
            assert found is not None
            assert not found.own
            assert not call.live.call.caller_key
            failing.fails = False
            found = await bench.vapi.of("acme", said())
            assert found is not None
            assert found.own
            assert call.live.call.caller_key

    async def test_the_caller_is_named_later(self) -> None:
        """A caller who is named late in the call gets its memory and all of its words."""
        async with opened() as bench:
            earlier = await bench.call()
            await earlier.take(HISTORY, stamp_ms=1.0)
            await bench.vapi.end(earlier, "over", final=True)
            for hints in (CallerHints(), CallerHints(phone="anonymous")):
                call = await bench.call(said(hints, "2"))
                await call.take(HISTORY, stamp_ms=1.0)
                assert (await call.memory()).text == ""
            assert (await bench.journal.backlog()).undelivered == 2
            assert await bench.call(said(call_id="2")) is call
            assert "My name is Ada." in (await call.memory()).text
            known = await bench.journal.call("acme/2")
            assert known is not None
            assert known.caller_key == earlier.live.call.caller_key
            assert (await bench.journal.backlog()).undelivered == 4
            found = await bench.vapi.of("acme", said(CallerHints(phone="anonymous"), "2"))
            assert found is not None
            assert not found.own

    async def test_commands_go_to_the_calls_own_control_url(self) -> None:
        """Guidance, a say and a hang-up are sent to the call's own control URL."""
        sent: list[tuple[str, str]] = []

        async def post(url: str, command: Mapping[str, Any]) -> int:
            sent.append((url, command["type"]))
            return 200

        async with opened() as bench:
            bench.vapi.control = Control(emit=bench.telemetry.emit, post=post)
            live = (await bench.call()).live
            live.guide("Ask for the date.")
            live.say("One moment.")
            live.hang_up()
            await trio.sleep(1)
        url = "https://phone.vapi.ai/1/control"
        assert sorted(sent) == [(url, "add-message"), (url, "end-call"), (url, "say")]

    async def test_who_does_not_agree_is_not_kept(self) -> None:
        """Once consent is refused, nothing more of the call is stored."""
        async with opened() as bench:
            call = await bench.call()
            refused = CallerHints(phone=ADA.phone, consent="no")
            assert await bench.call(said(refused)) is call
            await call.take(HISTORY, stamp_ms=1.0)
            assert await bench.texts() == []

    async def test_longer_words_supersede_and_a_repeat_does_not(self) -> None:
        """More of the caller's words cancel the older reply, and the same words do not."""
        async with opened() as bench:
            call = await bench.call()
            scopes = [trio.CancelScope() for _ in range(3)]
            call.written.begin(1, "My name", scopes[0])  # type: ignore[arg-type]
            call.written.begin(1, "My name", scopes[1])  # type: ignore[arg-type]
            assert not scopes[0].cancel_called
            call.written.begin(1, "My name is Ada.", scopes[2])  # type: ignore[arg-type]
            assert [scope.cancel_called for scope in scopes] == [True, True, False]
