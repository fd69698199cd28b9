"""What goes wrong with a stand-in server: drawn from a seed, or named one by one.

A script is a value that goes over the wire as JSON (``POST /_ctl``) and onto a command line; the
same seed and the same requests in the same order draw the same faults.
"""

import random
from typing import Literal, TypeAlias

import msgspec

Fault: TypeAlias = Literal[
    "denied",  # 401
    "unavailable",  # 503 before anything was taken
    "broken",  # 500 before anything was taken
    "limited",  # 429 with Retry-After before anything was taken
    "cut_before",  # the connection is cut before anything was taken
    "hang",  # no answer, and nothing taken, until the client goes
    "empty",  # reads only: a 200 without any block
    "busy",  # posts only: 409
    "late",  # posts only: taken, and digested `late_s` later than usual
    "delayed",  # posts only: shows nowhere for `late_s`, is taken then; the client hears nothing
    "mute",  # posts only: taken and digested, but the client hears nothing
    "broken_after",  # posts only: taken and digested, then answered with 500
    "cut_after",  # posts only: taken and digested, then the connection is cut
    "gateway",  # posts only: taken; a proxy's 503 at once, while it is digested
    "overflow",  # posts only: the stream says that the model's context is exceeded; nothing stored
    "stream_error",  # posts only: the run fails inside its stream and leaves nothing
]


class Faults(msgspec.Struct, forbid_unknown_fields=True):
    """Faults of one kind of request.

    Attributes:
        latency_s: Wait before every answer.
        jitter_s: Up to this much more, drawn.
        next: Faults of the next requests, in order; used up before any chance is drawn.
        chances: Probability of each fault per request; their sum is at most 1.
    """

    latency_s: float = 0.0
    jitter_s: float = 0.0
    next: list[Fault | Literal["none"]] = []
    chances: dict[Fault, float] = {}


class FaultScript(msgspec.Struct, forbid_unknown_fields=True):
    """Faults of a whole server.

    Attributes:
        reads: Faults of every request that is not a post.
        posts: Faults of posts of messages.
        seed: Seed of every draw.
        retry_after_s: What `limited` says.
        late_s: How much later `late` digests, and `delayed` begins.
    """

    reads: Faults = msgspec.field(default_factory=Faults)
    posts: Faults = msgspec.field(default_factory=Faults)
    seed: int = 0
    retry_after_s: float = 0.2
    late_s: float = 1.0


class FaultDraw:
    """Draws the faults of a script, and counts them in `drawn`."""

    def __init__(self, script: FaultScript) -> None:
        self.script = script
        self.drawn: dict[str, int] = {}
        self._dice = random.Random(script.seed)

    def latency_s(self, faults: Faults) -> float:
        """Return how long a request waits for its answer."""
        return faults.latency_s + (self._dice.random() * faults.jitter_s if faults.jitter_s else 0)

    def fault(self, faults: Faults) -> Fault | None:
        """Return the fault of a request, or None."""
        drawn = self._draw(faults)
        if drawn is not None:
            self.drawn[drawn] = self.drawn.get(drawn, 0) + 1
        return drawn

    def _draw(self, faults: Faults) -> Fault | None:
        if faults.next:
            named = faults.next.pop(0)
            return None if named == "none" else named
        if not faults.chances:
            return None
        left = self._dice.random()
        for fault, chance in sorted(faults.chances.items()):
            left -= chance
            if left < 0:
                return fault
        return None
