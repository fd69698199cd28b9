"""A LiveKit voice agent that remembers its callers: the file to copy.

    python voice_worker.py start        (or `dev`)

needs LIVEKIT_URL, LIVEKIT_API_KEY, LIVEKIT_API_SECRET, and a running sidecar (SIDECAR_LINK_URL,
by default the one on this machine). With the sidecar away it still answers calls; what was said
is handed over when it is back. Four lines marked with `memory` are all that an agent of your own
needs; the rest is LiveKit's idiom.
"""
# pyright: reportUnknownMemberType=false

import os

from livekit.agents import (
    Agent,
    AgentServer,
    AgentSession,
    JobContext,
    JobProcess,
    TurnHandlingOptions,
    cli,
    inference,
)

from sidecar.livekit import CallerMemory, finish, remember, voice_parts  # memory

INSTRUCTIONS = (
    "You are a friendly assistant on the telephone. Answer in one or two short spoken sentences, "
    "without lists or markup. Use what is remembered about the caller where it helps."
)
GREETING = (
    "Greet the caller in one sentence, by name if it is remembered. "
    "Do not mention that you are an AI: that was just said."
)
# Spoken first: who talks to a machine must know it, and that it takes notes. `none` says nothing.
DISCLOSURE = os.environ.get("VOICE_DISCLOSURE", "").strip() or (
    "Hi, you are talking to an AI assistant that remembers your calls."
)


class Receptionist(CallerMemory, Agent):  # memory
    """Who answers the telephone."""

    def __init__(self) -> None:
        super().__init__(instructions=INSTRUCTIONS)


def prewarm(proc: JobProcess) -> None:
    """Load models before a call comes. Put your own STT, LLM and TTS here."""
    proc.userdata["parts"] = voice_parts()


server = AgentServer(setup_fnc=prewarm, initialize_process_timeout=60)  # models are loaded in it


@server.rtc_session(
    agent_name=os.environ.get("LIVEKIT_AGENT_NAME", "").strip(),
    on_session_end=finish,  # memory
)
async def answer(ctx: JobContext) -> None:
    """Answer one call."""
    session = AgentSession[None](
        **ctx.proc.userdata["parts"],
        turn_handling=TurnHandlingOptions(  # both run in this process, offline
            turn_detection=inference.TurnDetector(version="v1-mini"),
            interruption={"mode": "vad"},
        ),
    )
    await remember(ctx, session)  # memory
    await session.start(agent=Receptionist(), room=ctx.room)
    await ctx.wait_for_participant()  # nobody greets an empty room
    if DISCLOSURE != "none":
        session.say(DISCLOSURE)
    session.generate_reply(instructions=GREETING)


if __name__ == "__main__":
    cli.run_app(server)
