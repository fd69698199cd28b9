"""A limit on the bytes that one peer takes up at a time."""

import anyio


class Allowance:
    """Counts the bytes taken for one peer, and in a shared allowance those of all peers.

    It is spent when more than the peer's limit is taken, or when the shared allowance is spent and
    anything is taken for this peer. A peer that has taken nothing may always go on, so no peer has
    to wait for bytes that another one took.

    Args:
        limit_bytes: What may be taken; the last item may exceed it.
        shared: The allowance of all peers.
    """

    def __init__(self, limit_bytes: int, shared: "Allowance | None" = None) -> None:
        self.taken_bytes = 0
        self._limit_bytes = limit_bytes
        self._shared = shared
        self._less = anyio.Event()

    @property
    def spent(self) -> bool:
        """Whether no more should be taken at present."""
        shared = self._shared is not None and self._shared.spent
        return self.taken_bytes > self._limit_bytes or (shared and self.taken_bytes > 0)

    def take(self, size_bytes: int) -> None:
        """Count more bytes as taken; never refused, so check `spent` first."""
        self.taken_bytes += size_bytes
        if self._shared is not None:
            self._shared.take(size_bytes)

    def give_back(self, size_bytes: int | None = None) -> None:
        """Release bytes; by default all of them."""
        size_bytes = self.taken_bytes if size_bytes is None else size_bytes
        self.taken_bytes -= size_bytes
        if self._shared is not None:
            self._shared.give_back(size_bytes)
        self._less.set()
        self._less = anyio.Event()

    async def room(self) -> None:
        """Wait until it is not spent."""
        while self.spent:
            await (self._shared or self).less()

    async def less(self) -> None:
        """Wait until some bytes are given back."""
        await self._less.wait()
