"""A script for a part that is asked and answers: what happens, and what it does about each.

::

    assert (
        Playbook(batch)
        >> at(0.0, Event.CLAIMED)
        << Send(record_anew=False)
        >> at(2.0, Event.DIGESTED)
        << Settle()
    )

`>>` is what happens, `<<` what the part does about it, in order; the script is played when it is
asserted, and goes on from there when more is added and asserted. A part that does anything else
fails the test with a diff of the two, line by line, up to the step at which they part. An entry may
hold a placeholder: whatever compares equal to what was done, as `pytest.approx` and `mock.ANY` do.
"""

from collections.abc import Callable, Sequence
from difflib import ndiff
from itertools import takewhile
from typing import Generic, Self, TypeVar

Happens = TypeVar("Happens")
Does = TypeVar("Does")


class Playbook(Generic[Happens, Does]):
    """A script.

    Args:
        part: Takes what happens next and returns all that it does about it, in order.
    """

    def __init__(self, part: Callable[[Happens], Sequence[Does]]) -> None:
        self._part = part
        self._scenes: list[tuple[Happens, list[Does]]] = []
        self._played: list[str] = []
        self._scenes_played = 0

    def __rshift__(self, happens: Happens) -> Self:
        """Let something happen."""
        self._scenes.append((happens, []))
        return self

    def __lshift__(self, does: Does) -> Self:
        """Expect something to be done about what happened last.

        Raises:
            ValueError: nothing has happened yet, or what was done about it is played already.
        """
        if self._scenes_played == len(self._scenes):
            raise ValueError("nothing has happened yet")
        self._scenes[-1][1].append(does)
        return self

    def __bool__(self) -> bool:
        """Play what was added since the script was played last.

        Raises:
            AssertionError: something else was done; its text names the step and is the script so
                far with what was done. What the part itself raises comes with a note of the step.
        """
        while self._scenes_played < len(self._scenes):
            happens, expected = self._scenes[self._scenes_played]
            self._scenes_played += 1
            step = f"step {self._scenes_played}: >> {happens}"
            try:
                done = [*self._part(happens)]
            except Exception as error:
                error.add_note(f"at {step}")
                raise
            script = [*self._played, *_lines(happens, expected)]
            if done != expected:
                played = [*self._played, *_lines(happens, _as_scripted(done, expected))]
                diff = (line.rstrip("\n") for line in ndiff(script, played))
                raise AssertionError("\n".join([f"not as in the script, {step}", *diff]))
            self._played = script
        return True


def _lines(happens: object, does: Sequence[object]) -> list[str]:
    return [f">> {happens}", *(f"<< {one}" for one in does)]


def _as_scripted(done: Sequence[Does], expected: Sequence[Does]) -> list[Does]:
    """Return what was done, with the script's own entries where the two agree at either end.

    A placeholder reads otherwise than what it stands for.
    """
    head = _agreeing(done, expected)
    tail = _agreeing(done[head:][::-1], expected[head:][::-1])
    return [
        *expected[:head],
        *done[head : len(done) - tail],
        *expected[len(expected) - tail :],
    ]


def _agreeing(one: Sequence[object], other: Sequence[object]) -> int:
    """Return how many are equal from the beginning."""
    return len([*takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))])
