"""What the sidecar needs of a language model: replies as they come, and tool calls."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool the model wants called. `arguments` is a JSON object as text."""

    call_id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer: text, or tool calls, or both."""

    text: str
    tool_calls: tuple[ToolCall, ...] = ()


class Llm(Protocol):
    """A chat model. Messages and tools have the shape of OpenAI's chat completions."""

    @property
    def name(self) -> str:
        """What it is, for people: no key in it."""
        ...

    def stream(self, messages: Sequence[Mapping[str, Any]]) -> AsyncIterator[str]:
        """Yield the pieces of the reply as they come.

        Raises:
            LlmError: it refused, failed, broke off, or gave no first piece in time.
        """
        ...

    async def complete(
        self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] = ()
    ) -> Reply:
        """Return the whole reply.

        Raises:
            LlmError: it refused, failed or was too slow.
        """
        ...

    async def aclose(self) -> None:
        """Close connections. Safe to call twice."""
        ...
