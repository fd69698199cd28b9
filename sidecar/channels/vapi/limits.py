"""What one credential, one call and one day may use. Pure: the time is an argument.

Counts live in this process: a restart begins the day's count anew.
"""

from collections import OrderedDict
from dataclasses import dataclass, field

_KEYS_LIMIT = 10_000
_DAY_S = 86_400
CHARS_PER_TOKEN = 4
"""An estimate for English, used where the model's server names no usage."""


@dataclass(slots=True)
class RateCap:
    """A token bucket per key.

    Attributes:
        per_s: Requests a second, on average.
        burst: Requests at once.
    """

    per_s: float
    burst: float
    _left: OrderedDict[str, tuple[float, float]] = field(
        default_factory=OrderedDict[str, tuple[float, float]]
    )

    def admits(self, key: str, *, now_s: float) -> float:
        """Count a request; return 0 when it is within the cap, else the seconds to wait."""
        left, at_s = self._left.pop(key, (self.burst, now_s))
        left = min(self.burst, left + max(0.0, now_s - at_s) * self.per_s)
        wait_s = 0.0 if left >= 1 else (1 - left) / self.per_s
        self._left[key] = (left - 1 if not wait_s else left, now_s)
        if len(self._left) > _KEYS_LIMIT:
            self._left.popitem(last=False)
        return wait_s


@dataclass(slots=True)
class Budget:
    """Model tokens by tenant and day, UTC.

    Attributes:
        day_tokens: A tenant's limit per day; 0: none.
    """

    day_tokens: int
    _used: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])

    def left(self, tenant: str, *, now_s: float) -> bool:
        """Whether the tenant has anything left today."""
        return not self.day_tokens or self._today(tenant, now_s) < self.day_tokens

    def use(self, tenant: str, tokens: int, *, now_s: float) -> None:
        """Count tokens."""
        self._used[tenant] = (int(now_s // _DAY_S), self._today(tenant, now_s) + tokens)

    def _today(self, tenant: str, now_s: float) -> int:
        day, used = self._used.get(tenant, (0, 0))
        return used if day == int(now_s // _DAY_S) else 0
