"""Limits repeated log lines: a few of each kind pass per minute, and the others are counted."""

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

_KINDS = 256
_REST = "the rest"


@dataclass(slots=True)
class LogLimit:
    """Lets `burst` lines of each kind pass every `window_s`, so that nobody can flood a log.

    Attributes:
        burst: Lines of a kind in a window.
        window_s: Its length.
        clock: Seconds that never go back.
    """

    burst: int = 10
    window_s: float = 60.0
    clock: Callable[[], float] = time.monotonic
    _kinds: dict[Hashable, "_Kind"] = field(default_factory=dict[Hashable, "_Kind"])

    def admits(self, kind: Hashable) -> int | None:
        """Return how many of a kind were dropped since the last that passed; None: drop this one.

        Beyond some hundred kinds, all others count as one kind.
        """
        now_s = self.clock()
        if kind not in self._kinds and len(self._kinds) >= _KINDS:
            kind = _REST
        seen = self._kinds.setdefault(kind, _Kind(now_s))
        if now_s - seen.since_s >= self.window_s:
            seen.since_s, seen.passed = now_s, 0
        if seen.passed >= self.burst:
            seen.left_out += 1
            return None
        left_out, seen.left_out = seen.left_out, 0
        seen.passed += 1
        return left_out


@dataclass(slots=True)
class _Kind:
    since_s: float
    passed: int = 0
    left_out: int = 0
