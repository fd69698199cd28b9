"""A caller: joins a room with the real client SDK, speaks, listens, interrupts, hangs up."""

import array
import subprocess
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import anyio
from anyio.abc import TaskGroup
from livekit import rtc

from tests.livekit_room.parts import SENTENCE, SENTENCE_OVER
from tests.livekit_room.server import token_for

RATE_HZ = 24_000
_FRAME_S = 0.02
_FRAME_SAMPLES = int(RATE_HZ * _FRAME_S)
_SILENCE = bytes(2 * _FRAME_SAMPLES)
_LOUD = 300  # mean amplitude above which the agent is speaking


@cache
def spoken(text: str) -> bytes:
    """Return a sentence as espeak-ng says it: 16-bit mono samples at `RATE_HZ`."""
    wav = subprocess.run(
        ["espeak-ng", "-v", "en-us", "-s", "150", "--stdout", text], capture_output=True, check=True
    ).stdout
    rate_hz = int.from_bytes(wav[24:28], "little")
    samples = wav[44:]
    frame = rtc.AudioFrame(samples, rate_hz, 1, len(samples) // 2)
    resampler = rtc.AudioResampler(rate_hz, RATE_HZ)
    return b"".join(bytes(f.data) for f in (*resampler.push(frame), *resampler.flush()))


@dataclass
class Caller:
    """A caller in a room with an agent.

    Attributes:
        room: The room, as the SDK sees it.
        heard: Transcripts of what the agent said, one per utterance, each added at its end.
        understood: What the agent has understood so far of the current sentence.
        audio: What the agent said, in samples at `RATE_HZ`.
    """

    room: rtc.Room
    heard: list[str] = field(default_factory=list[str])
    understood: str = ""
    audio: bytearray = field(default_factory=bytearray)
    _to_say: bytearray = field(default_factory=bytearray)
    _speaking: bool = False
    _changed: anyio.Event = field(default_factory=anyio.Event)

    @property
    def agent_is_speaking(self) -> bool:
        """Whether the agent's last tenth of a second was not silent."""
        return self._speaking

    async def say(self, text: str) -> None:
        """Say a sentence with espeak-ng's voice, and return at its end."""
        await self._announce(SENTENCE)
        await self.speak(spoken(text))
        await self._announce(SENTENCE_OVER)

    async def speak(self, samples: bytes) -> None:
        """Say 16-bit mono samples at `RATE_HZ` and return at their end."""
        self._to_say += samples
        await self.until(lambda: not self._to_say)

    async def begin(self, text: str, *, words: int) -> None:
        """Begin a sentence, and return when its first words are understood, long before its end."""
        self.understood = ""
        await self._announce(SENTENCE)
        self._to_say += spoken(text)
        await self.until(lambda: len(self.understood.split()) >= words)

    async def _announce(self, topic: str) -> None:
        await self.room.local_participant.publish_data(b"", topic=topic)

    async def until_agent_speaks(self, budget_s: float = 60.0) -> None:
        await self.until(lambda: self._speaking, budget_s)

    async def until_agent_is_silent(self, budget_s: float = 60.0, *, for_s: float = 0.6) -> None:
        """Wait until the agent has been silent for a while."""
        with anyio.fail_after(budget_s):
            while True:
                await self.until(lambda: not self._speaking, budget_s)
                with anyio.move_on_after(for_s):
                    await self.until(lambda: self._speaking, budget_s)
                    continue
                return

    async def until(self, condition: Callable[[], bool], budget_s: float = 60.0) -> None:
        """Wait until a condition on what was said and heard holds."""
        with anyio.fail_after(budget_s):
            while not condition():
                await self._changed.wait()

    async def hang_up(self) -> None:
        await self.room.disconnect()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def _speak(self, source: rtc.AudioSource) -> None:
        """Send the pending samples in real time, and silence otherwise, as a microphone does."""
        with suppress(RuntimeError):
            while True:
                samples = bytes(self._to_say[: len(_SILENCE)])
                del self._to_say[: len(samples)]
                samples += _SILENCE[len(samples) :]
                await source.capture_frame(rtc.AudioFrame(samples, RATE_HZ, 1, _FRAME_SAMPLES))
                if not self._to_say:
                    self._notify()

    async def _listen(self, track: rtc.Track) -> None:
        stream = rtc.AudioStream(track, sample_rate=RATE_HZ, num_channels=1, frame_size_ms=100)
        async for event in stream:
            raw = bytes(event.frame.data)
            self.audio += raw
            samples = array.array("h", raw)[::8]
            speaking = sum(map(abs, samples)) / max(1, len(samples)) > _LOUD
            if speaking != self._speaking:
                self._speaking = speaking
                self._notify()

    async def _read(self, reader: rtc.TextStreamReader, *, own: bool) -> None:
        text = ""
        with suppress(rtc.StreamError):  # the agent left in the middle of it
            text = (await reader.read_all()).strip()
        if not text:
            return
        if own:
            self.understood = text
        else:
            self.heard.append(text)
        self._notify()


@asynccontextmanager
async def calling(
    url: str,
    room: str,
    identity: str,
    *,
    phone: str = "",
    attributes: dict[str, str] | None = None,
) -> AsyncGenerator[Caller]:
    """Join a room, and hang up at the end.

    Args:
        url: Of the server.
        room: Its name.
        identity: Of the participant.
        phone: A number, with which the caller comes through the SIP bridge.
        attributes: Further attributes of the participant.
    """
    attributes = {**(attributes or {}), **({"sip.phoneNumber": phone} if phone else {})}
    token = token_for(
        identity=identity, room=room, attributes=attributes, kind="sip" if phone else ""
    )
    caller = Caller(rtc.Room())
    source = rtc.AudioSource(RATE_HZ, 1, queue_size_ms=100)
    async with anyio.create_task_group() as tasks:
        _follow(caller, tasks)
        await caller.room.connect(url, token)
        track = rtc.LocalAudioTrack.create_audio_track("microphone", source)
        await caller.room.local_participant.publish_track(
            track, rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE)
        )
        tasks.start_soon(caller._speak, source)
        try:
            yield caller
        finally:
            tasks.cancel_scope.cancel()
            with anyio.move_on_after(5, shield=True):
                await caller.hang_up()
                await source.aclose()


def _follow(caller: Caller, tasks: TaskGroup) -> None:
    room: Any = caller.room  # LiveKit leaves the handlers of its events untyped

    @room.on("track_subscribed")
    def subscribed(
        track: rtc.Track, _publication: object, participant: rtc.RemoteParticipant
    ) -> None:
        if participant.kind == rtc.ParticipantKind.PARTICIPANT_KIND_AGENT:
            tasks.start_soon(caller._listen, track)

    def transcribed(reader: rtc.TextStreamReader, identity: str) -> None:
        of = (reader.info.attributes or {}).get("lk.transcribed_track_id", "")
        own = of in {p.sid for p in caller.room.local_participant.track_publications.values()}
        if own or identity in caller.room.remote_participants:
            tasks.start_soon(partial(caller._read, reader, own=own))

    caller.room.register_text_stream_handler("lk.transcription", transcribed)
