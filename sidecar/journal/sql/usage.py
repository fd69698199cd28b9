"""Model tokens that all replicas have used: by tenant and day, and by call."""

from typing import Final

from sidecar.journal.elsewhere import Usage
from sidecar.journal.sql.reads import NAMED
from sidecar.journal.sql.transaction import Transaction

LASTS_DAYS: Final = 3


def use(tx: Transaction, usage: Usage, *, day: int) -> Usage:
    """See `Elsewhere.use`. Drops the counts of days that are past."""
    for tenant, tokens in usage.tenants.items():
        tx.run(
            "INSERT INTO spent(tenant, day, tokens) VALUES (?, ?, ?) ON CONFLICT(tenant, day)"
            " DO UPDATE SET tokens = spent.tokens + excluded.tokens",
            tenant,
            day,
            tokens,
        )
    if usage.tenants:
        tx.run("DELETE FROM spent WHERE day < ?", day - LASTS_DAYS)
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
    return Usage(of_day(tx, day), calls)


def of_day(tx: Transaction, day: int) -> dict[str, int]:
    """Return what each tenant has used on a day."""
    rows = tx.rows("SELECT tenant, tokens FROM spent WHERE day = ?", day)
    return {tenant: int(tokens) for tenant, tokens in rows}
