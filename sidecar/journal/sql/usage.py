"""Model tokens that all replicas have used: by tenant and day, and by call."""

from typing import Final

from sidecar.journal.elsewhere import Usage
from sidecar.journal.sql.reads import NAMED
from sidecar.journal.sql.transaction import Transaction

LASTS_DAYS: Final = 3


def use(tx: Transaction, usage: Usage) -> Usage:
    """See `Elsewhere.use`. Drops the counts of days that are past."""
    tenants = dict[tuple[str, int], int]()
    for (tenant, day), tokens in usage.tenants.items():
        rows = tx.rows(
            "INSERT INTO spent(tenant, day, tokens) VALUES (?, ?, ?) ON CONFLICT(tenant, day)"
            " DO UPDATE SET tokens = spent.tokens + excluded.tokens RETURNING tokens",
            tenant,
            day,
            tokens,
        )
        tenants[tenant, day] = int(rows[0][0])
    if tenants:
        tx.run("DELETE FROM spent WHERE day < ?", max(day for _, day in tenants) - LASTS_DAYS)
    calls = dict[str, int]()
    for key, tokens in usage.calls.items():
        rows = tx.rows(
            f"UPDATE calls SET tokens = tokens + ?2 WHERE id = {NAMED}"  # noqa: S608 - constants
            " RETURNING tokens",
            key,
            tokens,
        )
        if rows:
            calls[key] = int(rows[0][0])
    return Usage(tenants, calls)
