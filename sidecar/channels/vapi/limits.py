"""What one credential, one call and one day may use. Pure: the time is an argument.

Counts are kept here; what other replicas use comes by `shared_limits`.
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
        per_s: Requests a second, on average, at all replicas together.
        burst: Requests at once, at all replicas together.
        replicas: How many there are; each admits its share, and one request at once at least.
    """

    per_s: float
    burst: float
    replicas: int = 1
    _left: OrderedDict[str, tuple[float, float]] = field(
        default_factory=OrderedDict[str, tuple[float, float]]
    )

    def admits(self, key: str, *, now_s: float) -> float:
        """Count a request; return 0 when it is within the cap, else the seconds to wait."""
        per_s = self.per_s / self.replicas
        burst = max(min(self.burst, 1.0), self.burst / self.replicas)
        left, at_s = self._left.pop(key, (burst, now_s))
        left = min(burst, left + max(0.0, now_s - at_s) * per_s)
        wait_s = 0.0 if left >= 1 else (1 - left) / per_s
        self._left[key] = (left - 1 if not wait_s else left, now_s)
        if len(self._left) > _KEYS_LIMIT:
            self._left.popitem(last=False)
        return wait_s


@dataclass(slots=True)
class Spent:
    """Model tokens, those that were used and those that requests under way may use.

    Attributes:
        used: By all replicas, as far as is known here.
        unshared: Of them, those that the other replicas do not know of yet.
        reserved: By requests of this replica.
    """

    used: int = 0
    unshared: int = 0
    reserved: int = 0

    @property
    def tokens(self) -> int:
        """Both together."""
        return self.used + self.reserved

    def use(self, tokens: int, *, reserved: int = 0) -> None:
        """Count tokens that were used, and release what was reserved for them."""
        self.used += tokens
        self.unshared += tokens
        self.reserved -= reserved

    def take_unshared(self) -> int:
        """Return what is to be shared; `share` or `put_back` follows."""
        taken, self.unshared = self.unshared, 0
        return taken

    def share(self, total: int) -> None:
        """What was taken is in this total of all replicas."""
        self.used = total + self.unshared

    def put_back(self, taken: int) -> None:
        """What was taken could not be shared."""
        self.unshared += taken


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
    _spent: dict[str, tuple[int, Spent]] = field(default_factory=dict[str, tuple[int, Spent]])

    def reserve(self, tenant: str, tokens: int, *, now_s: float) -> Reservation | None:
        """Reserve tokens of today; None where they don't fit any more."""
        day, spent = self._today(tenant, now_s)
        if self.day_tokens and spent.tokens + tokens > self.day_tokens:
            return None
        spent.reserved += tokens
        return Reservation(tenant, day, tokens)

    def charge(self, reservation: Reservation, used_tokens: int, *, now_s: float) -> None:
        """Replace a reservation with what was used, counted today. Call it once for each."""
        day, spent = self._today(reservation.tenant, now_s)
        back = reservation.tokens if reservation.day == day else 0
        spent.use(used_tokens, reserved=back)

    def used(self, tenant: str, *, now_s: float) -> int:
        """Return what a tenant has used today, including reservations."""
        return self._today(tenant, now_s)[1].tokens

    def today(self, *, now_s: float) -> tuple[int, dict[str, Spent]]:
        """Return the day, a number since 1970, and what each tenant has used of it."""
        day = _day(now_s)
        return day, {tenant: spent for tenant, (of, spent) in self._spent.items() if of == day}

    def learn(self, tenant: str, total: int, *, day: int) -> None:
        """All replicas together have used this much on a day, with all that was taken here."""
        known, spent = self._spent.get(tenant, (-1, Spent()))
        if known < day:
            spent = Spent()
            self._spent[tenant] = day, spent
        if known <= day:
            spent.share(total)

    def _today(self, tenant: str, now_s: float) -> tuple[int, Spent]:
        day, spent = self._spent.get(tenant, (-1, Spent()))
        if day < _day(now_s):  # a clock that was set back over midnight stays on the later day
            day, spent = self._spent[tenant] = (_day(now_s), Spent())
        return day, spent


def _day(now_s: float) -> int:
    return int(now_s // _DAY_S)
