"""A slice of the kill loop, and proof that it detects losses and duplicates."""

import random
from pathlib import Path

import pytest

from tests.chaos.killloop import LATE_SPOOL, Options, run
from tests.chaos.ledger import (
    NEWEST,
    Verdict,
    judge,
    lesson_of,
    lessons_in,
    read_ledgers,
    text_of,
)
from tests.chaos.mutated_sidecar import NO_FENCING

pytestmark = pytest.mark.chaos


class TestOracle:
    """The verdict on hand-written ledgers and messages."""

    LEDGER = read_ledgers(
        [
            b"said a 0\nsaid a 1\nacked a 0\nsaid a 2\nacked a 1\nsaid a 3\nacked a",
            b"said b 0\nsaid b 1\nended\n",
        ]
    )

    def verdict(self, *messages: tuple[str, str]) -> Verdict:
        return judge(self.LEDGER, messages)

    def test_all_is_well(self) -> None:
        """Acked turns, and all turns of a worker that ended, must arrive; the others may."""
        said = [text_of("a", n) for n in range(3)]
        verdict = self.verdict(
            ("conv-a", said[0]),
            ("conv-b", text_of("b", 0) + text_of("b", 1)),
            ("conv-a", said[1] + said[2]),
        )
        assert verdict.clean
        assert verdict.turns == 4

    def test_a_lost_turn_is_seen(self) -> None:
        """A missing turn counts as lost if it was acked, or if its worker ended normally."""
        assert self.verdict(("conv-a", text_of("a", 0)), ("conv-b", text_of("b", 0))).lost == 2

    def test_a_doubled_turn_is_seen(self) -> None:
        """Each further arrival of a turn is counted, in whichever conversation it arrives."""
        twice = [("conv-a", text_of("a", 0) + text_of("a", 1))] * 2
        verdict = self.verdict(*twice, ("conv-b", text_of("b", 0) + text_of("b", 1)))
        assert (verdict.doubled, verdict.misordered) == (2, 1)

    def test_disorder_is_seen(self) -> None:
        """A turn that arrives before an earlier one of its call is counted as misordered."""
        verdict = self.verdict(
            ("conv-a", text_of("a", 1) + text_of("a", 0)),
            ("conv-b", text_of("b", 0) + text_of("b", 1)),
        )
        assert (verdict.lost, verdict.misordered) == (0, 1)

    def test_a_turn_lost_with_both_ends_is_seen(self) -> None:
        """Of a worker killed while the sidecar was dead, all but the newest turns must arrive."""
        said = "".join(f"said a {n}\n" for n in range(NEWEST + 3))
        ledger = read_ledgers([f"{said}said a\nalone\n".encode()])
        spoken = [text_of("a", n) for n in range(3)]
        assert judge(ledger, [("conv-a", "".join(spoken))]).clean
        assert judge(ledger, [("conv-a", "".join(spoken[:2]))]).lost == 1

    def test_a_lesson_not_learned_once_is_seen(self) -> None:
        """A call's lesson missing from memory counts as lost, one found twice as doubled."""
        said = [text_of("a", n) for n in range(3)]
        messages = [("conv-a", "".join(said)), ("conv-b", text_of("b", 0) + text_of("b", 1))]
        assert lessons_in(f"Name: Ada\n{lesson_of('a')}") == ["a"]
        assert judge(self.LEDGER, messages, ["a", "b"]).clean
        verdict = judge(self.LEDGER, messages, ["a", "a"])
        assert (verdict.lost, verdict.doubled) == (1, 1)

    def test_strangers_are_seen(self) -> None:
        """A conversation with turns of two calls is counted, and so is a turn that nobody said."""
        verdict = self.verdict(("conv-a", text_of("a", 0) + text_of("b", 0) + text_of("c", 0)))
        assert verdict.mixed == 2


def test_nothing_is_lost_doubled_or_misordered(tmp_path: Path) -> None:
    """After 6 kills at random, every acked turn is in Letta once and in its call's order."""
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    verdict, _ = run(Options(6, seed, tmp_path))
    assert verdict.clean, verdict
    assert verdict.turns > 30


def test_three_replicas_on_one_database_change_nothing(tmp_path: Path) -> None:
    """Replicas are killed, frozen and cut off, and their database crashes: all arrives once."""
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    verdict, _ = run(Options(2, seed, tmp_path, journal="postgres", replicas=3))
    assert verdict.clean, verdict
    assert verdict.turns > 10


@pytest.mark.slow
def test_the_loop_can_lose(tmp_path: Path) -> None:
    """If workers wait for acks while the sidecar is away, killing both loses turns."""
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    verdict, _ = run(Options(6, seed, tmp_path, LATE_SPOOL))
    assert verdict.lost


@pytest.mark.slow
@pytest.mark.real_letta
@pytest.mark.usefixtures("app_server_program")
def test_the_app_server_is_told_and_taught_once(tmp_path: Path) -> None:
    """The real App Server, slowed and killed, digests each acked turn once and in order."""
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    verdict, _ = run(Options(2, seed, tmp_path, letta="app-server"))
    assert verdict.clean, verdict
    assert verdict.turns > 5


@pytest.mark.slow  # on cores that are busy besides, replicas without fences soon post nothing
def test_the_loop_sees_that_no_replica_is_fenced(tmp_path: Path) -> None:
    """If a replica that wakes late goes on with what another has claimed, turns arrive twice."""
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    options = Options(12, seed, tmp_path, NO_FENCING, journal="postgres", replicas=2)
    verdict, _ = run(options)
    assert verdict.doubled


SLOW = ("no_horizon", "trusted_503")


@pytest.mark.parametrize(
    "mutation", ["no_lookup", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_the_loop_can_fail(tmp_path: Path, mutation: str) -> None:
    """Without look-ups, without the horizon or trusting a 503, turns are delivered twice."""
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    verdict, _ = run(Options(40, seed, tmp_path, mutation))
    assert verdict.doubled
