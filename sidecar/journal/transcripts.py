"""Calls with what was said in them, as they are stored."""

from typing import Protocol

from sidecar.model import Call, Turn


class Transcripts(Protocol):
    """Reads calls and their turns."""

    async def call(self, key: str) -> Call | None:
        """Return a call as stored, live or closed; None for one that is not stored."""
        ...

    async def turns(self, key: str) -> tuple[Turn, ...]:
        """Return all turns of a call, in order; empty for an unknown call."""
        ...
