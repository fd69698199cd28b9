"""The sidecar without one of its rules, to prove that the kill loop can fail.

usage: CHAOS_MUTATION=no_lookup|no_horizon|trusted_503 python -m tests.chaos.mutated_sidecar run

* `no_lookup`: a batch in doubt is sent again without a look-up.
* `no_horizon`: absent is final at once, though an earlier try may still land.
* `trusted_503`: a 503 counts as a refusal, though a proxy may send it after Letta took the post.
"""

import os
from typing import Any

from letta_client import APIStatusError

from sidecar.cli import main
from sidecar.delivery import relay
from sidecar.delivery.decisions import Facts, LookUp, Outcome, Send, Step, decide
from sidecar.errors import LettaError, NotAccepted
from sidecar.journal.states import BatchEvent
from sidecar.letta.rest import wire

MUTATIONS = ("no_lookup", "no_horizon", "trusted_503")

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


if __name__ == "__main__":
    match os.environ["CHAOS_MUTATION"]:
        case "no_lookup":
            relay.decide = no_lookup
        case "no_horizon":
            relay.decide = no_horizon
        case "trusted_503":
            wire.post_error = trusted_503
        case unknown:
            raise SystemExit(f"no mutation {unknown!r}")
    main()
