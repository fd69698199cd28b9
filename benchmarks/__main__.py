"""`python -m benchmarks [KEY] [--quick]`: a table for each part, then one line of JSON."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping

import anyio

from benchmarks.figures import Figures, table


def _prompt_path(quick: bool) -> Figures:
    from benchmarks import prompt_path  # noqa: PLC0415 - LiveKit takes seconds to import

    return anyio.run(prompt_path.measure, quick)


def _journal(quick: bool) -> Figures:
    from benchmarks import journal  # noqa: PLC0415

    return anyio.run(journal.measure, quick)


def _delivery(quick: bool) -> Figures:
    from benchmarks import delivery  # noqa: PLC0415

    return anyio.run(delivery.measure, quick)


def _idle(quick: bool) -> Figures:
    from benchmarks import idle  # noqa: PLC0415

    return idle.measure(quick)


def _vapi(quick: bool) -> Figures:
    from benchmarks import vapi  # noqa: PLC0415

    return anyio.run(vapi.measure, quick)


def _litellm(quick: bool) -> Figures:
    from benchmarks import litellm  # noqa: PLC0415

    return anyio.run(litellm.measure, quick)


def _letta(quick: bool) -> Figures:
    from benchmarks import letta  # noqa: PLC0415

    return anyio.run(letta.measure, quick)


def _successor(quick: bool) -> Figures:
    from benchmarks import successor  # noqa: PLC0415

    return successor.measure(quick)


def _capacity(quick: bool) -> Figures:
    from benchmarks import capacity  # noqa: PLC0415

    return capacity.measure(quick)


def _growth(quick: bool) -> Figures:
    from benchmarks import growth  # noqa: PLC0415

    return anyio.run(growth.measure, quick)


PARTS: Mapping[str, Callable[[bool], Figures]] = {
    "prompt_path": _prompt_path,
    "journal": _journal,
    "delivery": _delivery,
    "idle": _idle,
    "vapi": _vapi,
    "letta": _letta,
    "successor": _successor,
    "capacity": _capacity,
    "growth": _growth,
}
ONLY_WHEN_NAMED: Mapping[str, Callable[[bool], Figures]] = {"litellm": _litellm}


def main() -> None:
    """Run the parts that are named."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks")
    parser.add_argument("keys", nargs="*", metavar="KEY", help="parts; by default all")
    parser.add_argument("--quick", action="store_true", help="a few seconds: shape, no figures")
    asked = parser.parse_args()
    figures: dict[str, Figures] = {}
    for key in asked.keys or PARTS:
        figures[key] = {**PARTS, **ONLY_WHEN_NAMED}[key](asked.quick)
        sys.stdout.write(f"\n{table(key, figures[key])}\n")
        sys.stdout.flush()
    sys.stdout.write(f"\n{json.dumps(figures)}\n")


if __name__ == "__main__":
    main()
