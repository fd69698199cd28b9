"""What a model's server says when it does not take a request. Pure.

Nobody can list the servers, but each says in words what it refuses, and their words are alike.

All calls wait while a refusal is read, and any server can write one. So in no pattern do two runs
without a limit touch that the same characters fit: it would try each way to share them out.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, cast

import msgspec

from sidecar.untrusted import MALFORMED

REFUSAL_BYTES: Final = 1 << 15
"""No more of a refusal is read."""

LIMITS: Final = ("max_tokens", "max_completion_tokens")
"""The two names of the limit of a reply."""
_NESTING = 4
_BEFORE = 40
# Left out if the server names them. Never the messages, nor the tools that a call relies on.
_OPTIONAL = (
    *LIMITS,
    "stream_options",
    "temperature",
    "top_p",
    "stop",
    "seed",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
    "presence_penalty",
    "frequency_penalty",
    "reasoning_effort",
)
_CALLED = {
    "max_tokens": "max_gen_len",
    "stop": "stop_?sequences?",
    "presence_penalty": r"(?<![_\w])penalty",
    "frequency_penalty": r"(?<![_\w])penalty",
    "response_format": "json mode|structured outputs?",
    "reasoning_effort": r"reasoning\.effort|thinking(?! mode)",
}
"""What servers call a parameter besides its name."""
_SPELLED: Final = {
    name: re.compile(
        rf"(?<![\w.])(?:toolConfig\.)?(?:{name}|{_camel}"
        + (f"|{_CALLED[name]}" if name in _CALLED else "")
        + r")(?!\w)",
        re.IGNORECASE,
    )
    for name in _OPTIONAL
    for _camel in [name.replace("_", "")]
}
_USE = re.compile(
    r"\b(?:use|try|set|replaced?\W+(?:it\W+)?(?:with|by)|switch\W+to|favou?r\W+of)\W+$",
    re.IGNORECASE,
)
TEACHING: Final = frozenset({400, 404, 422, 500})
"""Statuses whose answer may say what is not taken.

llama.cpp answers 500 when its template raises, OpenRouter 404 when no provider takes a parameter.
"""
_OF_ROLES = TEACHING - {404}
_NOT_TAKEN = re.compile(
    r"unsupported|(?:not|n't)\W+(?:be\W+)?(?:support|permit|allow|accept|recogni|enabled|available)"
    r"|unavailable|unrecogni[sz]ed|unknown|unexpected|extra[_ ]|extraneous|forbidden|no longer"
    r"|deprecated|instead|\bonly\W{1,9}\d[\d.]{0,20}\W{1,9}is\b"
    r"|no\W+endpoints\W+found\W+that\W+support",
    re.IGNORECASE,
)
_NOT_BOTH = re.compile(
    r"(?:not|n't)\W+both|both\W.{0,60}(?:not|n't)\b|mutually\W+exclusive"
    r"|(?:use|specify)\W+only\W+one|only\W+one\W+of|(?:not|n't)\W.{0,30}\btogether"
    r"|conflicts?\W+with",
    re.IGNORECASE,
)
# What a server says that it would have taken: names in it are not refused.
_WOULD_TAKE = re.compile(
    r"\b(?:(?<!not )(?<!n't )(?:allowed|supported|valid|accepted|available|permitted)\b[^:]{0,30}:"
    r"|one\W+of\b|such\W+as\b|did\W+you\W+mean\b|must\W+be\b).*",
    re.IGNORECASE,
)
_NO_TOOLS = re.compile(
    r"(?:not|n't)\W+support\W+(?:tools?|function)\b|support\W+tool\W+use|tool\W+choice\W+requires"
    r"|\btools\W+param\b|param:\W*tools\b|function\W+calling\W+is\W+not",
    re.IGNORECASE,
)
_TOOLS_HINT = "its server takes no tools: ask another model, or give the assistant none"
_CLAUSE = re.compile(r"\n|(?<=[.;!])\s+")


class Roles(IntEnum):
    """What a server's template demands of the roles; each demand includes those before it."""

    ANY = 0
    ALTERNATING = 1
    """One system message, first; then user and assistant alternate, and a user message is last."""
    NO_SYSTEM = 2
    """No system message at all."""


