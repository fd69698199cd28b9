"""Learns from refusals what a model's server does not take, and writes requests without it. Pure.

Servers of chat completions take different requests: some refuse `max_tokens`, or `stream_options`;
templates of open models want one system message, or roles that alternate. Nobody can list them, but
each says what it refuses. So a refusal is read, once for each model of each server, and what the
server named is left out or rewritten from then on. What it did not name is never changed.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar, cast

from sidecar.errors import LlmError
from sidecar.llm.frames import json_of
from sidecar.llm.reader import ChatReader
from sidecar.llm.refusals import LIMITS, REFUSAL_BYTES, Roles, Said, said_in

T = TypeVar("T")

RETRIES: Final = 4
"""How often a request may be rewritten and sent again: a call has time for few."""

_MODELS_LIMIT = 256
_INSTRUCTIONS = ("system", "developer")  # compared, not hashed: a role may be anything
_BAD_REQUEST = 400
_ENOUGH = 3
"""So many replies in a row show that a model thinks now, after one that was words alone.

A caller can have a model write a tag, and then the first words of all others would wait.
"""


@dataclass(frozen=True, slots=True)
class Dialect:
    """What one model of one server does not take, and how its replies begin.

    Attributes:
        refused: Names of parameters.
        roles: What it demands of the messages' roles.
        thinks: Its replies begin with thought that no tag begins: see `sidecar.llm.aloud.Aloud`.
        doubted: So many replies in a row have yet to show that, before `thinks` is set again.
    """

    refused: frozenset[str] = frozenset()
    roles: Roles = Roles.ANY
    thinks: bool = False
    doubted: int = 0

    def written(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a request as the server takes it."""
        if not self.refused and self.roles is Roles.ANY:
            return body
        limit = next((body[name] for name in LIMITS if name in body), None)
        written = {n: v for n, v in body.items() if n not in self.refused and n not in LIMITS}
        if limit is not None:
            asked = [name for name in LIMITS if name in body]
            taken = [n for n in (*asked, *LIMITS) if n not in self.refused]
            written |= {taken[0]: limit} if taken else {}
        if self.roles is not Roles.ANY:
            written["messages"] = in_turns(written["messages"], self.roles)
        return written

    def after(self, said: Said) -> "Dialect | None":
        """Return the dialect that a refusal teaches; None if it teaches nothing new."""
        roles = said.roles
        if roles is self.roles is Roles.ALTERNATING:
            roles = Roles.NO_SYSTEM  # they alternate already: it must be the system message
        if roles > self.roles:
            return replace(self, roles=roles)
        return replace(self, refused=self.refused | said.refused) if said.refused else None


ANY: Final = Dialect()


class Refusal(LlmError):
    """A server did not take a request, and may have said why.

    Attributes:
        status: The status of its answer.
        answer: The body of it, up to `REFUSAL_BYTES`. It may repeat words of the conversation: it
            is read, and never shown.
    """

    def __init__(
        self, status: int, answer: bytes = b"", *, message: str = "", hint: str = ""
    ) -> None:
        super().__init__(message or f"the language model answered {status}", hint=hint)
        self.status = status
        self.answer = answer


def refuse(reader: ChatReader) -> None:
    """Raise if an error came in place of any words: some servers refuse a stream in this way.

    Raises:
        Refusal: with the status that the error names, else with 400, so that it may teach.
    """
    if reader.refusal and not reader.words and not reader.tools:
        code = reader.failure.rpartition(": ")[2]
        status = int(code) if code.isdecimal() and len(code) == len("400") else _BAD_REQUEST
        raise Refusal(status, reader.refusal[:REFUSAL_BYTES], message=reader.failure)


class Dialects:
    """What was learnt about one server in this process, for its newest 256 models.

    Args:
        learnt: Called when something new was learnt about a model.
    """

    def __init__(self, learnt: Callable[[str, Dialect], None] | None = None) -> None:
        self._of: OrderedDict[str, Dialect] = OrderedDict()
        self._learnt = learnt

    def of(self, model: str) -> Dialect:
        """Return the dialect of a model, as far as it is known."""
        return self._of.get(model, ANY)

    def heard(self, model: str, *, thinks: bool | None) -> None:
        """Note what a reply showed of how its model thinks: see `ChatReader.thinks`."""
        known = self.of(model)
        if thinks is None:
            return
        doubted = max(0, known.doubted - 1) if thinks else _ENOUGH
        heard = replace(known, thinks=thinks and not doubted, doubted=doubted)
        if heard != known:
            self._store(model, heard)
            if heard.thinks != known.thinks and self._learnt is not None:
                self._learnt(model, heard)

    async def asked(
        self, body: Mapping[str, Any], ask: Callable[[bytes], Awaitable[T]], *, raw: bytes = b""
    ) -> T:
        """Send a request as its server takes it, with at most `RETRIES` retries; return the answer.

        Has no deadline of its own.

        Args:
            body: The request; `model` says who is asked.
            ask: Sends one, and raises `Refusal` if it is not taken.
            raw: The request as JSON, if it is known.

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
                said = said_in(refusal.status, refusal.answer, tuple(written))
                taught = dialect.after(said)
                if taught is None:
                    refusal.hint = refusal.hint or said.hint
                    raise
                dialect = self._join(model, taught)
        return await ask(json_of(dialect.written(body)))

    def _join(self, model: str, taught: Dialect) -> Dialect:
        """Add what was taught to what is known; another request may have learnt meanwhile."""
        known = self.of(model)
        refused, roles = known.refused | taught.refused, max(known.roles, taught.roles)
        joined = replace(known, refused=refused, roles=roles)
        self._store(model, joined)
        if joined != known and self._learnt is not None:
            self._learnt(model, joined)
        return joined

    def _store(self, model: str, dialect: Dialect) -> None:
        self._of[model] = dialect
        self._of.move_to_end(model)
        if len(self._of) > _MODELS_LIMIT:
            self._of.popitem(last=False)


def in_turns(messages: Sequence[Mapping[str, Any]], roles: Roles) -> list[dict[str, Any]]:
    """Return messages with at most one system message, the first, and alternating other roles.

    Neighbours of one role become one message; no words are left out. A message of a caller's
    memory has the role `user`, so it joins a caller's words, never the system message, unless the
    server takes no system message: then the system's words open the first message.
    """
    systems = [dict(one) for one in messages if one.get("role") in _INSTRUCTIONS]
    others = [dict(one) for one in messages if one.get("role") not in _INSTRUCTIONS]
    if not others or others[0].get("role") == "assistant":
        others.insert(0, {"role": "user", "content": "(The call begins.)"})
    runs: list[list[dict[str, Any]]] = []
    if systems:
        role = "user" if roles is Roles.NO_SYSTEM else systems[0].get("role")
        contents = [one.get("content") for one in systems]
        runs = [[{**systems[0], "role": role, "content": _joined(contents)}]]
    for message in others:
        if runs and _is_one_turn(runs[-1][-1], message):
            runs[-1].append(message)
        else:
            runs.append([message])
    turns = [
        {**run[0], "content": _joined([one.get("content") for one in run])} if run[1:] else run[0]
        for run in runs
    ]
    last = turns[-1]
    if last.get("role") == "assistant" and not last.get("tool_calls") and not last.get("prefix"):
        turns.append({"role": "user", "content": "(The caller says nothing.)"})
    return turns


def _is_one_turn(before: Mapping[str, Any], message: Mapping[str, Any]) -> bool:
    same = before.get("role") == message.get("role") in ("user", "assistant")
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
