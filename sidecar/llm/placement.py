"""Where guidance and memory go in a prompt: one rule for every channel. Pure.

The owner's instructions and the history stay as they are, so that a provider can cache them as a
prefix. The guidance goes just before the caller's last message, with the role `system`, since the
owner gives it; then the memory, with the role `user`: it comes from callers' words, which are never
given a system message's authority. The same prompt, guidance and memory give the same messages.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

INSTRUCTIONS: Final = frozenset({"system", "developer"})
"""Roles of what the owner wrote."""


class Message(Protocol[T_co]):
    """Makes one message of a prompt."""

    def __call__(self, role: str, text: str, /) -> T_co:
        """Return a message of this role, `system` or `user`, that holds this text."""
        ...


class Join(Protocol[T]):
    """Puts text into a message."""

    def __call__(self, message: T, text: str, /, *, first: bool) -> T:
        """Return a copy of a message with `text` before its own words, or after them."""
        ...


def place_of(roles: Sequence[str]) -> int:
    """Return the index in a prompt at which guidance and memory are inserted.

    Args:
        roles: Of its messages, in order; empty for what is not a message.

    Returns:
        The index of the caller's last message. If no caller has spoken (a greeting), the index
        after the owner's instructions, which come first.
    """
    for index in range(len(roles) - 1, -1, -1):
        if roles[index] == "user":
            return index
    return 1 if roles and roles[0] in INSTRUCTIONS else 0


def placed(
    prompt: Sequence[T],
    *,
    guidance: str,
    memory: str,
    role_of: Callable[[T], str],
    message: Message[T],
) -> list[T]:
    """Return a prompt with guidance and memory in it, each in a message of its own.

    Args:
        prompt: The messages; they are not changed.
        guidance: What the owner asks of the voice agent in this call; empty adds no message.
        memory: The fenced text; empty adds no message.
        role_of: Returns the role of a message; empty for what is not a message.
        message: Makes one.
    """
    at = place_of([role_of(one) for one in prompt])
    added = [message("system", guidance)] if guidance else []
    added += [message("user", memory)] if memory else []
    return [*prompt[:at], *added, *prompt[at:]]


def merged(
    prompt: Sequence[T],
    *,
    guidance: str,
    memory: str,
    role_of: Callable[[T], str],
    message: Message[T],
    join: Join[T],
) -> list[T]:
    """As `placed`, for a template that wants one system message, the first, and alternating roles.

    The guidance is added at the end of the owner's first instructions, the memory at the beginning
    of the caller's last message. If there is no such message, each gets one of its own; that of the
    guidance is the first of all.
    """
    messages = list(prompt)
    if guidance:
        roles = [role_of(one) for one in messages]
        first = next((n for n, role in enumerate(roles) if role in INSTRUCTIONS), None)
        if first is None:
            messages.insert(0, message("system", guidance))
        else:
            messages[first] = join(messages[first], guidance, first=False)
    if memory:
        roles = [role_of(one) for one in messages]
        at = place_of(roles)
        if "user" in roles:
            messages[at] = join(messages[at], memory, first=True)
        else:
            messages.insert(at, message("user", memory))
    return messages


def placed_in_chat(
    messages: Sequence[dict[str, Any]], *, guidance: str, memory: str
) -> list[dict[str, Any]]:
    """`placed`, for messages in the shape of OpenAI's chat completions."""
    return placed(
        messages, guidance=guidance, memory=memory, role_of=_chat_role, message=_chat_message
    )


def _chat_role(message: dict[str, Any]) -> str:
    role: object = message.get("role")
    return role if isinstance(role, str) else ""


def _chat_message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": text}
