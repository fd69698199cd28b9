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
        number: object = call.get("index")
        if not isinstance(number, int) or isinstance(number, bool):
            # Some servers number no calls: one with an id is another one.
            number = max(0, len(self._arguments) - (0 if call.get("id") else 1))
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


def _is_json(arguments: str) -> bool:
    try:
        if arguments.strip():
            parsed(arguments.encode("utf-8", "replace"))
    except ValueError:
        return False
    return True
