"""The journal on a database in memory: any loop, virtual time, no file."""

import time
from collections.abc import Callable
from copy import copy
from typing import Final, Self

from sidecar.journal.policy import PostPolicy
from sidecar.journal.sql.batches import begin
from sidecar.journal.sql.replicas import enter, new_name
from sidecar.journal.sqlite import SqliteJournal
from sidecar.journal.sqlite.file import open_in_memory
from sidecar.journal.sqlite.inline import Inline
from sidecar.journal.sqlite.transactions import SqliteTransaction

POLICY: Final = PostPolicy(max_turns=20, max_age_s=60.0)


class MemoryJournal(SqliteJournal):
    """Keeps what `Journal` promises, with the same SQL as on a disk, until the process ends.

    Args:
        policy: When turns are due.
        clock: Unix time in seconds.
    """

    def __init__(
        self, policy: PostPolicy = POLICY, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._connection = open_in_memory()
        super().__init__(
            Inline(self._connection),
            policy=policy,
            secret=b"of this process alone",
            clock=clock,
            replica="",
        )
        self.begin()

    def renamed(self) -> None:
        """Go on under another name, as a replica does that was taken for gone."""
        self._replica = new_name()
        enter(SqliteTransaction(self._connection), self._replica, now_s=0.0)

    def beside(self) -> Self:
        """Return it as another replica has it."""
        other = copy(self)
        other.renamed()
        return other

    def restarted(self, *, clock: Callable[[], float] | None = None) -> Self:
        """Return it as the next process finds it, by its own clock: this one is gone."""
        again = copy(self)
        again.begin(clock)
        return again

    def begin(self, clock: Callable[[], float] | None = None) -> None:
        """Enter as the only replica, under another name."""
        self._clock = clock or self._clock
        self._replica = new_name()
        begin(SqliteTransaction(self._connection), replica=self._replica, now_s=0.0)
