"""What an agent learned, change by change, if its Letta keeps that. The App Server does, in git."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

_BATCH: Final = re.compile(r"voice batch ([0-9a-f-]{36}):")
_FILE: Final = re.compile(r"^diff --git a/.* b/(.*)$")
_SUFFIX: Final = ".md"
_SYSTEM: Final = "system/"


@dataclass(frozen=True, slots=True)
class Edit:
    """What a change did to one block: the lines of its value that it removed and added."""

    label: str
    removed: tuple[str, ...]
    added: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """One change of an agent's memory.

    Attributes:
        change_id: Letta's id of it; its first characters suffice if no other id begins with them.
        at_s: Unix time of the server.
        batch_id: Id of the batch whose digestion made it; empty if something else made it.
        edits: One for each block that changed.
    """

    change_id: str
    at_s: float
    batch_id: str
    edits: tuple[Edit, ...]


@runtime_checkable
class RecordsChanges(Protocol):
    """A Letta that records the history of an agent's memory."""

    async def changes(self, agent_id: str, *, limit: int) -> Sequence[Change]:
        """Return the newest changes of an agent's memory, newest first.

        Raises:
            AgentNotFound: no such agent.
            LettaUnavailable: no answer in time.
        """
        ...


def batch_of(subject: str) -> str:
    """Return the id of the batch that a commit's message names; empty where it names none."""
    found = _BATCH.match(subject)
    return found[1] if found else ""


def edits_of(diff: str) -> tuple[Edit, ...]:
    """Return what a commit's diff did to blocks, the head of a new file not included."""
    edits: list[Edit] = []
    label, in_hunk, fences = "", False, 2
    removed: list[str] = []
    added: list[str] = []
    for line in [*diff.splitlines(), "diff --git a/ b/"]:
        if not in_hunk and line.startswith("new file mode"):
            fences = 0
        elif line.startswith("@@"):
            in_hunk = True
        elif begins := _FILE.match(line):
            if label and (removed or added):
                edits.append(Edit(label, tuple(removed), tuple(added)))
            path = begins[1]
            label = path.removesuffix(_SUFFIX).removeprefix(_SYSTEM) if path else ""
            in_hunk, fences = False, 2
            removed, added = [], []
        elif in_hunk and line.startswith("+"):
            if fences < 2:  # noqa: PLR2004 - above and below the head
                fences += line == "+---"
            else:
                added.append(line[1:])
        elif in_hunk and line.startswith("-"):
            removed.append(line[1:])
    return tuple(edits)
