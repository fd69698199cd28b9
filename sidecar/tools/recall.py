"""`recall`: the model asks what is known of its caller."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from sidecar.apart import apart
from sidecar.memory.archive import Archive
from sidecar.model import Passage
from sidecar.tools.ranking import Remembered, as_text, known, search
from sidecar.tools.tool import InCall, Tool

NAME: Final = "recall"
DEADLINE_S: Final = 5.0
ARCHIVE_S: Final = 2.0
"""What it waits for archival memory: the caller knows that something is being looked up."""
FOUND_LIMIT: Final = 6
_SEARCH: Final = 100
"""What it costs to look through a turn, in the measure of `apart`."""


class Recall:
    """Looks into what is known of a caller.

    Args:
        archive: Archival memory.
    """

    def __init__(self, archive: Archive) -> None:
        self._archive = archive

    @property
    def tool(self) -> Tool:
        """Return it as a tool."""
        return Tool(
            NAME,
            "Look up what is remembered about the caller.",
            {
                "type": "object",
                "properties": {"query": {"type": "string", "description": "What to look for."}},
                "required": ["query"],
            },
            DEADLINE_S,
            self._run,
        )

    async def found(
        self, call: InCall | None, query: str, *, archive_s: float, this_call: bool = True
    ) -> list[Remembered]:
        """Return what fits a question best, best first; nothing where the call is not known.

        Args:
            call: Whose caller's memory.
            query: The question.
            archive_s: Longest wait for archival memory.
            this_call: Look through what was said in this call, too.
        """
        if call is None:
            return []
        live = call.live
        archived: Sequence[Passage] = ()
        if live.agent_id is not None:
            archived = await self._archive.search(live.agent_id, query, budget_s=archive_s)
        said = await call.said() if this_call else ()
        memory = live.snapshot.blocks if live.snapshot else ()
        passages = partial(known, memory, live.recent, said, archived)
        return await apart(_SEARCH * len(said), _searched, query, passages)

    async def _run(self, call: InCall | None, arguments: Mapping[str, Any]) -> str:
        query = str(arguments.get("query", ""))
        return as_text(await self.found(call, query, archive_s=ARCHIVE_S))


def _searched(query: str, passages: Callable[[], Sequence[Remembered]]) -> list[Remembered]:
    return search(query, passages(), limit=FOUND_LIMIT)
