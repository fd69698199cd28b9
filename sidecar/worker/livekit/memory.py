"""Before the prompt: the memory goes into each prompt of a LiveKit agent."""

import inspect
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import aclosing
from typing import Any, Protocol, TypeAlias, cast

from livekit.agents import (
    Agent,
    AgentSession,
    APIError,
    APIStatusError,
    FlushSentinel,
    ModelSettings,
    llm,
)
from typing_extensions import override

from sidecar.llm.placement import merged, place_of, placed
from sidecar.llm.refusals import REFUSAL_BYTES, Roles, demanded
from sidecar.worker.livekit.recorder import recorder_of

__all__ = ["CallerMemory"]

_Chunk: TypeAlias = llm.ChatChunk | str | FlushSentinel
_MODELS_LIMIT = 256
_in_turns: set[str] = set()
"""Models of this process whose servers were seen to refuse roles that do not alternate."""


class _InSession(Protocol):
    """An agent at work; its own type leaves the session's user data open."""

    @property
    def session(self) -> AgentSession[Any]: ...


class CallerMemory(Agent):
    """Puts what is remembered of the caller into each prompt of an agent.

    Mix it in before `Agent`. Guidance and memory go where `sidecar.llm.placement` says: just
    before the caller's last message. With neither, the prompt is passed on unchanged.
    If a model's server refuses a prompt because of its roles, guidance and memory are joined to
    messages of their roles, in that prompt and in all later ones of this model. May run several
    times for one turn (speculation): it changes only its own copy of the prompt.
    """

    @override
    async def llm_node(
        self, chat_ctx: llm.ChatContext, tools: list[llm.Tool], model_settings: ModelSettings
    ) -> AsyncGenerator[_Chunk, None]:
        """Run the agent's own `llm_node` on a prompt with memory in it."""
        brought = await self._brought()
        model = _name_of(self)
        joined = model in _in_turns
        prompt = self._prompt(chat_ctx, brought, joined=joined)
        begun = False
        try:
            async with aclosing(_pieces(super().llm_node(prompt, tools, model_settings))) as answer:
                async for piece in answer:
                    begun = True
                    yield piece  # noqa: ASYNC119 - who asks closes it
        except APIError as error:
            if begun or joined or prompt is chat_ctx or not _wants_turns(error):
                raise
            if len(_in_turns) < _MODELS_LIMIT:
                _in_turns.add(model)
        else:
            return
        prompt = self._prompt(chat_ctx, brought, joined=True)
        async with aclosing(_pieces(super().llm_node(prompt, tools, model_settings))) as answer:
            async for piece in answer:
                yield piece  # noqa: ASYNC119 - who asks closes it

    @override
    async def transcription_node(
        self, text: AsyncIterable[Any], model_settings: ModelSettings
    ) -> AsyncGenerator[Any, None]:
        """Run the agent's own `transcription_node`, and record what it gives the voice."""
        recorder = recorder_of(cast("_InSession", self).session)
        answer = super().transcription_node(text, model_settings)
        if inspect.isawaitable(answer):
            answer = await answer
        if answer is None:
            return
        async for piece in answer:
            if recorder is not None:
                recorder.speaks(str(piece))
            yield piece

    async def _brought(self) -> tuple[str, str]:
        """Return the memory and the guidance for this prompt; empty where there is none."""
        recorder = recorder_of(cast("_InSession", self).session)
        if recorder is None:
            return "", ""
        try:
            memory = await recorder.memory()
        except Exception as error:  # noqa: BLE001 - a prompt without memory beats no prompt
            recorder.failed("prompt", error)
            return "", ""
        return memory.text if memory else "", recorder.guidance

    def _prompt(
        self, chat_ctx: llm.ChatContext, brought: tuple[str, str], *, joined: bool
    ) -> llm.ChatContext:
        if not any(brought):
            return chat_ctx
        try:
            return with_memory(chat_ctx, *brought, joined=joined)
        except Exception as error:  # noqa: BLE001 - a prompt without memory beats no prompt
            if recorder := recorder_of(cast("_InSession", self).session):
                recorder.failed("prompt", error)
            return chat_ctx


async def _pieces(answer: Any) -> AsyncGenerator[_Chunk, None]:
    """Yield the pieces of whatever an `llm_node` returns."""
    if inspect.isawaitable(answer):
        answer = await answer
    if isinstance(answer, AsyncIterable):
        try:
            async for piece in cast("AsyncIterable[_Chunk]", answer):
                yield piece
        finally:
            if isinstance(answer, AsyncGenerator):
                await answer.aclose()
    elif answer is not None:
        yield answer


def _name_of(agent: Any) -> str:
    """Return the name of an agent's model: its own, or its session's."""
    model = agent.llm or agent.session.llm
    return f"{model.label} {model.model}" if model else ""


def _wants_turns(error: APIError) -> bool:
    """Whether the words of a server's error demand other roles than the prompt has."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, APIStatusError):
        cause = cause.__cause__
    if cause is None:
        return False
    said = f"{cause.message} {cause.body}".encode("utf-8", "replace")[:REFUSAL_BYTES]
    return demanded(cause.status_code, said) is not Roles.ANY


def with_memory(
    chat_ctx: llm.ChatContext, text: str, guidance: str = "", *, joined: bool = False
) -> llm.ChatContext:
    """Return a copy of a prompt with guidance and memory in it; see `sidecar.llm.placement`.

    Args:
        chat_ctx: The prompt; it is not changed.
        text: The memory, or empty.
        guidance: The guidance, or empty.
        joined: Add the text to a message of its role if there is one, for models whose template
            wants alternating roles.
    """
    prompt = chat_ctx.copy()
    items = prompt.items
    at = min(place_of([_role(item) for item in items]), len(items) - 1)
    at_s = items[at].created_at if items else 0.0

    def message(role: str, content: str) -> llm.ChatItem:
        of = "system" if role == "system" else "user"
        return llm.ChatMessage(role=of, content=[content], created_at=at_s)

    if joined:
        items[:] = merged(
            items, guidance=guidance, memory=text, role_of=_role, message=message, join=_join
        )
    else:
        items[:] = placed(items, guidance=guidance, memory=text, role_of=_role, message=message)
    return prompt


def _join(item: llm.ChatItem, text: str, *, first: bool) -> llm.ChatItem:
    """Return a copy of a message with text before or after what it holds."""
    message = cast("llm.ChatMessage", item)
    content = [text, *message.content] if first else [*message.content, text]
    return message.model_copy(update={"content": content})


def _role(item: llm.ChatItem) -> str:
    return item.role if item.type == "message" else ""
