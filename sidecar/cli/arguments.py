"""Checks each argument and option of each command, before the command runs.

A value that is blank, not text of one line, too long or out of bounds is wrong use: exit code 2,
with the name of the argument or option. An empty value does not leave an option out: it is what a
shell makes of a variable that is not set.
"""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand
from typing_extensions import override

from sidecar import environment

_F = TypeVar("_F", bound=Callable[..., Any])
_OF_LINES = frozenset({"text"})
_INTEGER_LIMIT = 1 << 31


class Commands(typer.Typer):
    """A group of commands, each of which checks what it is given."""

    @override
    def command(self, name: str | None = None, **settings: Any) -> Callable[[_F], _F]:
        return super().command(name, cls=_Checked, **settings)


class _Checked(TyperCommand):
    @override
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        for param in self.params:
            name = param.name or ""
            source = ctx.get_parameter_source(name)
            if source is None or source.name != "COMMANDLINE":
                continue
            given: Any = ctx.params.get(name)
            values: list[Any] = list(given) if type(given) in {list, tuple} else [given]
            for value in values:
                try:
                    check_value(value, lines=name in _OF_LINES)
                except ValueError as error:
                    wrong: Any = typer.BadParameter  # from typer's own Click, partly typed
                    raise wrong(str(error), ctx=ctx, param=param) from None
        return rest


def check_value(value: object, *, lines: bool = False) -> None:
    """Check one value from the command line.

    Args:
        value: Of any type that a command takes; a path is that of a file.
        lines: A text may have several lines.

    Raises:
        ValueError: it can't be what is meant; the text is the remedy and never repeats the value.
    """
    if isinstance(value, float) and not (math.isfinite(value) and 0 <= value < _INTEGER_LIMIT):
        raise ValueError(f"write a number of 0 to {_INTEGER_LIMIT - 1}")
    if isinstance(value, int) and not 0 <= value < _INTEGER_LIMIT:
        raise ValueError(f"write a whole number of 0 to {_INTEGER_LIMIT - 1}")
    if isinstance(value, Path):
        _check_file(value)
    elif isinstance(value, str):
        if not value.strip():
            raise ValueError("it is blank: give a value, or leave it out")
        (_check_lines if lines else environment.plain)(value)


def _check_lines(text: str) -> None:
    from sidecar.channels.admin import COMMAND_CHARS  # noqa: PLC0415 - slow to load

    environment.lines(text)
    if len(text) > COMMAND_CHARS:
        raise ValueError(f"at most {COMMAND_CHARS} characters")


def _check_file(path: Path) -> None:
    if not str(path).strip():
        raise ValueError("it is blank: name a file, or leave it out")
    # The name may not be UTF-8; an empty one has become the current directory.
    environment.plain(os.fsencode(path).decode("utf-8", "replace"))
    environment.path(str(path))
    if os.path.isdir(path):  # noqa: PTH112 - raises nothing
        raise ValueError("name a file, not a directory")
    if not os.path.isdir(path.parent):  # noqa: PTH112 - raises nothing
        raise ValueError("its directory does not exist")
