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

from sidecar.llm.refusals import REFUSAL_BYTES, Roles, demanded
from sidecar.worker.livekit.recorder import recorder_of

__all__ = ["CallerMemory"]

_Chunk: TypeAlias = llm.ChatChunk | str | FlushSentinel
_MODELS_KEPT = 256
_in_turns: set[str] = set()
"""Models of this process whose servers were seen to refuse roles that do not alternate."""


class _InSession(Protocol):
    """An agent at work; its own type leaves the session's user data open."""

    @property
    def session(self) -> AgentSession[Any]: ...


class CallerMemory(Agent):
    """Puts what is remembered of the caller into each prompt of an agent.

    Mix it in before `Agent`. The memory stands in one message just before the caller's last one,
    so that what comes before it stays a cacheable prefix. It has the role `user`: it stems from
    callers' words, which are never given a system message's authority. Guidance for the call, which
    the sidecar's owner gives, stands before it in a message of its own, with the role `system`, from
    the next prompt on until the call ends. With neither at hand the prompt is passed on untouched.
    Where a model's server refuses a prompt for its roles, both join the message of their role, in
    that prompt and, for this model, in all that follow. May run several times for one turn
    (speculation): it changes nothing but its copy.
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
            if len(_in_turns) < _MODELS_KEPT:
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
        """Run the agent's own `transcription_node`, and tell what it gives the voice."""
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
        """Return the memory and the guidance at hand."""
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
    """Whether a model's server demands other roles than the prompt has, by its own words."""
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
    """Return a copy of a prompt with `text` in one message just before the last user message.

    Guidance stands in another before it. Where no user has spoken (a greeting), they stand behind
    the agent's instructions. What is empty is left out. `joined` adds no message where there is one
    of its role: the memory opens the last user message, the guidance ends the first of the agent's
    instructions, for models whose template wants roles by turns.
    """
    prompt = chat_ctx.copy()
    items = prompt.items
    if joined:
        guidance = guidance and _join(items, "system", guidance)
        text = text and _join(items, "user", text)
    place = next((n for n in range(len(items) - 1, -1, -1) if _role(items[n]) == "user"), None)
    if place is None:
        place = 1 if items and _role(items[0]) in {"system", "developer"} else 0
    at_s = items[min(place, len(items) - 1)].created_at if items else 0.0
    if text:
        items.insert(place, llm.ChatMessage(role="user", content=[text], created_at=at_s))
    if guidance:
        place = 0 if joined else place
        items.insert(place, llm.ChatMessage(role="system", content=[guidance], created_at=at_s))
    return prompt


def _join(items: list[llm.ChatItem], role: str, text: str) -> str:
    """Put text into a copy of the message it belongs to; return what found none."""
    places = [n for n, item in enumerate(items) if _role(item) == role]
    if not places:
        return text
    place = places[0 if role == "system" else -1]
    message = cast("llm.ChatMessage", items[place])
    content = [*message.content, text] if role == "system" else [text, *message.content]
    items[place] = message.model_copy(update={"content": content})
    return ""


def _role(item: llm.ChatItem) -> str:
    return item.role if item.type == "message" else ""
