"""What `sidecar doctor` says of the lanes: which are delayed, since when, why, and what to do."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sidecar.cli import reach, show
from sidecar.cli.finding import Finding
from sidecar.errors import JournalError, NoJournal

if TYPE_CHECKING:
    from sidecar.config.settings import Settings
    from sidecar.journal.reports import LaneStatus

_REASONS = {
    "retry": "Letta did not accept the last try",
    "unknown": "a try may have reached Letta: it is looked up before it is sent again",
    "sending": "a try is under way",
}
_WAITS = "not sent yet"
_LOOK = "sidecar outbox list"


def lanes(settings: "Settings", *, running: bool, now_s: float) -> Finding:
    """Find out whether turns are reaching Letta; blocking.

    A lane is delayed while its last try was refused or is in doubt, or when its oldest turn is
    older than a batch may wait and a post may take.

    Args:
        settings: As loaded.
        running: Whether a sidecar runs on its data directory.
        now_s: Unix time.
    """
    try:
        waiting = reach.reading(lambda journal: journal.lanes(), settings)
    except NoJournal:
        return Finding("lanes", "ok", "no journal yet")
    except JournalError as error:
        return Finding("lanes", "bad", error.message, error.hint or "look into the journal")
    patience_s = settings.post_max_age_s + settings.post_timeout_s
    delayed = [
        lane
        for lane in waiting
        if lane.state in {"retry", "unknown"} or now_s - (lane.oldest_s or now_s) > patience_s
    ]
    if not delayed:
        found = f"{len(waiting)} waiting, none delayed" if waiting else "nothing is waiting"
        return Finding("lanes", "ok", found)
    return Finding("lanes", "warning", _delay(delayed, now_s), _remedy(running=running))


def _delay(delayed: "Sequence[LaneStatus]", now_s: float) -> str:
    oldest = min(delayed, key=lambda lane: lane.oldest_s or now_s)
    age = show.span(now_s - (oldest.oldest_s or now_s))
    by = Counter(_REASONS.get(lane.state, _WAITS) for lane in delayed)
    reasons = "; ".join(f"{count}: {what}" for what, count in by.most_common())
    last = f"; the oldest, after {oldest.attempt} tries: {oldest.error}" if oldest.error else ""
    return f"{len(delayed)} delayed, the oldest for {age}. {reasons}{last}"


def _remedy(*, running: bool) -> str:
    if not running:
        return f"no sidecar is running to deliver: start it (sidecar run), then see {_LOOK}"
    return f"fix the letta finding above; delivery then resumes by itself. Errors: {_LOOK}"
