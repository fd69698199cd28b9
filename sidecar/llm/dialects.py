"""What a model's server does not take, learnt from its refusals; bodies without it. Pure.

Servers of chat completions take different requests: some refuse `max_tokens`, or `stream_options`;
templates of open models want one system message, or roles that alternate. Nobody can list them, but
each says what it refuses. So a refusal is read, once for each model of each server, and what the
server named is written otherwise from then on. What it did not name is never touched.
"""

import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, Final, TypeVar, cast

import msgspec

from sidecar.errors import LlmError
from sidecar.llm.wire import json_of
from sidecar.untrusted import MALFORMED

T = TypeVar("T")

RETRIES: Final = 4
"""How often a request may be written otherwise and sent again; each refusal teaches one thing."""

REFUSAL_BYTES: Final = 1 << 16
"""No more of a refusal is read."""

_MODELS_KEPT = 256
_LIMITS = ("max_tokens", "max_completion_tokens")
# Left out where the server names them. Never what is asked, nor the tools that a call relies on.
_OPTIONAL = (
    *_LIMITS,
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
_OF_PARAMETERS = frozenset({400, 422})
TEACHING: Final = frozenset({400, 422, 500})
"""Statuses whose answer may say what is not taken: llama.cpp has 500 when its template raises."""
_NOT_TAKEN = re.compile(
    r"unsupported|(?:not|n't)\W+(?:be\W+)?(?:support|permit|allow|accept|recogni)|unrecogni[sz]ed"
    r"|unknown|unexpected|extra[_ ]|forbidden|no longer|deprecated|instead",
    re.IGNORECASE,
)


class Roles(IntEnum):
    """What a server's template demands of the roles; each demand includes those before it."""

    ANY = 0
    ALTERNATING = 1
    """One system message, first; then user and assistant by turns."""
    NO_SYSTEM = 2
    """No system message at all."""


# What servers and templates were seen to say: vLLM, llama.cpp, mistral-common and others.
_DEMANDS: Sequence[tuple[Roles, re.Pattern[str]]] = tuple(
    (roles, re.compile(pattern, re.IGNORECASE))
    for roles, pattern in (
        (
            Roles.NO_SYSTEM,
            r"(?:system|developer)\W+(?:role|messages?|prompt|instructions?)\W+(?:is|are)?\W*not\W",
        ),
        (Roles.NO_SYSTEM, r"[\"'`](?:system|developer)[\"'`]\W+is\W+not\W+(?:one\W+of|a\W+valid)"),
        (Roles.NO_SYSTEM, r"invalid\W+(?:value|role)\W{1,4}(?:system|developer)\b"),
        (Roles.NO_SYSTEM, r"(?:not|n't)\W+support\W+(?:the\W+)?[\"'`]?(?:system|developer)\b"),
        (Roles.NO_SYSTEM, r"only\W+user\W+and\W+assistant\W+roles\W+are\W+supported(?!,? with)"),
        (Roles.NO_SYSTEM, r"unexpected\W+role\W+[\"'`]?(?:system|developer)[\"'`]?(?!\W+after)"),
        (Roles.ALTERNATING, r"roles?\b.{0,60}\balternat|alternat\w*.{0,60}\broles?\b"),
        (Roles.ALTERNATING, r"(?:must|should)\W+alternate|alternate\W+between\W+user\b"),
        (Roles.ALTERNATING, r"(?:consecutive|successive)\W.{0,40}(?:messages|roles?)"),
        (
            Roles.ALTERNATING,
            r"(?:start|begin)s?\W+with\W+an?\W+user\b|first\W+message.{0,30}\buser\b",
        ),
        (Roles.ALTERNATING, r"unexpected\W+role\W.{0,40}\bafter\W+role"),
        (Roles.ALTERNATING, r"system\W+(?:role|message|prompt)s?\b.{0,60}\b(?:begin|first|start)"),
        (Roles.ALTERNATING, r"(?:only|single|multiple|more\W+than)\W.{0,20}\bsystem\W+messages?"),
        (Roles.ALTERNATING, r"only\W+user.{0,40}roles\W+are\W+supported"),
        (Roles.ALTERNATING, r"chat[ _]template|jinja"),
    )
)


@dataclass(frozen=True, slots=True)
class Dialect:
    """What one model of one server does not take.

    Attributes:
        refused: Names of parameters.
        roles: What it demands of the messages' roles.
    """

    refused: frozenset[str] = frozenset()
    roles: Roles = Roles.ANY

    def written(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a request as the server takes it."""
        if self == ANY:
            return body
        limit = next((body[name] for name in _LIMITS if name in body), None)
        written = {n: v for n, v in body.items() if n not in self.refused and n not in _LIMITS}
        if limit is not None:
            asked = [name for name in _LIMITS if name in body]
            taken = [n for n in (*asked, *_LIMITS) if n not in self.refused]
            written |= {taken[0]: limit} if taken else {}
        if self.roles is not Roles.ANY:
            written["messages"] = in_turns(written["messages"], self.roles)
        return written

    def after(self, status: int, refusal: bytes, body: Mapping[str, Any]) -> "Dialect | None":
        """Return the dialect that a refusal teaches; None where it teaches nothing new.

        Args:
            status: Of the answer.
            refusal: The answer's body.
            body: What was sent.
        """
        said, named = words_of(refusal)
        if status in TEACHING:
            roles = _demanded(said)
            if roles is self.roles is Roles.ALTERNATING:
                roles = Roles.NO_SYSTEM  # by turns already: what is left is the system message
            if roles > self.roles:
                return replace(self, roles=roles)
        if status in _OF_PARAMETERS:
            for name in _OPTIONAL:
                if name in body and _refuses(name, said, named):
                    return replace(self, refused=self.refused | {name})
        return None


ANY: Final = Dialect()


class Refusal(LlmError):
    """A server did not take a request, and may have said why.

    Attributes:
        status: Of its answer.
        answer: The body of it, up to `REFUSAL_BYTES`. It may repeat words of the conversation: it
            is read, and never shown.
    """

    def __init__(self, status: int, answer: bytes = b"", *, hint: str = "") -> None:
        super().__init__(f"the language model answered {status}", hint=hint)
        self.status = status
        self.answer = answer


class Dialects:
    """What was learnt of one server in this process: of its newest 256 models.

    Args:
        learnt: Told when there is something new of a model.
    """

    def __init__(self, learnt: Callable[[str, Dialect], None] | None = None) -> None:
        self._of: OrderedDict[str, Dialect] = OrderedDict()
        self._learnt = learnt

    def of(self, model: str) -> Dialect:
        """Return the dialect of a model, as far as it is known."""
        return self._of.get(model, ANY)

    async def asked(
        self, body: Mapping[str, Any], ask: Callable[[bytes], Awaitable[T]], *, raw: bytes = b""
    ) -> T:
        """Send a request as its server takes it, at most `RETRIES` times anew; return the answer.

        Has no deadline of its own.

        Args:
            body: The request; `model` says who is asked.
            ask: Sends one, and raises `Refusal` where it is not taken.
            raw: The request as JSON, where it is at hand.

        Raises:
            LlmError: as `ask` does.
        """
        model = str(body["model"])
        dialect = self.of(model)
        for _ in range(RETRIES):
            written = dialect.written(body)
            try:
                return await ask(raw if raw and written is body else json_of(written))
            except Refusal as refusal:
                taught = dialect.after(refusal.status, refusal.answer, written)
                if taught is None:
                    raise
                dialect = self._join(model, taught)
        return await ask(json_of(dialect.written(body)))

    def _join(self, model: str, taught: Dialect) -> Dialect:
        """Add what was taught to what is known; another request may have learnt meanwhile."""
        known = self.of(model)
        joined = Dialect(known.refused | taught.refused, max(known.roles, taught.roles))
        self._of[model] = joined
        self._of.move_to_end(model)
        if len(self._of) > _MODELS_KEPT:
            self._of.popitem(last=False)
        if joined != known and self._learnt is not None:
            self._learnt(model, joined)
        return joined


def in_turns(messages: Sequence[Mapping[str, Any]], roles: Roles) -> list[dict[str, Any]]:
    """Return messages with one system message at most, first, and the other roles by turns.

    Neighbours of one role become one message; no words are left out. A message of a caller's
    memory has the role `user`, so it joins a caller's words, never the system message, unless the
    server takes none: then the system's words open the first message.
    """
    systems = [dict(one) for one in messages if one.get("role") in {"system", "developer"}]
    others = [dict(one) for one in messages if one.get("role") not in {"system", "developer"}]
    if others and others[0].get("role") == "assistant":
        others.insert(0, {"role": "user", "content": "(The call begins.)"})
    turns: list[dict[str, Any]] = []
    if systems:
        role = "user" if roles is Roles.NO_SYSTEM else systems[0].get("role")
        contents = [one.get("content") for one in systems]
        turns = [{**systems[0], "role": role, "content": _joined(contents)}]
    for message in others:
        if turns and _is_one_turn(turns[-1], message):
            contents = [turns[-1].get("content"), message.get("content")]
            turns[-1] = {**turns[-1], "content": _joined(contents)}
        else:
            turns.append(message)
    return turns


def _is_one_turn(before: Mapping[str, Any], message: Mapping[str, Any]) -> bool:
    same = before.get("role") == message.get("role") in {"user", "assistant"}
    return same and not before.get("tool_calls") and not message.get("tool_calls")


def _joined(contents: Sequence[object]) -> object:
    """Return the contents of several messages as that of one."""
    given = [content for content in contents if content]
    if all(isinstance(content, str) for content in given):
        return "\n\n".join(cast("list[str]", given))
    parts: list[object] = []
    for content in given:
        if isinstance(content, list):
            parts += cast("list[object]", content)
        else:
            parts.append({"type": "text", "text": str(content)})
    return parts


def _refuses(name: str, said: str, named: frozenset[str]) -> bool:
    """Whether a refusal is about a parameter, and about having it at all."""
    if not _NOT_TAKEN.search(said):
        return False
    if named:
        return name in named
    found = re.search(rf"(?<![\w.]){name}(?!\w)", said)
    # "Use X instead": X is no refused one.
    return found is not None and not re.search(
        r"\b(?:use|with)\W+$", said[: found.start()], re.IGNORECASE
    )


def demanded(status: int, refusal: bytes) -> Roles:
    """Return what a refusal demands of the messages' roles."""
    return _demanded(words_of(refusal)[0]) if status in TEACHING else Roles.ANY


def _demanded(said: str) -> Roles:
    return next((roles for roles, demand in _DEMANDS if demand.search(said)), Roles.ANY)


def words_of(refusal: bytes) -> tuple[str, frozenset[str]]:
    """Return all text of a refusal, and the parameters that its fields name."""
    try:
        value: object = msgspec.json.decode(refusal)
    except MALFORMED:
        return refusal.decode("utf-8", "replace"), frozenset()
    texts: list[str] = []
    named: set[str] = set()
    left = [("", value)]
    while left:
        field, one = left.pop()
        if field == "input":
            continue  # what was sent, said again
        if isinstance(one, dict):
            left += [(str(key), part) for key, part in cast("dict[object, object]", one).items()]
        elif isinstance(one, list):
            left += [(field, part) for part in cast("list[object]", one)]
        elif isinstance(one, str):
            texts.append(one)
            if field in {"param", "loc"}:
                named.add(one.rpartition(".")[2])
    return "\n".join(texts), frozenset(named & set(_OPTIONAL))
