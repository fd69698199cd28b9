"""LiveKit: two lines, and a voice agent remembers its callers.

::

    from sidecar.livekit import CallerMemory, finish, remember

    class Receptionist(CallerMemory, Agent): ...      # memory goes into each prompt

    await remember(ctx, session)                      # before session.start(...)

and `on_session_end=finish`, so that the last words are handed over. Everything else in the worker
stays as it was. `llm_node` puts memory into a private copy of the chat context, so that preemptive
generation still works: one LLM call a turn. Agents on a speech-to-speech model have no `llm_node`:
their turns are recorded, their prompts are not touched.

No error of ours reaches the voice: a failure here is reported as an event, and the call goes on.
"""

from sidecar.worker.call import LinkedCall
from sidecar.worker.livekit.job import LinkSettings, finish, remember
from sidecar.worker.livekit.memory import CallerMemory
from sidecar.worker.livekit.voice_parts import (
    PiperTts,
    PortLlm,
    WhisperStt,
    language_model,
    voice_parts,
)

__all__ = [
    "CallerMemory",
    "LinkSettings",
    "LinkedCall",
    "PiperTts",
    "PortLlm",
    "WhisperStt",
    "finish",
    "language_model",
    "remember",
    "voice_parts",
]
