"""What one credential, one call and one day may use. Pure: the time is an argument.

Counts are kept in this process: a restart begins the day's count anew.
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


@dataclass(frozen=True, slots=True)
class Reservation:
    """Tokens that a request may still use; released by `Budget.charge`."""

    tenant: str
    day: int
    tokens: int


@dataclass(slots=True)
class Budget:
    """Model tokens by tenant and UTC day: reserved before the model is asked, replaced after it.

    Reserved tokens count as used, so that simultaneous requests can't each use the rest of a day.

    Attributes:
        day_tokens: A tenant's limit per day; 0: no limit.
    """

    day_tokens: int
    _used: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])

    def reserve(self, tenant: str, tokens: int, *, now_s: float) -> Reservation | None:
        """Reserve tokens of today; None where they don't fit any more."""
        used = self.used(tenant, now_s=now_s)
        if self.day_tokens and used + tokens > self.day_tokens:
            return None
        day = _day(now_s)
        self._used[tenant] = (day, used + tokens)
        return Reservation(tenant, day, tokens)

    def charge(self, reservation: Reservation, used_tokens: int, *, now_s: float) -> None:
        """Replace a reservation with what was used, counted today. Call it once for each."""
        day = _day(now_s)
        back = reservation.tokens if reservation.day == day else 0
        used = self.used(reservation.tenant, now_s=now_s)
        self._used[reservation.tenant] = (day, max(0, used - back) + used_tokens)

    def used(self, tenant: str, *, now_s: float) -> int:
        """Return what a tenant has used today, including reservations."""
        day, used = self._used.get(tenant, (0, 0))
        return used if day == _day(now_s) else 0


def _day(now_s: float) -> int:
    return int(now_s // _DAY_S)
