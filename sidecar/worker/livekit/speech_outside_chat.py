"""What an agent says outside the chat: `say(add_to_chat_ctx=False)` adds no item to it."""

from collections.abc import Callable
from typing import Any, Protocol, cast

from livekit.agents import AgentSession, SpeechCreatedEvent
from livekit.agents.voice import SpeechHandle
from livekit.agents.voice.io import PlaybackFinishedEvent


class _Audio(Protocol):
    """An `AudioOutput` as a source of events; its own types say less."""

    def on(self, event: str, callback: Callable[[Any], None]) -> object: ...

    def off(self, event: str, callback: Callable[[Any], None]) -> None: ...


class _Said:
    """What one `say` has spoken so far, in case it leaves no item in the conversation."""

    def __init__(self, handle: SpeechHandle, at_s: float) -> None:
        self.handle = handle
        self.at_s = at_s
        self.text = ""
        self.heard: str | None = None
        """The words of it that were played; None if no transcript is synchronized to the audio."""
        self.played = False


class SpeechOutsideChat:
    """Follows each `say` of a session, and reports what was heard of those that leave no item.

    Args:
        session: The session.
        clock: Unix time.
        on_said: Called for each of these with its handle, the words heard, and when it began.
        guarded: Wraps a callback, so that its errors do not reach the session.
    """

    def __init__(
        self,
        session: AgentSession[Any],
        *,
        clock: Callable[[], float],
        on_said: Callable[[SpeechHandle, str, float], None],
        guarded: Callable[[Callable[[SpeechHandle], None]], Callable[[SpeechHandle], None]],
    ) -> None:
        self._session = session
        self._clock = clock
        self._on_said = on_said
        self._guarded = guarded
        self._says: dict[str, _Said] = {}

    def speech_created(self, event: SpeechCreatedEvent) -> None:
        """The session begins to say something."""
        if event.source != "say":
            return
        said = _Said(event.speech_handle, event.created_at)
        self._says[said.handle.id] = said

        def finished(played: PlaybackFinishedEvent) -> None:
            if self._speaks(said):
                said.played = said.played or played.playback_position > 0
                said.heard = played.synchronized_transcript

        def done(handle: SpeechHandle) -> None:
            if audio is not None:
                audio.off("playback_finished", finished)
            self._says.pop(handle.id, None)
            if not handle.chat_items:  # otherwise it is a turn already
                self._on_said(handle, self._heard_of(said), said.at_s)

        audio = cast("_Audio | None", self._session.output.audio)
        if audio is not None:
            audio.on("playback_finished", finished)
        said.handle.add_done_callback(self._guarded(done))

    def _speaks(self, said: _Said) -> bool:
        return self._session.current_speech is said.handle

    def speaks(self, text: str) -> None:
        """Note words that the agent's voice is given, as part of what is being said now."""
        speech = self._session.current_speech
        said = self._says.get(speech.id) if speech is not None else None
        if said is not None:
            said.at_s = said.at_s if said.text else self._clock()
            said.text += text

    def _heard_of(self, said: _Said) -> str:
        if not said.handle.interrupted or self._session.output.audio is None:
            return said.text
        if not said.played:
            return ""
        return said.text if said.heard is None else said.heard
