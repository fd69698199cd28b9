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
asserted. A part that does anything else fails the test with a diff of the two, line by line. An
entry may hold a placeholder: whatever compares equal to what was done, as `pytest.approx` does.
"""

from collections.abc import Callable, Sequence
from difflib import ndiff
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

    def __rshift__(self, happens: Happens) -> Self:
        """Let something happen."""
        self._scenes.append((happens, []))
        return self

    def __lshift__(self, does: Does) -> Self:
        """Expect something to be done about what happened last."""
        if not self._scenes:
            raise ValueError("nothing has happened yet")
        self._scenes[-1][1].append(does)
        return self

    def __bool__(self) -> bool:
        """Play the script.

        Raises:
            AssertionError: something else was done; its text is the script with what was done.
        """
        script: list[str] = []
        played: list[str] = []
        for happens, expected in self._scenes:
            done = self._part(happens)
            for lines, steps in ((script, expected), (played, done)):
                lines.append(f">> {happens}")
                lines.extend(f"<< {step}" for step in steps)
            if list(done) == expected:
                # A placeholder reads otherwise than what it stands for.
                played[len(played) - len(done) :] = script[len(script) - len(done) :]
        if script != played:
            raise AssertionError("\n".join(["not as in the script:", *ndiff(script, played)]))
        return True
