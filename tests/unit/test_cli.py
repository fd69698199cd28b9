"""The command line on a journal of its own, in this process."""

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import apsw
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from sidecar import cli
from sidecar.call_names import calls_named, several, short_id
from sidecar.cli import show
from sidecar.cli.finding import Finding
from sidecar.cli.undelivered import lanes
from sidecar.config.load import load
from sidecar.demo.model import DemoModel
from sidecar.errors import LettaError
from sidecar.journal.policy import PostPolicy
from sidecar.journal.sqlite import SqliteJournal
from sidecar.letta.embedded.letta import EmbeddedLetta
from sidecar.letta.move import Move
from sidecar.model import AgentRef, Call, Turn, caller_key
from tests.unit.test_printable import is_safe

pytestmark = pytest.mark.unit

ADA = caller_key("default", "tel:+12025550147")
CALLS = (
    Call("default/AJ_5dYqZKb3mWcN", AgentRef("default", caller_key=ADA), "livekit", ADA, 100.0),
    Call(
        "default/0199c1f2-7a4e-7c11-9d3e-5b1f0c6a2e44",
        AgentRef("default", agent_id="agent-1"),
        "vapi",
        caller_key("default", "id:bob"),
        200.0,
    ),
    Call(
        "acme/console-0b8c9a52-0d38-4b4e-9c53-0d8d2f1f5a11",
        AgentRef("acme", caller_key="5" * 32),
        "console",
        "5" * 32,
        300.0,
    ),
)
EVIL = "one\n00:00:00  agent   two \x1b[2J\x9b\u202e\u2066\u200f\ufeff\U000e0041 three"


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its output, read as JSON."""
        return json.loads(self.out)


class Cli:
    """`sidecar …` with settings of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, data_dir: Path) -> None:
        self._monkeypatch = monkeypatch
        self._data_dir = data_dir

    def run(self, *args: str, **settings: str) -> Done:
        ours = ("SIDECAR_", "LETTA_", "LLM_", "OPENAI_", "LIVEKIT_", "VAPI_", "OTEL_")
        out, err = io.StringIO(), io.StringIO()
        with self._monkeypatch.context() as patch:
            for name in [name for name in os.environ if name.startswith(ours)]:
                patch.delenv(name)
            said = {"SIDECAR_DATA_DIR": str(self._data_dir), "SIDECAR_LETTA": "embedded"}
            for name, value in (said | {"COLUMNS": "80"} | settings).items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["sidecar", *args])
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                try:
                    cli.main()
                    code = 0
                except SystemExit as end:
                    code = end.code if isinstance(end.code, int) else 1 if end.code else 0
        return Done(code, out.getvalue(), err.getvalue())

    def ok(self, *args: str) -> str:
        done = self.run(*args)
        assert done.code == 0, (args, done)
        return done.out


async def fill(path: Path, text: str = EVIL) -> None:
    """Make a journal with one turn in each call, whose text is hostile by default."""
    journal = await SqliteJournal.open(path, policy=PostPolicy(max_turns=20, max_age_s=60.0))
    for call in CALLS:
        await journal.open_call(call)
        await journal.append([Turn(call.key, "item-1", 1, "caller", text, call.opened_at_s)])
    await journal.learn_agent(CALLS[0].ref, "agent-ada")
    await journal.aclose()


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    (tmp_path / "data").mkdir(mode=0o700)
    anyio.run(fill, tmp_path / "data" / "journal.db")
    return Cli(monkeypatch, tmp_path / "data")


def test_each_command_is_in_one_group_and_what_erases_is_last() -> None:
    """Help leads from running to erasing, and leaves no command out."""
    root = typer.main.get_command(cli.app)
    shown = root.list_commands(typer.Context(root))  # type: ignore[attr-defined]
    assert sorted(shown) == sorted(root.commands)  # type: ignore[attr-defined]
    assert (shown[0], shown[-1]) == ("run", "forget")


def test_help_has_a_heading_for_each_group(command: Cli) -> None:
    """Help lists running, inspecting, repairing, moving and erasing, in that order."""
    output = command.ok("--help")
    places = [
        output.index(f"\n{heading}:\n") for heading in ("Run", "Inspect", "Repair", "Move", "Erase")
    ]
    assert places == sorted(places)
    assert output.index("forget") > places[-1]


def test_a_call_takes_one_line_of_eighty_columns(command: Cli) -> None:
    """`calls list` shows each call on one line, by an id that can be copied."""
    lines = command.ok("calls", "list").splitlines()
    assert max(map(len, lines)) <= 80
    for call in CALLS:
        (line,) = [line for line in lines if short_id(call.key) in line]
        assert call.channel in line
    assert len([line for line in lines if line.strip()]) == 2 + len(CALLS)


