"""The journal on a database in memory: any loop, virtual time, no file."""

import time
from collections.abc import Callable
from typing import Final

from sidecar.journal.policy import PostPolicy
from sidecar.journal.sqlite import SqliteJournal
from sidecar.journal.sqlite.file import open_in_memory
from sidecar.journal.sqlite.inline import Inline

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
        super().__init__(
            Inline(open_in_memory()), policy=policy, secret=b"of this process alone", clock=clock
        )
