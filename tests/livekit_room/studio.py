"""A studio for one `AgentSession`, with the test's own ears, mouth and model.

There is no room and no audio: a test calls `Ear` for what the caller does, and the agent's speech
lasts as long as its words would. The session is LiveKit's own, with all its turn handling.
"""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import anyio
from livekit import rtc
from livekit.agents import (
    DEFAULT_API_CONNECT_OPTIONS,
    Agent,
    AgentSession,
    APIConnectOptions,
    LanguageCode,
    TurnHandlingOptions,
    llm,
    stt,
    utils,
    vad,
)
from livekit.agents.types import NOT_GIVEN, NotGivenOr
from livekit.agents.voice.io import (
    AudioInput,
    AudioOutput,
    AudioOutputCapabilities,
    TextOutput,
)
from livekit.agents.voice.transcription import TranscriptSynchronizer
from typing_extensions import override

from tests.livekit_room.parts import HummingTts

_RATE_HZ = 16_000


class Ear:
    """What the session hears, controlled by the test."""

    def __init__(self) -> None:
        self.stt = _Stt()
        self.vad = _Vad()
        self._since_s = 0.0

    def starts(self) -> None:
        """The caller starts to speak."""
        self._since_s = time.time()
        self._vad(vad.VADEventType.START_OF_SPEECH)
        self._vad(vad.VADEventType.INFERENCE_DONE)

    async def goes_on(self, for_s: float) -> None:
        """The caller keeps speaking."""
        until_s = anyio.current_time() + for_s
        while anyio.current_time() < until_s:
            self._vad(vad.VADEventType.INFERENCE_DONE)
            await anyio.sleep(0.05)

    def interim(self, text: str) -> None:
        self._stt(stt.SpeechEventType.INTERIM_TRANSCRIPT, text)

    def final(self, text: str) -> None:
        self._stt(stt.SpeechEventType.FINAL_TRANSCRIPT, text)

    def stops(self) -> None:
        """The caller falls silent."""
        self._vad(vad.VADEventType.END_OF_SPEECH)

    def says(self, text: str) -> None:
        """A whole utterance, recognised when it ends."""
        self.starts()
        self.stops()
        self.final(text)

    def _vad(self, kind: vad.VADEventType) -> None:
        spoken_s = time.time() - self._since_s
        speaking = kind != vad.VADEventType.END_OF_SPEECH
        event = vad.VADEvent(
            type=kind,
            samples_index=0,
            timestamp=time.time(),
            speech_duration=spoken_s,
            silence_duration=0.0 if speaking else 0.3,
            speaking=speaking,
            probability=1.0 if speaking else 0.0,
            raw_accumulated_speech=spoken_s if speaking else 0.0,
        )
        for stream in self.vad.streams:
            stream.tell(event)

    def _stt(self, kind: stt.SpeechEventType, text: str) -> None:
        data = stt.SpeechData(text=text, language=LanguageCode("en"), confidence=1.0)
        for stream in self.stt.streams:
            stream.tell(stt.SpeechEvent(type=kind, alternatives=[data]))


class _Stt(stt.STT[Any]):
    def __init__(self) -> None:
        super().__init__(capabilities=stt.STTCapabilities(streaming=True, interim_results=True))
        self.streams: list[_SttStream] = []

    @override
    async def _recognize_impl(self, *_: object, **__: object) -> stt.SpeechEvent:
        raise NotImplementedError

    @override
    def stream(
        self,
        *,
        language: NotGivenOr[str] = NOT_GIVEN,
        conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS,
    ) -> "_SttStream":
        self.streams.append(_SttStream(stt=self, conn_options=conn_options))
        return self.streams[-1]


class _SttStream(stt.RecognizeStream):
    def tell(self, event: stt.SpeechEvent) -> None:
        if not self._event_ch.closed:
            self._event_ch.send_nowait(event)

    @override
    async def _run(self) -> None:
        async for _ in self._input_ch:
            pass


class _Vad(vad.VAD):
    def __init__(self) -> None:
        super().__init__(capabilities=vad.VADCapabilities(update_interval=0.1))
        self.streams: list[_VadStream] = []

    @override
    def stream(self) -> "_VadStream":
        self.streams.append(_VadStream(self))
        return self.streams[-1]


class _VadStream(vad.VADStream):
    def tell(self, event: vad.VADEvent) -> None:
        if not self._event_ch.closed:
            self._event_ch.send_nowait(event)

    @override
    async def _main_task(self) -> None:
        async for _ in self._input_ch:
            pass


class ScriptedLlm(llm.LLM[Any]):
    """Replies as the test says, and keeps every prompt.

    Args:
        reply: The answer to the last user message.
        ttft_s: How long it takes to begin.
    """

    def __init__(self, reply: Callable[[str], str], *, ttft_s: float = 0.01) -> None:
        super().__init__()
        self.reply = reply
        self.ttft_s = ttft_s
        self.prompts: list[list[dict[str, Any]]] = []
        self.contexts: list[llm.ChatContext] = []

    @override
    def chat(
        self,
        *,
        chat_ctx: llm.ChatContext,
        tools: list[llm.Tool] | None = None,
        conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS,
        **_: Any,
    ) -> "_LlmStream":
        self.contexts.append(chat_ctx)
        written: Any = cast("Any", chat_ctx).to_provider_format("openai")  # untyped in LiveKit
        self.prompts.append(written[0])
        return _LlmStream(self, chat_ctx=chat_ctx, tools=tools or [], conn_options=conn_options)


