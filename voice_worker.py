"""A LiveKit voice agent that remembers its callers: the file to copy.

    python voice_worker.py start        (or `dev`)

needs LIVEKIT_URL, LIVEKIT_API_KEY, LIVEKIT_API_SECRET, and a running sidecar (SIDECAR_LINK_URL,
by default the one on this machine). While the sidecar is away it still answers calls, and hands
over what was said when the sidecar is back. The four lines marked with `memory` are all that an
agent of your own needs, and the one that asks whether the call goes on; the rest is ordinary
LiveKit code.
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
# In place of a greeting, where the call goes on after another worker was lost.
GO_ON = (
    "The line was interrupted for a moment. Say sorry for that in half a sentence, and go on where "
    "the call stopped. Do not greet the caller again."
)
# Spoken first: callers must know that this is a machine that remembers. `none` says nothing.
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


server = AgentServer(setup_fnc=prewarm, initialize_process_timeout=60)  # seconds to load models in


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
    call = await remember(ctx, session)  # memory
    await session.start(agent=Receptionist(), room=ctx.room)
    await ctx.wait_for_participant()  # nobody greets an empty room
    if await call.goes_on():  # at once, unless the sidecar does not answer
        session.generate_reply(instructions=GO_ON)
        return
    if DISCLOSURE != "none":
        session.say(DISCLOSURE)
    session.generate_reply(instructions=GREETING)


if __name__ == "__main__":
    cli.run_app(server)
