"""When a worker's turns are acked, for those who measure or note it."""

from collections.abc import Callable, Iterable

from sidecar.worker.call import LinkedCall


def on_ack(call: LinkedCall, note: Callable[[str], None]) -> None:
    """Have `note` called with the item of each turn at the moment that the worker gets its ack."""
    unacked = call.unacked
    take = unacked.acked

    def acked(items: Iterable[str], *, closed: bool) -> int:
        items = list(items)
        for item in items:
            note(item)
        return take(items, closed=closed)

    unacked.acked = acked
