"""After the reply: what happens in an `AgentSession` becomes turns, as heard."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar, cast
from weakref import WeakKeyDictionary

import anyio
from livekit.agents import (
    AgentSession,
    CloseEvent,
    ConversationItemAddedEvent,
    UserInputTranscribedEvent,
    UserStateChangedEvent,
)
from livekit.agents.voice import SpeechHandle

from sidecar import telemetry
from sidecar.llm.guidance import CallGuidance
from sidecar.model import TURN_SECONDS, Served, Speaker, Utterance, prompt_metrics
from sidecar.telemetry import Emit
from sidecar.tracing import CONVERSATION, NO_TRACES, TEXT, Span, Tracer
from sidecar.wire.frames import Hints, Memory
from sidecar.worker.call import LinkedCall
from sidecar.worker.livekit.speech_outside_chat import SpeechOutsideChat
from sidecar.worker.livekit.uncommitted import FinalTranscript, Uncommitted

UNCOMMITTED_S: Final = 30.0  # heard words that are in no turn by then are recorded as they are
LATE_S: Final = 5.0  # a recogniser reports words at most so long after they were said

_Event = TypeVar("_Event")


class _SessionEvents(Protocol):
    """An `AgentSession` as a source of events; its own types say less."""

    def on(self, event: str, callback: Callable[[Any], None]) -> object: ...


class Listeners(Protocol):
    """Who is on the line, checked anew each time; see `sidecar.worker.livekit.caller`."""

    def changed(self) -> Hints | None:
        """Return the hints of who listens now, if that has changed; None otherwise."""
        ...

    def heard(self) -> None:
        """The person who listens now has said something."""
        ...

    @property
    def shared(self) -> bool:
        """Whether somebody other than the person on the line hears the agent."""
        ...


class CallRecorder:
    """Reports what happens in an `AgentSession` to its call on the link, as heard.

    When the agent starts to listen to somebody else, the call is closed and another is opened:
    words and memory belong to one person.

    Args:
        call: The call.
        listeners: Who is on the line; None: nobody but the caller ever is.
        open_next: Opens the call of the next person on the line.
        emit: Events.
        clock: Unix time.
        ended: Called once when the session has closed, with the reason.
        tracer: Makes the spans of turns and prompts.
        traceparent: The span of the call, or empty.
    """

    def __init__(
        self,
        call: LinkedCall,
        *,
        emit: Emit,
        clock: Callable[[], float],
        ended: Callable[[str], None],
        listeners: Listeners | None = None,
        open_next: Callable[[Hints], LinkedCall] | None = None,
        tracer: Tracer = NO_TRACES,
        traceparent: str = "",
    ) -> None:
        self.call = call
        self._listeners = listeners
        self._open_next = open_next
        self._before: LinkedCall | None = None
        self._split_at_s = 0.0
        self._uncommitted_count = 0
        self._began_s: float | None = None
        self._fell_silent_s: float | None = None
        self._overdue: asyncio.TimerHandle | None = None
        self._heard_by_others = False
        self._session: AgentSession[Any] | None = None
        self._outside_chat: SpeechOutsideChat | None = None
        self._tracer = tracer
        self._traceparent = traceparent
        self._speech: Span | None = None
        self._emit = emit
        self._clock = clock
        self._ended = ended
        self._uncommitted = Uncommitted()
        self._prompt: dict[str, float] = {}
        self._guidance = CallGuidance()
        call.guidance = self._take_guidance

    @property
    def guidance(self) -> str:
        """What the sidecar's owner asks the agent to follow in this call; empty: nothing."""
        return self._guidance.text

    def listen(self, session: AgentSession[Any]) -> None:
        """Follow the events of a session from now on; `recorder_of` finds this recorder by it."""
        events = cast("_SessionEvents", session)
        events.on("user_state_changed", self._guarded(self._user_state_changed))
        events.on("user_input_transcribed", self._guarded(self._transcribed))
        events.on("conversation_item_added", self._guarded(self._item_added))
        self._outside_chat = SpeechOutsideChat(
            session, clock=self._clock, on_said=self._said_outside_chat, guarded=self._guarded
        )
        events.on("speech_created", self._guarded(self._outside_chat.speech_created))
        events.on("close", self._guarded(self._closed))
        self._session = session
        _recorders[session] = self

    def follow(self) -> None:
        """Check who is on the line; if it is somebody else now, split the call here."""
        if self._listeners is None or self.call.unacked.closed:
            return
        hints = self._listeners.changed()
        if hints is None:
            return
        if not self.call.identified:
            self.call.identify(hints)
        elif self._open_next is not None:
            if self._speech is not None:
                self._speech.end()
                self._speech = None
            if rest := self._uncommitted.take():
                self._record_uncommitted(self.call, rest, at_s=self._clock(), interrupted=True)
            self.call.close("another participant")
            self._before, self._split_at_s = self.call, self._clock()
            self.call = self._open_next(hints)
            self._guidance = CallGuidance()
            self.call.guidance = self._take_guidance

    def look(self) -> None:
        """As `follow`, but an error is reported and not raised."""
        try:
            self.follow()
        except Exception as error:  # noqa: BLE001 - the room must not feel it
            self.failed("look", error)

    async def memory(self) -> Memory | None:
        """Return the newest memory that a prompt may wait for, and report how it was served.

        Returns None while others hear the agent, too: one caller's memory is for that caller alone.
        """
        asked_s = anyio.current_time()
        with self._span("wait for memory", inside=True) as span:
            self.follow()
            await self.call.ready()
            self.follow()  # others may have come meanwhile
            memory = None if self._others_hear() else self.call.memory
            span.set({"sidecar.memory.served": memory.served if memory else "none"})
        read_at_s = memory.read_at_s if memory else 0.0
        served: Served = memory.served if memory else "none"
        age_s = round(self.call.now_s - read_at_s, 3) if read_at_s else None
        wait_s = round(anyio.current_time() - asked_s, 4)
        self._prompt = prompt_metrics(served, age_s=age_s, wait_s=wait_s)
        self._emit(
            telemetry.prompt_served,
            call=self.call.call_id,
            version=memory.version if memory else "",
            age_s=age_s,
            served=served,
            wait_s=wait_s,
        )
        return memory

    def _others_hear(self) -> bool:
        shared = self._listeners is not None and self._listeners.shared
        if shared and not self._heard_by_others:
            self._emit(telemetry.memory_withheld, call=self.call.call_id, channel="livekit")
        self._heard_by_others = shared
        return shared

    def end(self, reason: str) -> None:
        """End the call; words that never became a turn become one now."""
        if self._speech is not None:
            self._speech.end()
        if self._overdue is not None:
            self._overdue.cancel()
        if self.call.unacked.closed:
            return
        if rest := self._uncommitted.rest():
            self._record_uncommitted(self.call, rest, at_s=self._clock(), interrupted=True)
        self.call.close(reason)

    def _take_guidance(self, text: str) -> None:
        cut_chars = self._guidance.add(text)
        self._emit(
            telemetry.guidance_taken,
            call=self.call.call_id,
            chars=len(text),
            cut_chars=cut_chars,
        )

    def failed(self, part: str, error: Exception) -> None:
        """Report the type of an error that must not reach the voice; its text may hold words."""
        self._emit(
            telemetry.part_failed,
            part=f"livekit.{part}",
            error=type(error).__name__,
            hint="the call goes on; please report this",
        )

    def _user_state_changed(self, event: UserStateChangedEvent) -> None:
        if event.old_state == "speaking":
            self._fell_silent_s = event.created_at
        if event.new_state == "speaking":
            self._fell_silent_s = None
            self.follow()
            self._began_s = event.created_at
            # The span of a turn begins with its first words, and ends when the turn is recorded.
            if self._speech is None:
                self._speech = self._span("caller turn")
            self.call.speech_started(traceparent=self._speech.traceparent)

    def _transcribed(self, event: UserInputTranscribedEvent) -> None:
        self.follow()
        text, at_s, before = event.transcript, event.created_at, self._said_before(event)
        if late := self._uncommitted.heard(text, final=event.is_final, at_s=at_s, of_before=before):
            self._record_uncommitted(self._before or self.call, late, at_s=at_s)
        elif self._listeners is not None and event.is_final and text.strip():
            self._listeners.heard()
        if event.is_final and self._overdue is None:
            self._look_for_overdue()

    def _said_before(self, event: UserInputTranscribedEvent) -> bool:
        """Whether words were said before the split, and recognised after it."""
        if self._before is None or self._fell_silent_s is None:
            return False
        return self._split_at_s - LATE_S < self._fell_silent_s < self._split_at_s and (
            event.created_at < self._split_at_s + LATE_S
        )

    def _look_for_overdue(self) -> None:
        """Record, after a while, what the session dropped: the next turn may come much later."""
        loop = asyncio.get_running_loop()
        self._overdue = loop.call_later(UNCOMMITTED_S, self._guarded(self._record_overdue), None)

    def _record_overdue(self, _: None) -> None:
        self._overdue = None
        if self.call.unacked.closed:
            return
        self.follow()
        speaking = self._session is not None and self._session.user_state == "speaking"
        if not speaking and (due := self._uncommitted.take_until(self._clock() - UNCOMMITTED_S)):
            self._record_finals(due)
        if self._uncommitted.rest():
            self._look_for_overdue()

    def _item_added(self, event: ConversationItemAddedEvent) -> None:
        item = event.item
        # Handovers between agents are items as well; they have no role.
        if item.type != "message" or item.role not in {"user", "assistant"}:
            return
        text = item.text_content
        if not text:
            return
        self.follow()
        speaker: Speaker = "caller" if item.role == "user" else "agent"
        measured = cast("Mapping[str, object]", item.metrics)
        if speaker == "caller":
            began_s = measured.get("started_speaking_at")
            if began_s is None and "stt_metadata" in measured:  # spoken, and too short to time
                began_s = self._began_s
            began_s = began_s if isinstance(began_s, int | float) else None
            # Typed text has no confidence.
            spoken = item.transcript_confidence is not None
            text = self._commit(text, began_s, _ended_s(measured), spoken=spoken)
            if not text:
                return
        metrics = _seconds(measured)
        if speaker == "agent":
            metrics |= self._prompt
            self._prompt = {}
        span = self._turn_span(speaker, item.created_at)
        said = Utterance(
            item.id,
            speaker,
            text,
            at_s=item.created_at,
            interrupted=item.interrupted,
            metrics=metrics,
            traceparent=span.traceparent,
        )
        self._call_at(speaker, item.created_at).record(said)
        span.set({f"sidecar.turn.{name}": value for name, value in metrics.items()})
        span.set({"sidecar.turn.interrupted": item.interrupted, TEXT: text})
        span.end()

    def _commit(
        self, text: str, began_s: float | None, ended_s: float | None, *, spoken: bool
    ) -> str:
        """Return what to record of a turn; record dropped words before it as their own turn."""
        left, text = self._uncommitted.committed(
            text, began_s=began_s, ended_s=ended_s, spoken=spoken
        )
        if left:
            self._record_finals(left)
        return text

    def _record_finals(self, finals: Sequence[FinalTranscript]) -> None:
        words = " ".join(final.unrecorded.strip() for final in finals)
        self._record_uncommitted(self.call, words, at_s=finals[0].at_s)

    def _record_uncommitted(
        self, call: LinkedCall, words: str, *, at_s: float, interrupted: bool = False
    ) -> None:
        """Record words of the caller that no turn of the session holds."""
        self._uncommitted_count += 1
        item_id = f"uncommitted.{self._uncommitted_count}"
        call.record(Utterance(item_id, "caller", words, at_s=at_s, interrupted=interrupted))

    def _call_at(self, speaker: Speaker, at_s: float) -> LinkedCall:
        """Return the call of a turn: what the agent began before a split belongs to the old one."""
        if speaker == "agent" and self._before is not None and at_s < self._split_at_s:
            return self._before
        return self.call

    def speaks(self, text: str) -> None:
        """Note words that the agent's voice is given, as part of what is being said now."""
        if self._outside_chat is not None:
            self._outside_chat.speaks(text)

    def _said_outside_chat(self, handle: SpeechHandle, text: str, at_s: float) -> None:
        said = Utterance(handle.id, "agent", text, at_s=at_s, interrupted=handle.interrupted)
        self._call_at("agent", at_s).record(said)

    def _turn_span(self, speaker: Speaker, began_s: float) -> Span:
        """Return the span of a turn: the one begun with the caller's speech, or a new one."""
        speech, self._speech = self._speech, self._speech if speaker == "agent" else None
        if speaker == "caller" and speech is not None:
            return speech
        return self._span(f"{speaker} turn", start_s=began_s)

    def _span(self, name: str, *, inside: bool = False, start_s: float | None = None) -> Span:
        return self._tracer.start(
            name,
            parent=self._traceparent,
            inside=inside,
            start_s=start_s,
            attributes={CONVERSATION: self.call.call_id},
        )

    def _closed(self, event: CloseEvent) -> None:
        self.end(event.reason.value)
        self._ended(event.reason.value)

    def _guarded(self, react: Callable[[_Event], None]) -> Callable[[_Event], None]:
        def run(event: _Event) -> None:
            try:
                react(event)
            except Exception as error:  # noqa: BLE001 - the session must not feel it
                self.failed(react.__name__.strip("_"), error)

        return run


def _seconds(metrics: Mapping[str, object]) -> dict[str, float]:
    # The other entries of `ChatMessage.metrics` are times, rates and names.
    values = {name: metrics.get(name) for name in TURN_SECONDS}
    return {name: float(v) for name, v in values.items() if isinstance(v, int | float)}


def _ended_s(metrics: Mapping[str, object]) -> float | None:
    """Return when a session considered a turn ended; None if it did not measure that."""
    stopped_s, delay_s = metrics.get("stopped_speaking_at"), metrics.get("end_of_turn_delay")
    if isinstance(stopped_s, int | float) and isinstance(delay_s, int | float):
        return stopped_s + delay_s
    return None


# A session finds its recorder here, so that it needs no room in the owner's `userdata`.
_recorders: WeakKeyDictionary[AgentSession[Any], CallRecorder] = WeakKeyDictionary()


def recorder_of(session: AgentSession[Any]) -> CallRecorder | None:
    """Return the recorder of a session, or None if it has none."""
    return _recorders.get(session)