# What servers and templates were seen to say: vLLM, llama.cpp, mistral-common and others.
_DEMANDS: Sequence[tuple[Roles, re.Pattern[str]]] = tuple(
    (roles, re.compile(pattern, re.IGNORECASE))
    for roles, pattern in (
        (
            Roles.NO_SYSTEM,
            (
                r"(?:system|developer)\W+(?:role|messages?|prompt|instructions?)"
                r"\W+(?:(?:is|are)\W*)?not\W"
            ),
        ),
        (Roles.NO_SYSTEM, r"[\"'`](?:system|developer)[\"'`]\W+is\W+not\W+(?:one\W+of|a\W+valid)"),
        (Roles.NO_SYSTEM, r"invalid\W+(?:value|role)\W{1,4}(?:system|developer)\b"),
        (Roles.NO_SYSTEM, r"(?:not|n't)\W+support\W+(?:the\W+)?[\"'`]?(?:system|developer)\b"),
        (Roles.NO_SYSTEM, r"only\W+user\W+and\W+assistant\W+roles\W+are\W+supported(?!,? with)"),
        (Roles.NO_SYSTEM, r"unexpected\W+role\W+[\"'`]?(?:system|developer)[\"'`]?(?!\W+after)"),
        (Roles.ALTERNATING, r"roles?\b.{0,60}\balternat|alternat.{0,70}\broles?\b"),
        (Roles.ALTERNATING, r"(?:must|should)\W+alternate|alternate\W+between\W+user\b"),
        (Roles.ALTERNATING, r"(?:consecutive|successive)\W.{0,40}(?:messages|roles?)"),
        (
            Roles.ALTERNATING,
            r"(?:start|begin|end)s?\W+with\W+an?\W+user\b|first\W+message.{0,30}\buser\b",
        ),
        (
            Roles.ALTERNATING,
            r"no\W+user\W+(?:query|messages?)\b|at\W+least\W+one\W+(?:user\W+)?message",
        ),
        (Roles.ALTERNATING, r"\bcontents?\W+(?:is|are)\W+(?:not\W+specified|required)"),
        (Roles.ALTERNATING, r"expected\W+last\W+role|\bmessage\W+prefill"),
        (Roles.ALTERNATING, r"unexpected\W+role\W.{0,40}\bafter\W+role"),
        (Roles.ALTERNATING, r"system\W+(?:role|message|prompt)s?\b.{0,60}\b(?:begin|first|start)"),
        (Roles.ALTERNATING, r"(?:only|single|multiple|more\W+than)\W.{0,20}\bsystem\W+messages?"),
        (Roles.ALTERNATING, r"only\W+user.{0,40}roles\W+are\W+supported"),
        (Roles.ALTERNATING, r"chat[ _]template|jinja"),
    )
)


@dataclass(frozen=True, slots=True)
class Said:
    """What a refusal says.

    Attributes:
        roles: What it demands of the messages' roles.
        refused: Names of parameters that it does not take, of those that were sent.
        hint: What to do about it, for the person who set the model up; empty if that is unknown.
    """

    roles: Roles
    refused: frozenset[str]
    hint: str


def said_in(status: int, refusal: bytes, sent: Sequence[str] = ()) -> Said:
    """Read a refusal.

    Args:
        status: Of the answer.
        refusal: The answer's body.
        sent: Names of the parameters that were sent.
    """
    said, named = words_of(refusal)
    roles = Roles.ANY
    if status in _OF_ROLES:
        roles = next((roles for roles, demand in _DEMANDS if demand.search(said)), Roles.ANY)
    optional = [name for name in _OPTIONAL if name in sent]
    refused = _refused(said, named, optional) if status in TEACHING else frozenset[str]()
    return Said(roles, refused, _TOOLS_HINT if _NO_TOOLS.search(said) else "")


def demanded(status: int, refusal: bytes) -> Roles:
    """Return what a refusal demands of the messages' roles."""
    return said_in(status, refusal).roles


def _refused(said: str, named: frozenset[str], sent: Sequence[str]) -> frozenset[str]:
    """Return the sent parameters that a refusal rejects altogether, not only a value of them."""
    refused: set[str] = set()
    for clause in [said] if named else _CLAUSE.split(said):
        if not (_NOT_TAKEN.search(clause) or _NOT_BOTH.search(clause)):
            continue
        about = _WOULD_TAKE.sub("", clause)
        found = [name for name in sent if (name in named if named else _is_named(name, about))]
        if len(found) > 1 and _NOT_BOTH.search(clause):
            refused.add(found[-1])  # the first of them is the one that matters more
        elif _NOT_TAKEN.search(clause):
            refused.update(found)
    return frozenset(refused)


def _is_named(name: str, clause: str) -> bool:
    """Whether a clause names a parameter, by any of the names that servers use."""
    found = _SPELLED[name].finditer(clause)
    # "Use X instead": X is not refused.
    return any(
        not _USE.search(clause[max(0, one.start() - _BEFORE) : one.start()]) for one in found
    )


def words_of(refusal: bytes) -> tuple[str, frozenset[str]]:
    """Return all text of a refusal, and the parameters that its fields name."""
    try:
        value: object = msgspec.json.decode(refusal)
    except MALFORMED:
        return refusal.decode("utf-8", "replace"), frozenset()
    texts: list[str] = []
    named: set[str] = set()
    left = [("", value, 0)]
    while left:
        field, one, depth = left.pop()
        if field == "input":
            continue  # what was sent, repeated
        if isinstance(one, dict):
            parts = cast("dict[object, object]", one).items()
            left += [(str(key), part, depth) for key, part in parts]
        elif isinstance(one, list):
            left += [(field, part, depth) for part in cast("list[object]", one)]
        elif isinstance(one, str):
            inner = _inner(one) if depth < _NESTING else None
            if inner is not None:
                left.append((field, inner, depth + 1))
                continue
            texts.append(one)
            if field in {"param", "loc"}:
                named.add(one.rpartition(".")[2])
    return "\n".join(texts), frozenset(named & set(_OPTIONAL))


def _inner(text: str) -> object:
    """Return another server's refusal that a gateway wrapped as text; None if there is none."""
    if not text.startswith(("{", "[")):
        return None
    try:
        return msgspec.json.decode(text)
    except MALFORMED:
        return None
