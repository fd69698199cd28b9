"""The tool calls of one reply as they come, in pieces or whole. Pure."""

from collections.abc import Mapping
from typing import Any, cast

from sidecar.llm.frames import json_of, object_or_none, parsed


class Calls:
    """Puts together what a model calls.

    Attributes:
        newest: The part that came last, as every client can read it: with a number for each call,
            and its arguments as text.
        mended: It did not come so.
    """

    def __init__(self) -> None:
        self.newest: list[dict[str, Any]] = []
        self.mended = False
        self._arguments: dict[int, list[str]] = {}
        self._by_id: dict[str, int] = {}
        self._by_index: dict[int, int] = {}

    @property
    def whole(self) -> bool:
        """Whether the arguments of each call are JSON, or none at all."""
        return all(map(_is_json, map("".join, self._arguments.values())))

    def go_on(self, message: Mapping[str, Any]) -> bool:
        """Take a part; return whether it holds anything of a call: a name, or some arguments."""
        calls: object = message.get("tool_calls")
        self.newest = []
        for one in cast("list[object]", calls) if isinstance(calls, list) else ():
            call = object_or_none(one)
            parts = [object_or_none(part) for part in (call or {}).values()]
            if call is not None and any(any(part.values()) for part in parts if part is not None):
                self.newest.append(self._numbered(call))
        self.mended = self.newest != calls
        return bool(self.newest)

    def _numbered(self, call: Mapping[str, Any]) -> dict[str, Any]:
        number = self._number(call)
        function = object_or_none(call.get("function"))
        if function is None:
            self._arguments.setdefault(number, [])
            return {**call, "index": number}
        arguments: object = function.get("arguments")
        if arguments is not None and not isinstance(arguments, str):
            arguments = json_of(arguments).decode()
            function = {**function, "arguments": arguments}
        self._arguments.setdefault(number, []).append(arguments or "")
        return {**call, "index": number, "function": function}

    def _number(self, call: Mapping[str, Any]) -> int:
        """Return the number of a call: some servers give none, or the same to each."""
        index: object = call.get("index")
        index = index if isinstance(index, int) else len(self._arguments)
        name: object = call.get("id")
        if not isinstance(name, str) or not name:
            newest = len(self._arguments) - 1
            given = index if call.get("index") is not None else max(0, newest)
            return self._by_index.get(given, given)
        if name not in self._by_id:
            taken = index in self._arguments
            self._by_id[name] = len(self._arguments) if taken else index
        self._by_index[index] = self._by_id[name]
        return self._by_id[name]


def _is_json(arguments: str) -> bool:
    try:
        if arguments.strip():
            parsed(arguments.encode("utf-8", "replace"))
    except ValueError:
        return False
    return True
