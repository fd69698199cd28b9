"""The sidecar without one of its rules, to prove that the kill loop can fail.

usage: CHAOS_MUTATION=NAME python -m tests.chaos.mutated_sidecar run

* `no_lookup`: a batch in doubt is sent again without a look-up.
* `no_horizon`: absent is final at once, though an earlier try may still land.
* `trusted_503`: a 503 counts as a refusal, though a proxy may send it after Letta took the post.
* `no_fencing`: a replica that wakes late goes on with a lane that another one has claimed. Finding
  a batch's address takes it a while, so that it is frozen before a post often enough.
"""

import os
from typing import Any

import anyio
from letta_client import APIStatusError

from sidecar.cli import main
from sidecar.delivery import relay
from sidecar.delivery.courier import Addressed, Courier
from sidecar.delivery.decisions import Facts, LookUp, Outcome, Send, Step, decide
from sidecar.errors import LettaError, NotAccepted
from sidecar.journal.sql import batches, writes
from sidecar.journal.states import BatchEvent
from sidecar.letta.rest import wire
from sidecar.model import Batch

NO_FENCING = "no_fencing"
MUTATIONS = ("no_lookup", "no_horizon", "trusted_503", NO_FENCING)
ADDRESS_S = 0.5

address = Courier.address
post_error = wire.post_error


def no_lookup(facts: Facts, outcome: Outcome, **rest: Any) -> Step:
    step = decide(facts, outcome, **rest)
    return Send(record_anew=True) if isinstance(step, LookUp) else step


def no_horizon(facts: Facts, outcome: Outcome, **rest: Any) -> Step:
    if outcome.event is BatchEvent.ABSENT:
        outcome = Outcome(BatchEvent.ABSENT_FOR_GOOD)
    return decide(facts, outcome, **rest)


def trusted_503(error: Exception, *, protected: bool) -> LettaError:
    if isinstance(error, APIStatusError) and error.status_code == 503:
        return NotAccepted("Letta answered 503")
    return post_error(error, protected=protected)


def unfenced(*_: Any, **__: Any) -> None:
    """Stand in for `require_lane` and `require_call`."""


async def addressed_late(self: Courier, batch: Batch) -> Addressed | Outcome:
    await anyio.sleep(ADDRESS_S)
    return await address(self, batch)


if __name__ == "__main__":
    match os.environ["CHAOS_MUTATION"]:
        case "no_lookup":
            relay.decide = no_lookup
        case "no_horizon":
            relay.decide = no_horizon
        case "trusted_503":
            wire.post_error = trusted_503
        case "no_fencing":
            batches.require_lane = writes.require_call = unfenced
            Courier.address = addressed_late
        case unknown:
            raise SystemExit(f"no mutation {unknown!r}")
    main()
