"""A run of the stand-in Letta server, from its start to the end of its stream."""

from collections.abc import AsyncGenerator, Mapping

import anyio

from sidecar.errors import LlmError
from sidecar.model import Block
from sidecar.testing.letta_state import Digest, LettaState, Run, iso
from sidecar.testing.letta_wire import DONE, frame


async def work(state: LettaState, run: Run, text: str, digest: Digest, *, wait_s: float) -> None:
    """Carry a run out and write its stream, as letta 0.16.8 does.

    It ends the stream after it has stored the message, so a client that sees the end finds it.
    """
    started = iso(run.created_at_s)
    run.tell(frame(message_type="ping", id=f"ping-{run.run_id}", date=started, run_id=run.run_id))
    await anyio.sleep(wait_s)
    try:
        await state.carry_out(run, text, digest)
    except (LlmError, KeyError) as failure:
        state.end_run(run, "failed")
        error = frame(
            message_type="error_message",
            run_id=run.run_id,
            error_type="llm_error",
            message="An error occurred with the LLM request.",
            detail=failure.message if isinstance(failure, LlmError) else None,
        )
        run.tell(frame(message_type="stop_reason", stop_reason="llm_api_error"))
        run.tell(b"event: error\n" + error)
    else:
        state.end_run(run, "completed")
        said = {"id": f"{run.run_id}-1", "date": iso(state.clock()), "content": "done"}
        run.tell(frame(message_type="assistant_message", run_id=run.run_id, **said))
        run.tell(frame(message_type="stop_reason", stop_reason="end_turn"))
        run.tell(frame(message_type="usage_statistics", step_count=1, total_tokens=0))
    run.tell(DONE)


async def frames_of(run: Run) -> AsyncGenerator[bytes]:
    """Yield a run's frames from the first, waiting for those to come."""
    sent = 0
    while True:
        news = run.news
        while sent < len(run.frames):
            next_frame = run.frames[sent]
            sent += 1
            yield next_frame
            if next_frame is DONE:
                return
        await news.wait()


async def unchanged(_: str, blocks: Mapping[str, Block], __: str) -> Mapping[str, Block]:
    """Digest by leaving every block as it is."""
    return blocks


async def failing(_: str, __: Mapping[str, Block], ___: str) -> Mapping[str, Block]:
    """Fail as a model that cannot be reached does."""
    raise LlmError("a fault was asked for")


async def overflowing(_: str, __: Mapping[str, Block], ___: str) -> Mapping[str, Block]:
    """Fail as a model whose context is too small does."""
    raise LlmError("context_window_exceeded")


FAILING: dict[str | None, Digest] = {"stream_error": failing, "overflow": overflowing}
"""How runs fail, by the fault that asks for it."""
