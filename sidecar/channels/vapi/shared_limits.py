"""Keeps the limits of VAPI calls over all replicas, which do not ask one another for each request.

Each second a replica adds what it has used to the journal, and learns what all have used. So a
day's budget is exceeded, at most, by what the others use within a second, and by what their
requests under way will use; a call's by one request at each of them, since a replica learns what a
call has used when it has used something itself. A rate cap is divided by how many replicas there
are.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final

import anyio

from sidecar.channels.vapi.limits import Budget, RateCap, Spent
from sidecar.errors import JournalError
from sidecar.journal.elsewhere import Elsewhere, Usage

SHARE_EVERY_S: Final = 1.0
LAST_S: Final = 2.0
"""How long the last one may take, at the end."""


class SharedLimits:
    """Shares what was used.

    Args:
        journal: Of all replicas.
        rates: Caps to divide.
        budget: Tokens per tenant and day.
        of_calls: Returns what each stored call has used, by its key; nothing where calls have no
            budget of their own.
        wall: Unix time as the machine has it now.

    Attributes:
        replicas: How many there are.
    """

    def __init__(
        self,
        journal: Elsewhere,
        *,
        rates: Sequence[RateCap],
        budget: Budget,
        of_calls: Callable[[], Mapping[str, Spent]],
        wall: Callable[[], float],
    ) -> None:
        self.replicas = 1
        self._journal = journal
        self._rates = rates
        self._budget = budget
        self._of_calls = of_calls
        self._wall = wall
        self._learnt = False

    async def run(self) -> None:
        """Share until cancelled, and once more then. What could not be shared is shared later."""
        try:
            while True:
                with suppress(JournalError):  # the calls' own turns fail as well, and say so
                    await self.share()
                await anyio.sleep(SHARE_EVERY_S)
        finally:
            with anyio.move_on_after(LAST_S, shield=True), suppress(JournalError):
                await self.share()

    async def share(self) -> None:
        """Tell the other replicas what was used here since the last time, and learn the totals.

        What was under way when this is cancelled is shared all the same.

        Raises:
            JournalError: nothing was shared.
        """
        self.replicas = max(1, await self._journal.replicas())
        for rate in self._rates:
            rate.replicas = self.replicas
        limited = self._budget.day_tokens > 0
        day, today = self._budget.today(now_s=self._wall())
        tenants = _unshared(today) if limited else {}
        calls = _unshared(self._of_calls())
        learns = limited and (self.replicas > 1 or not self._learnt)
        if not (tenants or calls or learns):
            return
        usage = Usage(_taken(tenants), _taken(calls))
        try:
            totals = await self._journal.use(usage, day=day)
        except JournalError:
            for spent, used in ((tenants, usage.tenants), (calls, usage.calls)):
                for name, tokens in used.items():
                    spent[name].put_back(tokens)
            raise
        self._learnt = True
        for name, total in totals.tenants.items():
            self._budget.learn(name, total, day=day)
        for key, total in totals.calls.items():
            calls[key].share(total)


def _unshared(spent: Mapping[str, Spent]) -> dict[str, Spent]:
    return {name: one for name, one in spent.items() if one.unshared}


def _taken(spent: Mapping[str, Spent]) -> dict[str, int]:
    return {name: one.take_unshared() for name, one in spent.items()}
