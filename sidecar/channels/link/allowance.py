"""How many bytes of what a peer sends are held at a time."""

import anyio


class Allowance:
    """Bytes held for one peer, and with all peers' in one shared allowance.

    It is spent when the peer holds more than its limit, or all do and this one holds anything: a
    peer of which nothing is held may always go on, so none waits for what another holds.

    Args:
        limit_bytes: What may be held; what was taken last may pass it.
        shared: That of all peers.
    """

    def __init__(self, limit_bytes: int, shared: "Allowance | None" = None) -> None:
        self.held_bytes = 0
        self._limit_bytes = limit_bytes
        self._shared = shared
        self._less = anyio.Event()

    @property
    def spent(self) -> bool:
        """Whether no more is to be taken just now."""
        shared = self._shared is not None and self._shared.spent
        return self.held_bytes > self._limit_bytes or (shared and self.held_bytes > 0)

    def take(self, size_bytes: int) -> None:
        """Hold more; never refused: who brings it asks `spent` first."""
        self.held_bytes += size_bytes
        if self._shared is not None:
            self._shared.take(size_bytes)

    def give_back(self, size_bytes: int | None = None) -> None:
        """Hold less; by default nothing more."""
        size_bytes = self.held_bytes if size_bytes is None else size_bytes
        self.held_bytes -= size_bytes
        if self._shared is not None:
            self._shared.give_back(size_bytes)
        self._less.set()
        self._less = anyio.Event()

    async def room(self) -> None:
        """Return when it is not spent."""
        while self.spent:
            await (self._shared or self).less()

    async def less(self) -> None:
        """Return when something of it is given back."""
        await self._less.wait()
