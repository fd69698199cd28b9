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
"""How long it waits for archival memory: the caller knows that something is being looked up."""
FOUND_LIMIT: Final = 6
_SEARCH: Final = 100
"""Cost of searching one turn, in the unit of `apart`."""


class Recall:
    """Searches what is known of a caller.

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
            repeatable=True,
        )

    async def found(
        self, call: InCall | None, query: str, *, archive_s: float, this_call: bool = True
    ) -> list[Remembered]:
        """Return what fits a question best, best first; nothing if the call is not known.

        Args:
            call: The call whose caller's memory is searched.
            query: The question.
            archive_s: Longest wait for archival memory.
            this_call: Search what was said in this call, too.
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
