"""The guidance of calls whose channel let them go, which may take them up again."""

from collections.abc import Collection

from sidecar.llm.guidance import CallGuidance
from sidecar.model import Call


class LeftGuidance:
    """Keeps the guidance of a call while no channel holds it.

    So it is while a link's connection is lost, or while a page is loaded anew.

    Args:
        keep_s: Seconds for which it is kept where nobody expects the call back.
    """

    def __init__(self, *, keep_s: float) -> None:
        self._keep_s = keep_s
        self._left: dict[str, tuple[Call, CallGuidance, float]] = {}

    def leave(self, call: Call, guidance: CallGuidance, *, now_s: float) -> None:
        """The channel has let go of a call."""
        if guidance.text:
            self._left[call.key] = call, guidance, now_s

    def take_up(self, call: Call) -> CallGuidance:
        """Return what a call was given so far, to be added to; another caller's call gets none."""
        before, guidance, _ = self._left.get(call.key) or (call, CallGuidance(), 0.0)
        return guidance if before.caller_key in {"", call.caller_key} else CallGuidance()

    def forget(self, *, expected: Collection[str], now_s: float) -> None:
        """Forget what nobody came for, but of the calls whose keys are `expected` back."""
        for key, (_, _, left_s) in list(self._left.items()):
            if key not in expected and now_s - left_s >= self._keep_s:
                del self._left[key]
