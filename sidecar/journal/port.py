"""The whole journal: a durable, ordered record of turns, with one cursor per call.

The turns of a call are a log, and its pending turns are a range of that log, so coalescing costs
nothing. Each part of the sidecar takes the port it needs: `record`, `outbox`, `dead_letters`,
`reports`, `erasure`, `elsewhere`, `once`, `directory`, `transcripts` or `backlog`.
`sidecar/journal/sql/` implements them all; the contract suite is tests/contract/test_journal.py.
"""

from typing import Protocol

from sidecar.journal.dead_letters import DeadLetters
from sidecar.journal.elsewhere import Elsewhere
from sidecar.journal.erasure import Erasure
from sidecar.journal.once import Once
from sidecar.journal.outbox import Outbox
from sidecar.journal.record import Record
from sidecar.journal.reports import Reports


class OfAllReplicas(Record, Elsewhere, Once, Protocol):
    """For a channel whose calls may be at several replicas at once."""


class Journal(OfAllReplicas, Outbox, DeadLetters, Reports, Erasure, Protocol):
    """Every port, implemented by one engine; for code that opens a journal and passes it on."""

    @property
    def has_room(self) -> bool:
        """Whether turns are accepted: False while the disk is full or the lease is another's."""
        ...

    async def aclose(self) -> None:
        """Finish what is queued and close. Safe to call twice."""
        ...
