"""The tool calls of one reply as they come, in pieces or whole. Pure."""

from collections.abc import Mapping
from typing import Any, cast

from sidecar.llm.frames import json_of, object_or_none
from sidecar.llm.objects import Nesting


class ToolCalls:
    """Puts together the tool calls of a reply.

    Attributes:
        newest: The part that came last, as every client can read it: with a number for each call,
            and its arguments as text.
        mended: It did not come in that form.
    """

    def __init__(self) -> None:
        self.newest: list[dict[str, Any]] = []
        self.mended = False
        self._calls: dict[int, Nesting] = {}
        self._next = 0
        self._by_id: dict[str, int] = {}
        self._by_index: dict[int, int] = {}

    @property
    def whole(self) -> bool:
        """Whether no call's arguments stop inside an object; what they hold is up to the tool."""
        return all(arguments.depth <= 0 for arguments in self._calls.values())

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
            self._calls.setdefault(number, Nesting())
            return {**call, "index": number}
        arguments: object = function.get("arguments")
        if arguments is not None and not isinstance(arguments, str):
            arguments = json_of(arguments).decode()
            function = {**function, "arguments": arguments}
        self._calls.setdefault(number, Nesting()).feed((arguments or "").encode("utf-8", "replace"))
        return {**call, "index": number, "function": function}

    def _number(self, call: Mapping[str, Any]) -> int:
        """Return the number of a call: some servers give none, or the same to each."""
        index: object = call.get("index")
        given = isinstance(index, int) and not isinstance(index, bool)
        index = cast("int", index) if given else self._next
        name: object = call.get("id")
        if isinstance(name, str) and name:
            if name not in self._by_id:
                self._by_id[name] = self._next if index in self._calls else index
            self._by_index[index] = number = self._by_id[name]
        elif given:
            number = self._by_index.get(index, index)
        else:
            number = max(0, self._next - 1)
        self._next = max(self._next, number + 1)
        return number