AGENT = "agent-0199c1f2-7a4e-7c11-9d3e-5b1f0c6a2e44"


def shown(capsys: pytest.CaptureFixture[str], columns: list[str], rows: list[list[str]]) -> str:
    show.table(columns, rows, empty="none")
    return capsys.readouterr().out


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
@pytest.mark.parametrize("name", ["1a2b3c4d", AGENT, f"{AGENT}\n{AGENT[::-1]}", "x" * 90])
@pytest.mark.parametrize("others", [1, 4, 6])
def test_what_a_row_is_named_by_is_never_broken(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    width: int,
    name: str,
    others: int,
) -> None:
    """An id can be copied from a table of any width; no cell is lost, however narrow it is."""
    monkeypatch.setenv("COLUMNS", str(width))
    cells = [f"cell{n}" for n in range(others)]
    output = shown(capsys, ["id", *(f"c{n}" for n in range(others))], [[name, *cells]])
    for part in name.splitlines():
        assert any(part in line for line in output.splitlines())
    assert all(cell in output.replace("\n", "") for cell in cells)


@pytest.mark.parametrize("width", [40, 80])
def test_every_id_of_a_list_is_taken_by_the_command_that_shows_it(command: Cli, width: int) -> None:
    """Each id of a call, a caller or a lane that a list prints is accepted by other commands."""
    listed = command.run("calls", "list", COLUMNS=str(width)).out
    for call in CALLS:
        assert short_id(call.key) in listed.split()
        if width == 80:
            assert call.caller_key[:8] in listed.split()
        named = command.run("export", "--caller", call.caller_key[:8])
        assert [json.loads(line)["call"] for line in named.out.splitlines()] == [call.key]
    lanes = command.run("outbox", "list", COLUMNS=str(width)).out
    for call in CALLS:
        lane = call.ref.lane
        assert short_id(lane) in lanes.split()
        for name in (short_id(lane), lane):
            assert f"lane   {lane}\n" in command.ok("outbox", "show", name)
            assert command.run("outbox", "show", name, "--json").json["lane"]["lane"] == lane


def test_a_beginning_that_is_nobodys_key_is_no_caller(command: Cli) -> None:
    """Digits of a number are not mistaken for a key, and a key that nobody has is an error."""
    for name in ("12025550", "0000000", "f" * 9):
        done = command.run("export", "--caller", name)
        assert done.code == 2
        assert "tel:NUMBER" in done.err


