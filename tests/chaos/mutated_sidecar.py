"""The sidecar with one of its rules taken out, to prove that the kill loop can fail.

usage: CHAOS_MUTATION=no_lookup|no_horizon python -m tests.chaos.mutated_sidecar run

* `no_lookup`: a batch in doubt is sent again without a look.
* `no_horizon`: absent counts for good at once, though an earlier try may still land.
"""

import os
from typing import Any

from sidecar.cli import main
from sidecar.transcript import relay
from sidecar.transcript.delivery import Event, Facts, LookUp, Outcome, Send, Step, decide

MUTATIONS = ("no_lookup", "no_horizon")


def no_lookup(facts: Facts, outcome: Outcome, **rest: Any) -> Step:
    step = decide(facts, outcome, **rest)
    return Send(record_anew=True) if isinstance(step, LookUp) else step


def no_horizon(facts: Facts, outcome: Outcome, **rest: Any) -> Step:
    if outcome.event is Event.ABSENT:
        outcome = Outcome(Event.ABSENT_FOR_GOOD)
    return decide(facts, outcome, **rest)


if __name__ == "__main__":
    relay.decide = {"no_lookup": no_lookup, "no_horizon": no_horizon}[os.environ["CHAOS_MUTATION"]]
    main()
