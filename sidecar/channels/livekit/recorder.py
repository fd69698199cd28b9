"""After the reply: what happens in an `AgentSession` becomes turns, as heard."""

from collections.abc import Callable, Mapping
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

from sidecar import telemetry
from sidecar.channels.link.call import LinkedCall
from sidecar.channels.link.frames import Memory
from sidecar.model import TURN_SECONDS, Served, Speaker, prompt_metrics
from sidecar.telemetry import Emit
from sidecar.tracing import CONVERSATION, NO_TRACES, TEXT, Span, Tracer

GUIDANCE_CHARS: Final = 2_000  # of all guidance in a prompt; older guidance makes room for newer
_GUIDANCE_PREFACE: Final = "Guidance for this call. Heed it; do not read it out."

_Event = TypeVar("_Event")


class Heeded:
    """The guidance of a call, as it stands in each prompt: the same bytes until there is more."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self.text = ""

    def heed(self, text: str) -> int:
        """Take more guidance; returns how many characters, of old and new, no prompt will hold.

        The same words again are no news. Guidance longer than `GUIDANCE_CHARS` loses its end.
        """
        piece = text.strip()
        if not piece or piece in self._pieces:
            return 0
        cut = max(0, len(piece) - GUIDANCE_CHARS)
        self._pieces.append(piece[:GUIDANCE_CHARS])
        while sum(map(len, self._pieces)) > GUIDANCE_CHARS:
            cut += len(self._pieces.pop(0))
        self.text = "\n".join([_GUIDANCE_PREFACE, *(f"- {one}" for one in self._pieces)])
        return cut


class Unsettled:
    """What a caller has said that is not in a turn yet: final pieces, and the latest interim."""

    def __init__(self) -> None:
        self._finals: list[str] = []
        self._interim = ""

    def heard(self, text: str, *, final: bool) -> None:
        """Take what the recogniser reports; a final piece replaces the interim it grew from."""
        if final:
            self._finals.append(text)
        self._interim = "" if final else text

    def settled(self, text: str) -> None:
        """A turn of the caller was committed; an interim of the next one is kept."""
        self._finals.clear()
        if _bare(self._interim) in _bare(text):
            self._interim = ""

    def rest(self) -> str:
        """Return what no turn holds; empty when everything is settled."""
        return " ".join(filter(None, (part.strip() for part in (*self._finals, self._interim))))


def _bare(text: str) -> str:
    """Return a text without case and punctuation, in which recognisers change their mind."""
    return "".join(character for character in text.casefold() if character.isalnum())


class _Events(Protocol):
    """An `AgentSession` as a source of events; its own types say less."""

    def on(self, event: str, callback: Callable[[Any], None]) -> object: ...


class CallRecorder:
    """Reports what happens in an `AgentSession` to its call on the link, as heard.

    Args:
        call: The call.
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
        tracer: Tracer = NO_TRACES,
        traceparent: str = "",
    ) -> None:
        self.call = call
        self._tracer = tracer
        self._traceparent = traceparent
        self._speech: Span | None = None
        self._emit = emit
        self._clock = clock
        self._ended = ended
        self._unsettled = Unsettled()
        self._prompt: dict[str, float] = {}
        self._heeded = Heeded()
        call.guidance = self._heed

    @property
    def guidance(self) -> str:
        """What the sidecar's owner asks the agent to heed in this call; empty: nothing."""
        return self._heeded.text

    def listen(self, session: AgentSession[Any]) -> None:
        """Follow the events of a session from now on, and be found by it."""
        events = cast("_Events", session)
        events.on("user_state_changed", self._guarded(self._user_state_changed))
        events.on("user_input_transcribed", self._guarded(self._transcribed))
        events.on("conversation_item_added", self._guarded(self._item_added))
        events.on("close", self._guarded(self._closed))
        _recorders[session] = self

    async def memory(self) -> Memory | None:
        """Return the newest memory that a prompt may wait for, and say how it was had."""
        asked_s = anyio.current_time()
        with self._span("wait for memory", inside=True) as span:
            await self.call.ready()
            memory = self.call.memory
            span.set({"sidecar.memory.served": memory.served if memory else "none"})
        read_at_s = memory.read_at_s if memory else 0.0
        served: Served = memory.served if memory else "none"
        age_s = round(self._clock() - read_at_s, 3) if read_at_s else None
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

    def end(self, reason: str) -> None:
        """The call is over: what was said and never became a turn is one now."""
        if self._speech is not None:
            self._speech.end()
        if self.call.outbox.closed:
            return
        if rest := self._unsettled.rest():
            self.call.record("unsettled", "caller", rest, at_s=self._clock(), interrupted=True)
        self.call.close(reason)

    def _heed(self, text: str) -> None:
        cut_chars = self._heeded.heed(text)
        self._emit(
            telemetry.guidance_taken,
            call=self.call.call_id,
            chars=len(text),
            cut_chars=cut_chars,
        )

    def failed(self, part: str, error: Exception) -> None:
        """Count an error of ours that the voice shall not notice; its text may hold words."""
        self._emit(
            telemetry.part_failed,
            part=f"livekit.{part}",
            error=type(error).__name__,
            hint="the call goes on; please report it",
        )

    def _user_state_changed(self, event: UserStateChangedEvent) -> None:
        if event.new_state == "speaking":
            # The span of a turn begins with the first words of it, and ends when it is settled.
            if self._speech is None:
                self._speech = self._span("caller turn")
            self.call.speech_started(traceparent=self._speech.traceparent)

    def _transcribed(self, event: UserInputTranscribedEvent) -> None:
        self._unsettled.heard(event.transcript, final=event.is_final)

    def _item_added(self, event: ConversationItemAddedEvent) -> None:
        item = event.item
        # Hand-overs between agents come as items as well; they have no role.
        if item.type != "message" or item.role not in {"user", "assistant"}:
            return
        text = item.text_content
        if not text:
            return
        speaker: Speaker = "caller" if item.role == "user" else "agent"
        if speaker == "caller":
            self._unsettled.settled(text)
        metrics = _seconds(cast("Mapping[str, object]", item.metrics))
        if speaker == "agent":
            metrics |= self._prompt
            self._prompt = {}
        span = self._turn_span(speaker, item.created_at)
        self.call.record(
            item.id,
            speaker,
            text,
            at_s=item.created_at,
            interrupted=item.interrupted,
            metrics=metrics,
            traceparent=span.traceparent,
        )
        span.set({f"sidecar.turn.{name}": value for name, value in metrics.items()})
        span.set({"sidecar.turn.interrupted": item.interrupted, TEXT: text})
        span.end()

    def _turn_span(self, speaker: Speaker, began_s: float) -> Span:
        """Return the span of a turn: that of the caller's speech, or one of the agent's turn."""
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


# A session finds its recorder here, so that it needs no room in the owner's `userdata`.
_recorders: WeakKeyDictionary[AgentSession[Any], CallRecorder] = WeakKeyDictionary()


def recorder_of(session: AgentSession[Any]) -> CallRecorder | None:
    """Return what records a session, or None where nothing does."""
    return _recorders.get(session)
