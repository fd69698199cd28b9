"""Bad values for every argument and option of every command: exit code 2 and its name."""

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from sidecar import cli
from tests.unit.test_cli import Cli, Done

pytestmark = pytest.mark.unit

LONG = "x" * 10_240
BLANK = ("", " ", "\t", " \r\n")
NO_TEXT = (*BLANK, "a\x01b", "a\x9bb", "a\udc80b", LONG)
NO_WHOLE_NUMBER = ("", "many", "1.5", "9" * 30, LONG)
NO_NUMBER = ("", "many", "nan", "inf", "1e400", LONG)
NEEDED = {"--caller": "id:ada", "--to": "embedded"}
"""Values for the options that a command requires."""


def leaves(group: Any, *above: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that is not a group, by its words."""
    for name, one in group.commands.items():
        if hasattr(one, "commands"):
            yield from leaves(one, *above, name)
        else:
            yield (*above, name), one


def takes(param: Any) -> str:
    """What kind of value a parameter takes; empty for a switch."""
    annotation = str(param.type_descriptor.annotation)
    kinds = {"bool": "", "Path": "file", "int": "whole number", "float": "number", "str": "text"}
    return next(kind for name, kind in kinds.items() if name in annotation)


PLACES = [
    (words, command, param)
    for words, command in leaves(typer.main.get_command(cli.app))
    for param in command.params
    if takes(param)
]


def given(command: Any, param: Any, value: str, at: Path) -> list[str]:
    """The command line that gives one parameter this value, and the others what they need."""
    line: list[str] = []
    reached = False
    for one in command.params:
        is_option = one.opts[0].startswith("--")
        stands_before = not (is_option or reached or param.opts[0].startswith("--"))
        reached = reached or one is param
        if one is not param and not one.required and not stands_before:
            continue
        usual = str(at / "new") if takes(one) == "file" else NEEDED.get(one.opts[0], "name")
        said = value if one is param else usual
        line += [f"{one.opts[0]}={said}"] if is_option else [said]
    return line


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    return Cli(monkeypatch, tmp_path / "data")


def refused(done: Done, param: Any) -> None:
    """Assert that a command names the parameter and a remedy, briefly and without a traceback."""
    names = {param.opts[-1], param.name, param.metavar or param.name}
    line = done.err.splitlines()[-1]
    assert done.code == 2, done
    assert any(name in line for name in names), done.err
    assert line.rpartition(":")[2].strip()
    assert len(done.err) < 20_480
    assert "Traceback" not in done.out + done.err


@pytest.mark.parametrize(
    ("words", "one", "param"), PLACES, ids=[" ".join((*w, p.name)) for w, _, p in PLACES]
)
def test_what_a_parameter_can_t_be_is_refused_by_its_name(
    command: Cli, tmp_path: Path, words: tuple[str, ...], one: Any, param: Any
) -> None:
    """Each parameter, of new commands too, refuses bad values by name and creates no file."""
    wrong = {
        "text": NO_TEXT,
        "file": ("", " ", "a\x01b", LONG, "y" * 300, str(tmp_path), f"{tmp_path}/no/such/file"),
        "whole number": NO_WHOLE_NUMBER,
        "number": NO_NUMBER,
    }[takes(param)]
    for value in wrong:
        refused(command.run(*words, *given(one, param, value, tmp_path)), param)
    assert list(tmp_path.iterdir()) == []


def test_wrong_use_is_told_as_json_too(command: Cli) -> None:
    """JSON output names the wrong parameter and the remedy."""
    for args, field in (
        (("agents", "create", ""), "name"),
        (("calls", "list", "--limit", "9" * 30), "--limit"),
        (("memory", "log", "--caller", "\t"), "--caller"),
    ):
        done = command.run(*args, "--json")
        (wrong,) = json.loads(done.out)["fields"]
        assert done.code == 2
        assert wrong["field"] == field
        assert wrong["remedy"]


@pytest.mark.parametrize("raw", [b"", b"\n", b" \t\n", b"\xff\n", b"a\x01\n", b"x" * 10_240])
def test_a_caller_from_standard_input_is_checked_likewise(
    command: Cli, monkeypatch: pytest.MonkeyPatch, raw: bytes
) -> None:
    """A caller read from standard input is checked like an argument."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw), "utf-8"))
    done = command.run("forget", "--caller", "-")
    assert done.code == 2
    assert "standard input" in done.err


def test_a_command_of_several_lines_is_taken(command: Cli) -> None:
    """A text of several lines is accepted for the agent to say."""
    done = command.run("calls", "say", "call", "One.\n\tTwo.")
    assert done.code == 1
    assert "no sidecar answers" in done.err
