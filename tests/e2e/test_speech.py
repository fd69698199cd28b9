"""A whole call with real speech: a voice, a recogniser, a model, a voice, all on this machine.

Nothing is scripted. Piper speaks for the caller, Silero and Whisper listen, the demo model answers
from the embedded Letta's memory, Piper speaks for the agent, and what the caller hears is
recognised again.
"""

from pathlib import Path

import anyio
import pytest
from livekit import rtc

from sidecar.livekit import PiperTts, WhisperStt
from tests.livekit_room.caller import RATE_HZ, Caller, calling
from tests.livekit_room.server import LiveKitServer
from tests.livekit_room.worker import voice_worker
from tests.sidecar_process import SidecarProcess, eventually

for part in ("faster_whisper", "piper"):
    pytest.importorskip(part, reason="offline speech is not installed: run `make setup-dev`")

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

PHONE = "+12025550120"
ASKED_AT_MOST = 3
"""A small recogniser mishears one word in some hundred; who did not understand asks again."""


def piper(text: str) -> bytes:
    """Return a sentence as Piper says it: 16-bit mono samples at `RATE_HZ`."""
    voice = PiperTts()
    raw = b"".join(audio.audio_int16_bytes for audio in voice._piper.synthesize(text))
    resampler = rtc.AudioResampler(voice.sample_rate, RATE_HZ)
    frame = rtc.AudioFrame(raw, voice.sample_rate, 1, len(raw) // 2)
    return b"".join(bytes(f.data) for f in (*resampler.push(frame), *resampler.flush()))


async def exchange(caller: Caller, samples: bytes) -> str:
    """Say something, and return what a recogniser hears of the answer."""
    caller.audio.clear()
    said = len(caller.heard)
    await caller.speak(samples)
    await caller.until(lambda: len(caller.heard) > said, 90)
    await caller.until_agent_is_silent(for_s=1.5)
    heard = bytes(caller.audio)
    frame = rtc.AudioFrame(heard, RATE_HZ, 1, len(heard) // 2)
    return await anyio.to_thread.run_sync(WhisperStt()._transcribe, frame)


@pytest.mark.slow
async def test_a_voice_is_understood_remembered_and_answered(tmp_path: Path) -> None:
    """A spoken fact is recognised, remembered and spoken aloud in the next call."""
    telling = await anyio.to_thread.run_sync(piper, "My favorite color is purple.")
    asked = await anyio.to_thread.run_sync(piper, "What is my favorite color?")
    env = {"SIDECAR_SPOOL_DIR": str(tmp_path / "spool")}
    sidecar = SidecarProcess(tmp_path / "data", env)
    heard = ""
    await anyio.to_thread.run_sync(sidecar.start)
    try:
        async with (
            LiveKitServer().serving() as server,
            voice_worker(
                server,
                sidecar.link_url,
                tmp_path,
                parts="spoken",
                env={"VOICE_DISCLOSURE": "Hello."},
            ) as worker,
        ):
            for room, samples, told in (("tell", telling, ""), ("ask", asked, "purple")):
                async with calling(server.url, room, room, phone=PHONE) as caller:
                    await server.call_agent(room)
                    # The disclosure, and then the greeting, however long it takes to begin.
                    await caller.until(lambda caller=caller: len(caller.heard) >= 2, 120)
                    await caller.until_agent_is_silent(60, for_s=2.0)
                    for _ in range(ASKED_AT_MOST):
                        heard = (await exchange(caller, samples)).lower()
                        if told in heard:
                            break
                await anyio.to_thread.run_sync(eventually, lambda: not sidecar.live_calls())
            prompt = str(worker.prompts("ask")[-1])
    finally:
        await anyio.to_thread.run_sync(sidecar.stop)

    assert "purple" in prompt
    assert "purple" in heard