class _LlmStream(llm.LLMStream):
    @override
    async def _run(self) -> None:
        model = cast("Any", self)._llm  # LiveKit leaves its event type open
        assert isinstance(model, ScriptedLlm)
        await asyncio.sleep(model.ttft_s)
        said = [m.text_content or "" for m in self._chat_ctx.messages() if m.role == "user"]
        for piece in re.findall(r"\S+\s*", model.reply(said[-1] if said else "")):
            delta = llm.ChoiceDelta(role="assistant", content=piece)
            self._event_ch.send_nowait(llm.ChatChunk(id=utils.shortuuid("chunk_"), delta=delta))


class _Silence(AudioInput):
    """A microphone that sends a frame of silence every 50 ms."""

    def __init__(self) -> None:
        super().__init__(label="studio")

    @override
    async def __anext__(self) -> rtc.AudioFrame:
        await asyncio.sleep(0.05)
        count = _RATE_HZ // 20
        return rtc.AudioFrame(bytes(2 * count), _RATE_HZ, 1, count)


class _Mouth(AudioOutput):
    """A loudspeaker that plays audio in real time and can be cut off."""

    def __init__(self) -> None:
        super().__init__(label="studio", capabilities=AudioOutputCapabilities(pause=False))
        self._began_s = 0.0
        self._pushed_s = 0.0
        self._ends: asyncio.TimerHandle | None = None

    @property
    def playing(self) -> bool:
        return self._pushed_s > 0

    @override
    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        await super().capture_frame(frame)
        if not self._pushed_s:
            self._began_s = time.time()
            self.on_playback_started(created_at=self._began_s)
        self._pushed_s += frame.duration

    @override
    def flush(self) -> None:
        super().flush()
        if self._pushed_s:
            left_s = self._began_s + self._pushed_s - time.time()
            self._ends = asyncio.get_running_loop().call_later(left_s, self._over, False)

    @override
    def clear_buffer(self) -> None:
        if self._pushed_s:
            self._over(True)

    def _over(self, interrupted: bool) -> None:
        if self._ends:
            self._ends.cancel()
            self._ends = None
        played_s = min(self._pushed_s, time.time() - self._began_s)
        self._pushed_s = 0.0
        self.on_playback_finished(playback_position=played_s, interrupted=interrupted)


class _Subtitles(TextOutput):
    def __init__(self) -> None:
        super().__init__(label="studio", next_in_chain=None)

    @override
    async def capture_text(self, text: str) -> None:
        pass

    @override
    def flush(self) -> None:
        pass


@dataclass
class Studio:
    """One session with everything around it.

    Attributes:
        session: LiveKit's session.
        ear: What the session hears.
        model: The agent's language model.
        mouth: The agent's loudspeaker.
        items: Conversation items as the session committed them.
    """

    session: AgentSession[Any]
    ear: Ear
    model: ScriptedLlm
    mouth: _Mouth
    items: list[llm.ChatMessage] = field(default_factory=list[llm.ChatMessage])

    async def until(self, condition: Callable[[], bool], budget_s: float = 60.0) -> None:
        """Wait until a condition on the session holds."""
        with anyio.fail_after(budget_s):
            while not condition():  # noqa: ASYNC110 - the session has few events
                await anyio.sleep(0.01)

    async def until_committed(self, count: int) -> None:
        """Wait until the conversation has this many messages."""
        await self.until(lambda: len(self.items) >= count)


def studio(reply: Callable[[str], str], *, ttft_s: float = 0.01, **options: Any) -> Studio:
    """Make a session in a studio, without starting it."""
    ear, model, mouth = Ear(), ScriptedLlm(reply, ttft_s=ttft_s), _Mouth()
    session = AgentSession[Any](
        stt=ear.stt,
        vad=ear.vad,
        llm=model,
        tts=HummingTts(),
        turn_handling=TurnHandlingOptions(
            turn_detection="vad",
            endpointing={"min_delay": 0.3, "max_delay": 1.0},
            interruption={"min_duration": 0.1},
        ),
        aec_warmup_duration=None,
        session_close_transcript_timeout=0.3,
        **options,
    )
    made = Studio(session, ear, model, mouth)
    events: Any = session  # LiveKit leaves the handlers of its events untyped

    @events.on("conversation_item_added")
    def added(event: Any) -> None:
        if event.item.type == "message":
            made.items.append(event.item)

    return made


@asynccontextmanager
async def on_air(made: Studio, agent: Agent) -> AsyncGenerator[Studio]:
    """Start the session, and close it at the end as a job does."""
    sync = TranscriptSynchronizer(next_in_chain_audio=made.mouth, next_in_chain_text=_Subtitles())
    made.session.input.audio = _Silence()
    made.session.output.audio = sync.audio_output
    made.session.output.transcription = sync.text_output
    session: Any = made.session  # LiveKit leaves the result of `start` open
    await session.start(agent)
    try:
        await made.until(lambda: bool(made.ear.stt.streams and made.ear.vad.streams))
        yield made
    finally:
        with anyio.CancelScope(shield=True):
            await made.session.aclose()
            await sync.aclose()
