"""The guidance of calls that lost their channel, for when the channel reopens them."""

from collections.abc import Collection

from sidecar.llm.guidance import CallGuidance
from sidecar.model import Call


class LeftGuidance:
    """Keeps the guidance of a call while no channel holds it.

    That is the case while a link's connection is lost, or while a page is reloaded.

    Args:
        orphan_s: Seconds to keep the guidance of a call that is not expected back.
    """

    def __init__(self, *, orphan_s: float) -> None:
        self._orphan_s = orphan_s
        self._left: dict[str, tuple[Call, CallGuidance, float]] = {}

    def leave(self, call: Call, guidance: CallGuidance, *, now_s: float) -> None:
        """Keep the guidance of a call that its channel no longer holds."""
        if guidance.text:
            self._left[call.key] = call, guidance, now_s

    def take_up(self, call: Call, *, before: str = "") -> CallGuidance:
        """Return the guidance of a call so far, to be added to; empty if its caller is another.

        Args:
            call: The call.
            before: Key of another call that it goes on with; empty: there is none.
        """
        left, guidance, _ = self._left.get(before or call.key) or (call, CallGuidance(), 0.0)
        return guidance if left.caller_key in {"", call.caller_key} else CallGuidance()

    def forget(self, *, expected: Collection[str], now_s: float) -> None:
        """Forget what was kept for `orphan_s`, except for calls whose keys are in `expected`."""
        for key, (_, _, left_s) in list(self._left.items()):
            if key not in expected and now_s - left_s >= self._orphan_s:
                del self._left[key]
