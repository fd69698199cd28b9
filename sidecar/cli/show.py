"""How results are shown: tables that fit 80 columns, or JSON for programs."""

import json
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from typing import TypeVar

from typing_extensions import override

from sidecar.model import utc_of
from sidecar.printable import printable, printable_json

_MINUTE_S, _HOUR_S, _DAY_S = 60, 3_600, 86_400
WIDTH = 80
# The fewest columns of the terminal that a column beside the first may get in a table.
_NARROW = 8

T = TypeVar("T")


def say(text: str) -> None:
    """Write a line to standard output."""
    sys.stdout.write(f"{printable(text)}\n")


def as_json(value: object) -> None:
    """Write a value as JSON, indented; dataclasses become objects.

    Characters that would control a terminal are escaped by number, so a program loses nothing.
    """
    sys.stdout.write(_dumped(value, indent=2) + "\n")


def json_line(value: object) -> str:
    """Return a value as one line of JSON, as `as_json` writes it."""
    return _dumped(value, indent=None)


def _dumped(value: object, *, indent: int | None) -> str:
    ascii_alone = "utf" not in (sys.stdout.encoding or "utf-8").lower()
    text = json.dumps(value, cls=_Encoder, indent=indent, ensure_ascii=ascii_alone)
    return printable_json(text)


class _Encoder(json.JSONEncoder):
    @override
    def default(self, o: object) -> object:
        if is_dataclass(o) and not isinstance(o, type):
            return asdict(o)
        return super().default(o)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, empty: str) -> None:
    """Write a table no wider than the terminal, 80 columns where there is none.

    The first cell names its row and is never broken, so that it can be copied. If that leaves too
    little room for the rest, each row is written as a few lines instead.

    Args:
        columns: Headings; one that starts with `>` is aligned to the right.
        rows: Cells as text.
        empty: Written in place of a table without rows.
    """
    if not rows:
        say(empty)
        return
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415 - only where a table is drawn
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    console = Console(highlight=False, soft_wrap=False)
    longest = max(len(line) for row in rows for line in row[0].splitlines() or [""])
    if longest > console.width - _NARROW * (len(columns) - 1):
        _as_lines([name.removeprefix(">") for name in columns], rows)
        return
    drawn = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for place, name in enumerate(columns):
        drawn.add_column(
            name.removeprefix(">"),
            justify="right" if name.startswith(">") else "left",
            overflow="fold",
            no_wrap=place == 0,
        )
    for row in rows:
        drawn.add_row(*(Text(printable(cell)) for cell in row))
    console.print(drawn)


def _as_lines(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for row in rows:
        say(f"{columns[0]} {row[0]}")
        for name, cell in zip(columns[1:], row[1:], strict=True):
            say(f"  {name}: " + cell.replace("\n", "\n    "))


def each(work: Sequence[T], what: str) -> Iterable[T]:
    """Iterate over work that may be long, with a bar on standard error if that is a terminal."""
    if not sys.stderr.isatty():
        return work
    from rich.console import Console  # noqa: PLC0415 - only where a bar is drawn
    from rich.progress import track  # noqa: PLC0415

    return track(work, what, console=Console(stderr=True), transient=True)


@contextmanager
def progress() -> Generator[Callable[[str, int, int], None]]:
    """Yield what shows a step, how much of it is done and how much there is.

    A bar for each step on standard error, if that is a terminal.
    """
    if not sys.stderr.isatty():
        yield lambda _step, _done, _total: None
        return
    from rich.console import Console  # noqa: PLC0415 - only where a bar is drawn
    from rich.progress import Progress, TaskID  # noqa: PLC0415

    with Progress(console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def shown(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(step)
            bars.update(tasks[step], completed=done, total=total)

        yield shown


@contextmanager
def busy(what: str) -> Generator[None]:
    """Show on standard error, if that is a terminal, that something of unknown length runs."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console  # noqa: PLC0415 - only where it is drawn

    with Console(stderr=True).status(what):
        yield


def as_they_come(work: Iterable[T], what: str) -> Generator[T]:
    """Yield each item as it comes, and show the wait for the next one."""
    coming = iter(work)
    while True:
        with busy(what):
            try:
                one = next(coming)
            except StopIteration:
                return
        yield one


def moment(at_s: float | None) -> str:
    """Return a Unix time in UTC to the second, or a dash."""
    if at_s is None:
        return "-"
    return utc_of(at_s).strftime("%Y-%m-%d %H:%M:%S")


def span(seconds: float | None) -> str:
    """Return a length of time in its two largest units, or a dash."""
    if seconds is None:
        return "-"
    whole = max(0, int(seconds))
    if whole < _MINUTE_S:
        return f"{whole} s"
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S} min {whole % _MINUTE_S} s"
    if whole < _DAY_S:
        return f"{whole // _HOUR_S} h {whole % _HOUR_S // _MINUTE_S} min"
    return f"{whole // _DAY_S} d {whole % _DAY_S // _HOUR_S} h"
