"""Guidance and memory have the same place in the prompts of every channel."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
from livekit.agents import llm

from sidecar.channels.console.call import SYSTEM, prompt_of
from sidecar.channels.vapi.passed import passed_on
from sidecar.llm.dialects import Dialect
from sidecar.llm.guidance import CallGuidance
from sidecar.llm.placement import place_of
from sidecar.llm.refusals import Roles
from sidecar.worker.livekit.memory import with_memory

pytestmark = pytest.mark.unit

OFFER = CallGuidance()
OFFER.add("Offer a call back.")
GUIDE = OFFER.text
MEMORY = "<memory-1>\nAda\n</memory-1>"
RULES = ("system", "You are Ann.")
Said = tuple[str, str]
Prompt = list[Said]


def livekit(history: Sequence[Said], guidance: str, memory: str, *, strict: bool) -> Prompt:
    """The prompt of a LiveKit agent, as its model's plugin writes it."""
    context = llm.ChatContext.empty()
    for role, text in history:
        context.add_message(role=role, content=text)  # type: ignore[arg-type]
    prompt = with_memory(context, memory, guidance, joined=strict)
    # LiveKit types the result as no more than `dict`.
    written = cast(
        "tuple[list[Any], object]",
        prompt.to_provider_format("openai"),  # pyright: ignore[reportUnknownMemberType]
    )
    return read(written[0])


def vapi(history: Sequence[Said], guidance: str, memory: str, *, strict: bool) -> Prompt:
    """The prompt that is sent on to the model behind VAPI."""
    asked = {"messages": chat(history), "stream": True}
    given = OFFER if guidance else None
    body = passed_on(asked, memory, guidance=given, model="m", max_tokens=10)
    return read(written(body["messages"], strict=strict))


def console(history: Sequence[Said], guidance: str, memory: str, *, strict: bool) -> Prompt:
    """The prompt of a call of the local page, with the page's own rules replaced by ours."""
    messages = prompt_of(chat(history[1:]), guidance=guidance, memory=memory)
    prompt = read(written(messages, strict=strict))
    return [(role, text.replace(SYSTEM, RULES[1])) for role, text in prompt]


CHANNELS = [livekit, vapi, console]


def everywhere(histories: Mapping[str, tuple[Prompt, Any]]) -> Any:
    """Each history in each channel; in the page's channel only those that begin with rules."""
    cases = [
        pytest.param(place, *case, id=f"{place.__name__}: {name}")
        for name, case in histories.items()
        for place in CHANNELS
        if place is not console or case[0][:1] == [RULES]
    ]
    return pytest.mark.parametrize(("place", "history", "expected"), cases)


def chat(history: Sequence[Said]) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in history]


def written(messages: Sequence[Mapping[str, Any]], *, strict: bool) -> Sequence[Mapping[str, Any]]:
    """The messages as a server takes them; a strict one requires alternating roles."""
    dialect = replace(Dialect(), roles=Roles.ALTERNATING if strict else Roles.ANY)
    return dialect.written({"model": "m", "messages": messages})["messages"]


def read(messages: Sequence[Mapping[str, Any]]) -> Prompt:
    """Roles and contents, with double line breaks between joined texts made single."""
    return [(m["role"], str(m["content"]).replace("\n\n", "\n")) for m in messages]


HISTORIES: dict[str, tuple[Prompt, int]] = {
    "the first words": ([RULES, ("user", "Hello.")], 1),
    "a dialogue": ([RULES, ("user", "a"), ("assistant", "b"), ("user", "c")], 3),
    "words in two messages": ([RULES, ("assistant", "b"), ("user", "c"), ("user", "d")], 3),
    "an answer that came first": ([RULES, ("user", "a"), ("assistant", "b")], 1),
    "a greeting": ([RULES], 1),
    "a greeting with an order": ([RULES, ("system", "Greet her.")], 1),
    "a developer's rules": ([("developer", "Be brief."), ("user", "a")], 1),
    "rules within": ([RULES, ("user", "a"), ("system", "Be brief."), ("assistant", "b")], 1),
    "no rules": ([("user", "a")], 0),
    "nothing but an answer": ([("assistant", "b")], 0),
}


@everywhere(HISTORIES)
def test_every_channel_places_alike(
    place: Callable[..., Prompt], history: Prompt, expected: int
) -> None:
    """Guidance and memory are placed just before the caller's last message in each channel."""
    guidance, memory = ("system", GUIDE), ("user", MEMORY)
    before, after = history[:expected], history[expected:]
    assert place(history, GUIDE, MEMORY, strict=False) == [*before, guidance, memory, *after]
    assert place(history, "", MEMORY, strict=False) == [*before, memory, *after]
    assert place(history, GUIDE, "", strict=False) == [*before, guidance, *after]
    assert place(history, "", "", strict=False) == history


STRICT: dict[str, tuple[Prompt, Prompt]] = {
    "the first words": (
        [RULES, ("user", "Hello.")],
        [("system", f"{RULES[1]}\n{GUIDE}"), ("user", f"{MEMORY}\nHello.")],
    ),
    "a dialogue": (
        [RULES, ("user", "a"), ("assistant", "b"), ("user", "c")],
        [
            ("system", f"{RULES[1]}\n{GUIDE}"),
            ("user", "a"),
            ("assistant", "b"),
            ("user", f"{MEMORY}\nc"),
        ],
    ),
    "no rules": ([("user", "a")], [("system", GUIDE), ("user", f"{MEMORY}\na")]),
    "a greeting": ([RULES], [("system", f"{RULES[1]}\n{GUIDE}"), ("user", MEMORY)]),
}


@everywhere(STRICT)
def test_for_a_strict_template_they_join_their_neighbours_alike(
    place: Callable[..., Prompt], history: Prompt, expected: Prompt
) -> None:
    """For a strict template guidance ends the instructions and memory begins the last message."""
    assert place(history, GUIDE, MEMORY, strict=True) == expected


@pytest.mark.parametrize("place", CHANNELS)
def test_a_prompt_is_the_same_bytes_and_the_last_ones_prefix(
    place: Callable[..., Prompt],
) -> None:
    """The next prompt begins with what a provider cached of the last one, up to the memory."""
    history: Prompt = [RULES, ("user", "a"), ("assistant", "b"), ("user", "c")]
    before = json.dumps(place(history, GUIDE, MEMORY, strict=False))
    assert json.dumps(place(history, GUIDE, MEMORY, strict=False)) == before
    longer = [*history, ("assistant", "d"), ("user", "e")]
    assert place(longer, GUIDE, "<memory-1>\nBob", strict=False)[:5] == longer[:5]


def test_what_is_no_message_moves_nothing() -> None:
    """A tool's call and its result stay together after the message that they answer."""
    assert place_of(["system", "user", "", ""]) == 1
    assert place_of(["system", "user", "assistant", "tool"]) == 1
    assert place_of([""]) == 0
    assert place_of([]) == 0