def test_a_move_prints_both_ids_whole(command: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 80 columns the ids of the agent and of the agent it became are both unbroken."""
    there = f"agent-{'0' * 36}"
    moves = [Move(AGENT, "Ada Lovelace of Acme", "moved", "blocks", there, (("human", 9),))]

    async def moved(*_: object, **__: object) -> list[Move]:
        return moves

    monkeypatch.setattr("sidecar.cli.at_letta.move_agents", moved)
    output = command.ok("agents", "move", "--all", "--to", "embedded", "--yes")
    assert {AGENT, there} <= set(output.split())
    assert max(map(len, output.splitlines())) <= 80


@pytest.mark.parametrize("call", CALLS)
def test_a_call_goes_by_its_short_id_everywhere(command: Cli, call: Call) -> None:
    """Key, id, short id and their first characters name a call to every command that takes one."""
    names = [call.key, call.call_id, short_id(call.key), short_id(call.key)[:5], call.key[:-2]]
    for name in [*names, call.call_id[:-2]]:
        assert command.run("calls", "show", name, "--json").json["call"] == call.key
        (line,) = command.ok("export", "--call", name).splitlines()
        assert json.loads(line)["call"] == call.key
        tailed = command.ok("calls", "tail", name, "--once", "--since-s", "1e9", "--json")
        assert [json.loads(one)["call"] for one in tailed.splitlines()] == [call.key]


def test_an_ambiguous_name_says_which_there_are(command: Cli) -> None:
    """A beginning that fits two calls is an error that names both, with their short ids."""
    done = command.run("calls", "show", "default/")
    assert done.code == 1
    for call in CALLS[:2]:
        assert f"{short_id(call.key)} ({call.key})" in done.err
    assert command.run("calls", "show", "nothing-like-it").code == 1
    assert command.run("calls", "show", "AJ").code == 1


@given(st.lists(st.text(min_size=1), unique=True, min_size=1), st.text(max_size=10))
def test_a_whole_key_always_names_its_call(ids: list[str], name: str) -> None:
    """A full key names only its own call, and every other match of a name is listed."""
    keys = [f"t/{call_id}" for call_id in ids]
    for key in keys:
        assert calls_named(key, keys) == [key]
        assert key in calls_named(short_id(key), keys) or short_id(key) in ids
    found = calls_named(name, keys)
    assert all(short_id(key) in several(found) for key in found[:5])


def test_words_forge_no_line_and_command_no_terminal(command: Cli) -> None:
    """No words can control a terminal or forge a line of output, and JSON keeps them whole."""
    call = CALLS[0].key
    for args in (
        ("calls", "list"),
        ("calls", "show", call),
        ("calls", "tail", "--once", "--since-s", "1e9"),
        ("calls", "tail", "--once", "--since-s", "1e9", "--json"),
        ("calls", "show", call, "--json"),
        ("export",),
        ("outbox", "list"),
        ("outbox", "list", "--json"),
    ):
        output = command.ok(*args)
        assert is_safe(output), args
        assert "\n00:00:00" not in output
    assert command.run("calls", "show", call, "--json").json["turns"][0]["text"] == EVIL
    exported = [json.loads(line) for line in command.ok("export").splitlines()]
    assert {turn["text"] for one in exported for turn in one["turns"]} == {EVIL}


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_of_another_encoding_ends_no_command(tmp_path: Path, encoding: str) -> None:
    """What a terminal can't show is escaped; JSON stays JSON, and loses nothing."""
    (tmp_path / "data").mkdir(mode=0o700)
    anyio.run(fill, tmp_path / "data" / "journal.db", "Grüße, 東京")
    environ = {"PATH": "/bin", "SIDECAR_DATA_DIR": str(tmp_path / "data")}
    environ["PYTHONIOENCODING"] = encoding
    for args in (["calls", "show", CALLS[0].key], ["calls", "show", CALLS[0].key, "--json"]):
        done = subprocess.run(
            [sys.executable, "-m", "sidecar", *args], env=environ, capture_output=True, check=True
        )
        if "--json" in args:
            assert json.loads(done.stdout.decode(encoding))["turns"][0]["text"] == "Grüße, 東京"
        assert b"Gr" in done.stdout


@pytest.mark.parametrize(
    ("caller", "agent"),
    [("tel:+12025550147", "agent-ada"), (ADA, "agent-ada"), ("id:bob", "agent-1")],
)
@pytest.mark.parametrize("verb", ["log", "diff"])
def test_the_memory_of_a_caller_is_asked_for_by_the_caller(
    command: Cli, monkeypatch: pytest.MonkeyPatch, verb: str, caller: str, agent: str
) -> None:
    """A caller may be named in place of an agent: the journal knows who remembers the caller."""
    asked: list[str] = []

    async def changes(agent_id: str, limit: int) -> list[Any]:
        del limit
        asked.append(agent_id)
        return []

    monkeypatch.setattr("sidecar.cli.at_letta.memory_changes", changes)
    command.run("memory", verb, "--caller", caller)
    command.run("memory", verb, agent)
    assert asked == [agent, agent]


def test_a_caller_whom_no_agent_remembers_is_an_error(command: Cli) -> None:
    """A caller without an agent gets an error, not empty memory, as does naming both or neither."""
    done = command.run("memory", "log", "--caller", "id:carol")
    assert done.code == 1
    assert "no agent remembers this caller" in done.err
    assert command.run("memory", "log").code == 2
    assert command.run("memory", "log", "agent-1", "--caller", "id:bob").code == 2


BEGAN_S = 1_000_000.0
RELEASES: dict[str, tuple[str, str]] = {
    "retry": ("busy elsewhere", "Letta did not accept"),
    "unknown": ("broke off", "may have reached Letta"),
}


def looked(tmp_path: Path, *, now_s: float, running: bool = True) -> Finding:
    return lanes(load({"SIDECAR_DATA_DIR": str(tmp_path / "data")}), running=running, now_s=now_s)


@pytest.mark.parametrize("state", RELEASES)
def test_doctor_says_what_holds_a_lane(tmp_path: Path, state: str) -> None:
    """A delayed lane is a finding with how many, since when, why, and the command to inspect."""
    error, reason = RELEASES[state]

    async def fail() -> None:
        path = tmp_path / "data" / "journal.db"
        path.parent.mkdir()
        journal = await SqliteJournal.open(
            path, policy=PostPolicy(max_turns=20, max_age_s=60.0), clock=lambda: BEGAN_S
        )
        call = Call("t/c", AgentRef("t", agent_id="a"), "livekit", "", BEGAN_S)
        await journal.open_call(call)
        await journal.append([Turn(call.key, "i", 1, "caller", "hello", BEGAN_S)])
        await journal.close_call(call.key, epoch=1, at_s=BEGAN_S)
        (batch,) = await journal.claim(9, now_s=BEGAN_S + 1, post_timeout_s=1.0)
        await journal.release(
            batch,
            due_s=BEGAN_S + 99,
            unknown=state == "unknown",
            over=False,
            error=error,
            now_s=BEGAN_S + 2,
        )
        await journal.aclose()

    anyio.run(fail)
    found = looked(tmp_path, now_s=BEGAN_S + 60)
    assert (found.what, found.verdict) == ("lanes", "warning")
    assert "1 delayed, the oldest for 1 min 0 s" in found.found
    assert reason in found.found
    assert error in found.found
    assert "sidecar outbox list" in found.fix
    assert "sidecar run" in looked(tmp_path, now_s=BEGAN_S + 60, running=False).fix


def test_doctor_leaves_alone_what_only_waits_its_turn(command: Cli, tmp_path: Path) -> None:
    """New turns are no finding; an hour later, with no sidecar to send them, they are one."""
    assert looked(tmp_path / "no", now_s=0.0).verdict == "ok"
    now_s = time.time()
    assert looked(tmp_path, now_s=now_s).found == "3 waiting, none delayed"
    old = looked(tmp_path, now_s=now_s + 3_600, running=False)
    assert old.verdict == "warning"
    assert "3 delayed, the oldest for 1 h 0 min" in old.found
    assert "not sent yet" in old.found
    output = command.run("doctor", "--json")
    assert [one["what"] for one in output.json][-1] == "lanes"


@pytest.mark.parametrize("args", ["calls list", "--help"])
@pytest.mark.parametrize(("place", "code"), [("> /dev/full", 1), (">&-", 0), (">&- 2>&-", 0)])
def test_where_nothing_can_be_written_there_is_no_traceback(
    tmp_path: Path, args: str, place: str, code: int
) -> None:
    """A full disk behind the output is an error in one line; a closed stream is no error."""
    (tmp_path / "data").mkdir(mode=0o700)
    anyio.run(fill, tmp_path / "data" / "journal.db")
    environ = {"PATH": "/usr/bin:/bin", "SIDECAR_DATA_DIR": str(tmp_path / "data")}
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m sidecar {args} {place}"],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code
    assert done.stderr == (
        "sidecar: the output can't be written: No space left on device\n" if code else ""
    )


def test_doctor_finds_a_memory_that_can_t_be_read(command: Cli, tmp_path: Path) -> None:
    """An unreadable file of the embedded Letta is a bad finding that says which file to repair."""
    (tmp_path / "data" / "letta.db").write_bytes(b"no database, but long enough to be read as one")
    done = command.run("doctor", "--json")
    (letta,) = [one for one in done.json if one["what"] == "letta"]
    assert (done.code, letta["verdict"]) == (1, "bad")
    assert str(tmp_path / "data" / "letta.db") in letta["fix"]


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (apsw.FullError(), "free space"),
        (apsw.IOError(), "free space"),
        (OSError(28, "No space left on device"), "free space"),
        (PermissionError(13, "Permission denied"), "who may use it"),
        (apsw.NotADBError(), "move it away"),
    ],
)
def test_a_full_disk_is_no_reason_to_move_memory_away(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, remedy: str
) -> None:
    """Only a file that is not a database may be moved away: any other may hold memory."""

    def fail(_: Path) -> None:
        raise error

    monkeypatch.setattr("sidecar.letta.embedded.letta.EmbeddedStore", fail)
    with pytest.raises(LettaError) as caught:
        anyio.run(partial(EmbeddedLetta.open, tmp_path / "letta.db", llm=DemoModel()))
    assert remedy in caught.value.hint


def test_the_journal_says_where_it_is(command: Cli, tmp_path: Path) -> None:
    """`journal status` names the file and its version, and `journal migrate` has nothing to do."""
    found = json.loads(command.ok("journal", "status", "--json"))
    assert found["engine"] == "sqlite"
    assert found["place"] == str(tmp_path / "data" / "journal.db")
    assert (found["schema"], found["writers"]) == (found["newest"], [])
    assert "schema  " in command.ok("journal", "status")
    assert f"schema {found['newest']} -> {found['newest']}" in command.ok("journal", "migrate")


def test_a_journal_that_is_not_there_yet_has_no_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Before the first start there is no journal; `journal migrate` makes one."""
    (tmp_path / "new").mkdir(mode=0o700)
    command = Cli(monkeypatch, tmp_path / "new")
    assert "none yet" in command.ok("journal", "status")
    assert "schema 0 -> " in command.ok("journal", "migrate")
