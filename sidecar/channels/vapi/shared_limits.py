"""Keeps the limits of VAPI calls over all replicas, which do not ask one another for each request.

Each second a replica adds what it has used to the journal, and learns what all have used. So a
budget is exceeded by what the others admit within a second, at most; of a call, by one request at
each other replica. A rate cap is divided by how many replicas there are.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final

import anyio

from sidecar.channels.vapi.limits import Budget, RateCap, Spent
from sidecar.errors import JournalError
from sidecar.journal.elsewhere import Elsewhere, Usage

SHARE_EVERY_S: Final = 1.0


class SharedLimits:
    """Shares what was used.

    Args:
        journal: Of all replicas.
        rates: Caps to divide.
        budget: Tokens per tenant and day.
        of_calls: Returns what each stored call has used, by its key; nothing where calls have no
            budget of their own.

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
    ) -> None:
        self.replicas = 1
        self._journal = journal
        self._rates = rates
        self._budget = budget
        self._of_calls = of_calls

    async def run(self) -> None:
        """Share until cancelled. What could not be shared is shared later."""
        while True:
            with suppress(JournalError):  # the calls' own turns fail as well, and say so
                await self.share()
            await anyio.sleep(SHARE_EVERY_S)

    async def share(self) -> None:
        """Tell the other replicas what was used here since the last time, and learn the totals.

        Raises:
            JournalError: nothing was shared.
        """
        self.replicas = max(1, await self._journal.replicas())
        for rate in self._rates:
            rate.replicas = self.replicas
        tenants = self._budget.spent() if self._budget.day_tokens else {}
        calls = {key: spent for key, spent in self._of_calls().items() if spent.unshared}
        nothing = not any(spent.unshared for spent in tenants.values()) and not calls
        if nothing and (self.replicas == 1 or not tenants):
            return
        taken = [(spent, spent.take_unshared()) for spent in (*tenants.values(), *calls.values())]
        used = [tokens for _, tokens in taken]
        usage = Usage(
            dict(zip(tenants, used, strict=False)),
            dict(zip(calls, used[len(tenants) :], strict=True)),
        )
        shared = False
        try:
            totals = await self._journal.use(usage)
            shared = True
        finally:
            if not shared:
                for spent, tokens in taken:
                    spent.put_back(tokens)
        for name, spent in tenants.items():
            spent.share(totals.tenants[name])
        for key, total in totals.calls.items():
            calls[key].share(total)
