"""What one check of `sidecar doctor` found and, if it is wrong, the remedy."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

Verdict: TypeAlias = Literal["ok", "warning", "bad"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        what: Name of the check, short and stable: programs may look for it.
        verdict: `bad` stops the sidecar or loses words; `warning` is worth a look.
        found: What was found.
        fix: One line, empty when nothing is to be done.
    """

    what: str
    verdict: Verdict
    found: str
    fix: str = ""
