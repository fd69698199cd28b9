"""Before the prompt: the memory goes into each prompt of a LiveKit agent."""

import inspect
from collections.abc import AsyncGenerator, AsyncIterable
from typing import Any, Protocol, TypeAlias, cast

from livekit.agents import Agent, AgentSession, FlushSentinel, ModelSettings, llm
from typing_extensions import override

from sidecar.channels.livekit.recorder import recorder_of

_Chunk: TypeAlias = llm.ChatChunk | str | FlushSentinel


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
    the next prompt on until the call ends. With neither at hand the prompt is passed on untouched. May run several times for one turn (speculation): it changes
    nothing but its copy.
    """

    @override
    async def llm_node(
        self, chat_ctx: llm.ChatContext, tools: list[llm.Tool], model_settings: ModelSettings
    ) -> AsyncGenerator[_Chunk, None]:
        """Run the agent's own `llm_node` on a prompt with memory in it."""
        prompt = await self._prompt(chat_ctx)
        answer = super().llm_node(prompt, tools, model_settings)
        if inspect.isawaitable(answer):
            answer = await answer
        if isinstance(answer, AsyncIterable):
            try:
                async for piece in answer:
                    yield piece
            finally:
                if isinstance(answer, AsyncGenerator):
                    await answer.aclose()
        elif answer is not None:
            yield answer

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

    async def _prompt(self, chat_ctx: llm.ChatContext) -> llm.ChatContext:
        recorder = recorder_of(cast("_InSession", self).session)
        if recorder is None:
            return chat_ctx
        try:
            memory = await recorder.memory()
            text = memory.text if memory else ""
            guidance = recorder.guidance
            return with_memory(chat_ctx, text, guidance) if text or guidance else chat_ctx
        except Exception as error:  # noqa: BLE001 - a prompt without memory beats no prompt
            recorder.failed("prompt", error)
            return chat_ctx


def with_memory(chat_ctx: llm.ChatContext, text: str, guidance: str = "") -> llm.ChatContext:
    """Return a copy of a prompt with `text` in one message just before the last user message.

    Guidance stands in another before it. Where no user has spoken (a greeting), they stand behind
    the agent's instructions. What is empty is left out.
    """
    prompt = chat_ctx.copy()
    items = prompt.items
    place = next((n for n in range(len(items) - 1, -1, -1) if _role(items[n]) == "user"), None)
    if place is None:
        place = 1 if items and _role(items[0]) in {"system", "developer"} else 0
    at_s = items[min(place, len(items) - 1)].created_at if items else 0.0
    if text:
        items.insert(place, llm.ChatMessage(role="user", content=[text], created_at=at_s))
    if guidance:
        items.insert(place, llm.ChatMessage(role="system", content=[guidance], created_at=at_s))
    return prompt


def _role(item: llm.ChatItem) -> str:
    return item.role if item.type == "message" else ""
