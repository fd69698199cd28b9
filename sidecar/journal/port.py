"""The journal whole: a durable, ordered record of turns, with one cursor per call.

Turns of a call are a log; what is pending is a range of it, so coalescing costs nothing. Each room
takes the port it needs: `record`, `outbox`, `dead_letters`, `reports`, `erasure`, `directory`,
`transcripts` or `backlog`. `sidecar/journal/sqlite/` keeps them all; the contract suite is
tests/contract/test_journal.py.
"""

from typing import Protocol

from sidecar.journal.dead_letters import DeadLetters
from sidecar.journal.erasure import Erasure
from sidecar.journal.outbox import Outbox
from sidecar.journal.record import Record
from sidecar.journal.reports import Reports


class Journal(Record, Outbox, DeadLetters, Reports, Erasure, Protocol):
    """Every port, kept by one engine; for whoever opens it and hands it on."""

    async def aclose(self) -> None:
        """Finish what is queued and close. Safe to call twice."""
        ...
