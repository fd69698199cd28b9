"""The replies of one VAPI call as they were written, before it is known what of them was heard."""

from collections.abc import Sequence
from dataclasses import dataclass

import anyio

from sidecar.channels.vapi.history import Stretch, annotate

_SLOTS_LIMIT = 400


@dataclass(slots=True)
class _Stream:
    slot: int
    asked: str
    scope: anyio.CancelScope
    n: int | None = None


class WrittenReplies:
    """What was written for each turn of the caller, by its slot; bounded to the newest slots.

    Attributes:
        answer: The newest reply that was sent whole and that no history has shown yet, or empty.
    """

    def __init__(self) -> None:
        self.answer = ""
        self._texts: dict[int, str] = {}
        self._cut_slots: set[int] = set()
        self._fallbacks: list[str] = []
        self._streams: list[_Stream] = []

    def begin(self, slot: int, asked: str, scope: anyio.CancelScope) -> object:
        """Register a reply that is about to be written, and cancel those that it supersedes.

        Args:
            slot: Number of the turn that the history asks about.
            asked: The words it asks about. The same words again are a repeat: both replies go on,
                as VAPI may listen to either.
            scope: Cancelled when a newer history makes the reply pointless.

        Returns:
            What to pass to `end`.
        """
        for older in self._streams:
            if older.slot < slot or (older.slot == slot and older.asked != asked):
                older.scope.cancel()
        stream = _Stream(slot, asked, scope)
        self._streams.append(stream)
        return stream

    def numbered(self, stream: object, n: int) -> None:
        """Other replicas were told of a reply: those with a lower number were begun before it."""
        if isinstance(stream, _Stream):
            stream.n = n

    def superseded(self, slot: int, chars: int, n: int) -> None:
        """Cancel the replies that one which was begun at another replica supersedes.

        Args:
            slot: See `begin`.
            chars: How long the words are that it replies to. Others of the same length are taken
                for the same: then both replies go on, and nobody hears the older one.
            n: Its number. Of a reply without one it is not known which was begun first: it goes on.
        """
        for older in self._streams:
            other = older.slot < slot or (older.slot == slot and len(older.asked) != chars)
            if older.n is not None and older.n < n and other:
                older.scope.cancel()

    def end(self, stream: object, text: str, *, follow_up: bool, delivered: bool = False) -> None:
        """A reply has ended, or was cut off, with this text.

        Args:
            stream: What `begin` returned; anything else is ignored.
            text: What was written, heard or not.
            follow_up: It goes on after a tool: the text before it belongs to the same turn.
            delivered: All of it was sent, and no tool was asked for: the caller speaks next.
        """
        if not isinstance(stream, _Stream):
            return
        self._streams.remove(stream)
        if delivered:
            self.answer = text
        before = self._texts.get(stream.slot, "") if follow_up else ""
        if text or not follow_up:
            self._texts[stream.slot] = f"{before} {text}".strip()
        while len(self._texts) > _SLOTS_LIMIT:
            del self._texts[min(self._texts)]

    def fell_back(self, text: str) -> None:
        """Note that `text` was spoken to the caller in place of a reply."""
        if text not in self._fallbacks:
            self._fallbacks.append(text)

    def interrupted(self, slot: int) -> None:
        """Note that the caller interrupted the reply to a slot."""
        self._cut_slots.add(slot)

    @property
    def speaking(self) -> bool:
        """Whether a reply is being written."""
        return bool(self._streams)

    def text_of(self, slot: int) -> str:
        """Return what was written for a slot, on one line; empty: nothing."""
        return " ".join(self._texts.get(slot, "").split())

    def annotate(self, stretches: Sequence[Stretch]) -> tuple[Stretch, ...]:
        """Mark the stretches of a history that were interrupted, or spoken in place of a reply."""
        return annotate(
            stretches,
            generated=dict(self._texts),
            cut_slots=set(self._cut_slots),
            fallbacks=list(self._fallbacks),
        )
