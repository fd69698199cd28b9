"""The demo model: rules in place of a language model, so that a first run needs no key.

It is deterministic, does no I/O and says what it is. Two jobs, told apart by the tools offered:

* With memory tools (those of the embedded Letta or of a classic Letta server) it *digests*: each
  fact the caller states in a posted transcript becomes one line of a memory block, by one tool
  call per step. A line of the same subject is replaced; one that is there already is left.
* Without, it *replies* to the last user message from the memory in the prompt, from what was
  said recently and from the conversation so far.

``[[remember LABEL: TEXT]]`` in a caller's words stores TEXT word for word in block LABEL.
"""

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from typing_extensions import override

from sidecar.demo.digest import EDITS, OfferedTool, digest_step, spoken
from sidecar.demo.prompt import Message, is_escaped
from sidecar.demo.reply import reply_to
from sidecar.llm.port import Llm, Reply


class DemoModel(Llm):
    """Rules in place of a language model. It never fails and never gives an empty reply."""

    @property
    @override
    def name(self) -> str:
        return "demo model"

    @override
    async def stream(self, messages: Sequence[Message]) -> AsyncIterator[str]:
        for piece in re.findall(r"\S+\s*", reply_to(messages)):
            yield piece

    @override
    async def complete(
        self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] = ()
    ) -> Reply:
        escaped = is_escaped(messages)
        offered = {
            tool.name: tool for tool in (OfferedTool.of(one, escaped=escaped) for one in tools)
        }
        if not offered.keys() & EDITS:
            return spoken(reply_to(messages), offered, messages)
        return digest_step(messages, offered)

    @override
    async def aclose(self) -> None:
        pass
