"""Speech parts for a worker under test: fakes with the timing of real ones, in the job's process.

`VOICE_PARTS=tests.livekit_room.parts:scripted` puts them into the unmodified voice worker. The
recogniser does not listen to words: it only hears *that* the caller speaks, and takes the words
from the room's script, `VOICE_SCRIPTS/ROOM.json`, one line per utterance. The caller announces each
sentence by a data packet, because on a busy machine sound has gaps, and what follows a gap is not a
new sentence; and its end by another, because a gap is not its end, and may be as long as the
sentence. Every prompt is noted in `VOICE_SCRIPTS/ROOM.prompts.jsonl`.
"""

import array
import json
import math
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from livekit import rtc
from livekit.agents import (
    DEFAULT_API_CONNECT_OPTIONS,
    APIConnectOptions,
    LanguageCode,
    get_job_context,
    stt,
    tts,
    utils,
)
from livekit.agents.inference import VAD
from livekit.agents.types import NOT_GIVEN, NotGivenOr
from typing_extensions import override

from sidecar.demo.model import DemoModel
from sidecar.livekit import PiperTts, PortLlm, WhisperStt

WORD_S = 0.22  # seconds that a caller takes for a word, a little less than espeak-ng takes
FINAL_AFTER_S = 0.4  # silence after which the recogniser ends a sentence that is over
SENTENCE = "a sentence begins"  # topic of the packet that announces a sentence
SENTENCE_OVER = "a sentence is over"
LOST_AFTER_S = 1.5  # silence after the end of a sentence whose sound was lost
FORGOTTEN_AFTER_S = 2.0  # silence after which unannounced speech is discarded
LOUD = 500  # mean amplitude of 16-bit samples above which somebody speaks
CHAR_S = 0.018  # seconds that the agent takes for a character: fast, as there are many tests
RATE_HZ = 24_000

LONG_STORY = 3 * (
    "Once upon a time there was a lighthouse keeper who counted ships. Every evening he wrote "
    "the number down. One evening no ship came at all. So he rowed out to look for them himself. "
    "Behind the island he found them all at anchor, with their lamps out, listening to a whale. "
    "He put out his own lamp and listened too, and that night he wrote down a whale instead. "
)


def scripted() -> dict[str, Any]:
    """Return parts that cost no CPU: scripted recognition, the demo model, a humming voice."""
    return {
        "stt": ScriptedStt(),
        "llm": PortLlm(NotingModel()),
        "tts": HummingTts(),
        "vad": VAD(model="silero"),
    }


def spoken() -> dict[str, Any]:
    """Return the real offline parts, with the prompts noted."""
    return {
        "stt": WhisperStt(),
        "llm": PortLlm(NotingModel()),
        "tts": PiperTts(),
        "vad": VAD(model="silero"),
    }


def _room_file(suffix: str) -> Path:
    return Path(os.environ["VOICE_SCRIPTS"]) / f"{get_job_context().job.room.name}{suffix}"


class NotingModel(DemoModel):
    """The demo model, which notes each prompt, and tells a long story when asked to."""

    @override
    async def stream(self, messages: Sequence[Mapping[str, Any]]) -> AsyncIterator[str]:
        with _room_file(".prompts.jsonl").open("a") as notes:
            notes.write(json.dumps(messages) + "\n")
        if "story" in str(messages[-1].get("content")):
            for word in LONG_STORY.split():
                yield f"{word} "
            return
        async for piece in super().stream(messages):
            yield piece


class ScriptedStt(stt.STT[Any]):
    """Knows in advance what the caller of this room will say."""

    def __init__(self) -> None:
        super().__init__(capabilities=stt.STTCapabilities(streaming=True, interim_results=True))

    @override
    async def _recognize_impl(self, *_: object, **__: object) -> stt.SpeechEvent:
        raise NotImplementedError

    @override
    def stream(
        self,
        *,
        language: NotGivenOr[str] = NOT_GIVEN,
        conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS,
    ) -> "ScriptedStream":
        return ScriptedStream(stt=self, conn_options=conn_options)


class ScriptedStream(stt.RecognizeStream):
    """Turns loud and silent frames into interim and final pieces of the script."""

    @override
    async def _run(self) -> None:
        script: list[str] = json.loads(_room_file(".json").read_text())
        spoken_s = silent_s = 0.0
        shown = ended = begun = over = 0

        def announced(packet: rtc.DataPacket) -> None:
            nonlocal begun, over
            begun += packet.topic == SENTENCE
            over = begun if packet.topic == SENTENCE_OVER else over

        room: Any = get_job_context().room  # its `on` is only partly typed
        room.on("data_received", announced)
        async for frame in self._input_ch:
            if not isinstance(frame, rtc.AudioFrame):
                continue
            if _loudness(frame) > LOUD:
                spoken_s += frame.duration
                silent_s = 0.0
            else:
                silent_s += frame.duration
            lost = over > ended and silent_s >= LOST_AFTER_S
            if (spoken_s < 2 * frame.duration and not lost) or not script:
                continue
            if ended == begun:
                if silent_s >= FORGOTTEN_AFTER_S:
                    spoken_s = silent_s = 0.0
                continue
            words = script[0].split()
            known = min(int((spoken_s + silent_s) / WORD_S), len(words))
            if silent_s >= FINAL_AFTER_S and over > ended:
                script.pop(0)
                self._tell(stt.SpeechEventType.FINAL_TRANSCRIPT, " ".join(words))
                spoken_s = silent_s = 0.0
                shown = 0
                ended += 1
            elif known > shown:
                shown = known
                self._tell(stt.SpeechEventType.INTERIM_TRANSCRIPT, " ".join(words[:known]))

    def _tell(self, kind: stt.SpeechEventType, text: str) -> None:
        data = stt.SpeechData(text=text, language=LanguageCode("en"))
        self._event_ch.send_nowait(stt.SpeechEvent(type=kind, alternatives=[data]))


def _loudness(frame: rtc.AudioFrame) -> float:
    samples = array.array("h", bytes(frame.data))
    return sum(map(abs, samples[::8])) / max(1, len(samples[::8]))


class HummingTts(tts.TTS[Any]):
    """Hums for as long as speaking the words would take."""

    def __init__(self) -> None:
        super().__init__(
            capabilities=tts.TTSCapabilities(streaming=False), sample_rate=RATE_HZ, num_channels=1
        )

    @override
    def synthesize(
        self, text: str, *, conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS
    ) -> "_Hum":
        return _Hum(tts=self, input_text=text, conn_options=conn_options)


class _Hum(tts.ChunkedStream):
    @override
    async def _run(self, output_emitter: tts.AudioEmitter) -> None:
        output_emitter.initialize(
            request_id=utils.shortuuid("hum_"),
            sample_rate=RATE_HZ,
            num_channels=1,
            mime_type="audio/pcm",
        )
        count = int(len(self._input_text) * CHAR_S * RATE_HZ)
        wave = (int(6000 * math.sin(2 * math.pi * 220 * n / RATE_HZ)) for n in range(count))
        output_emitter.push(array.array("h", wave).tobytes())
        output_emitter.flush()
