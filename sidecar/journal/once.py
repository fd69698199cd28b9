"""What may be done once by all replicas together, whichever of them are asked for it."""

from typing import Protocol


class Once(Protocol):
    """Gives each name to who asks first. Every method may raise `JournalError`."""

    async def first(self, name: str, *, call: str = "", until_s: float) -> str | None:
        """Take what may be done once.

        Args:
            name: Of it, in all calls: at most 200 characters, and nobody's words.
            call: The key of the call that it is part of; the answer is erased with that call.
            until_s: Unix time until which it is known.

        Returns:
            None: it is the caller's to do. Else the answer of who was first, empty while there is
            none: it may be under way, or its replica may have died.
        """
        ...

    async def answer(self, name: str, text: str) -> None:
        """Store the answer of what was taken, for those that ask again; not empty.

        Only that of a stored call is stored: no other could be erased with its caller.
        """
        ...
