"""The command line as separate processes, while a sidecar runs and after it stopped."""

import contextlib
import json
import os
import pty
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

import pytest

from sidecar.cli import app as cli_app
from sidecar.private import STATE_NAMES
from tests.console_page import opened
from tests.cpu_time import is_within
from tests.sidecar_process import (
    SidecarProcess,
    eventually,
    get,
    sidecar_command,
    without_settings,
)

pytestmark = pytest.mark.e2e

T = TypeVar("T")
JOURNAL = ("journal.db", "journal.db-wal", "journal.db-shm")
SECRET = "secret-0123456789abcdef"
FACT = "I keep a parrot called Barnaby the Ninth in my kitchen"


class Cli:
    """`python -m sidecar …` on one data directory."""

    def __init__(self, data_dir: Path, **env: str) -> None:
        self._data_dir = data_dir
        self._env = env

    def run(
        self, *args: str, stdin: str = "", terminal: int | None = None
    ) -> subprocess.CompletedProcess[str]:
        env = without_settings() | {
            "SIDECAR_DATA_DIR": str(self._data_dir),
            "SIDECAR_LETTA": "embedded",
        }
        env |= {"COLUMNS": "80", **self._env}
        return sidecar_command(*args, env=env, stdin=stdin, stderr=terminal)

    def ok(self, *args: str, stdin: str = "") -> str:
        done = self.run(*args, stdin=stdin)
        assert done.returncode == 0, (args, done.stdout, done.stderr)
        return done.stdout

    def json(self, *args: str) -> Any:
        return json.loads(self.ok(*args, "--json"))


@pytest.fixture
def sidecar(tmp_path: Path) -> Iterator[SidecarProcess]:
    with SidecarProcess(tmp_path / "data") as process:
        yield process


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path / "data")


def of_files_below(directory: Path, of: Callable[[Path], T]) -> dict[Path, T]:
    """Look at every file below a directory that processes write to."""
    while True:
        with contextlib.suppress(FileNotFoundError):  # a file was replaced meanwhile: look again
            return {path: of(path) for path in directory.rglob("*") if path.is_file()}


def bytes_below(directory: Path) -> dict[str, bytes]:
    return {str(path): raw for path, raw in of_files_below(directory, Path.read_bytes).items()}


def talked(sidecar: SidecarProcess, caller: str, *said: str) -> None:
    with opened(sidecar) as page:
        page.call(caller)
        for text in said:
            page.say(text)
        page.hang_up()
    eventually(lambda: sidecar.undelivered() == 0)


def test_calls_are_seen_while_the_server_runs(sidecar: SidecarProcess, cli: Cli) -> None:
    """`calls list`, `show`, `tail`, `outbox list` and `export` read while a sidecar runs."""
    talked(sidecar, "ada", FACT)
    with opened(sidecar) as page:
        page.call("bob")
        page.say("Hello there")
        listed = cli.json("calls", "list")
        assert [row["closed_at_s"] is None for row in listed] == [True, False]
        assert len(cli.json("calls", "list", "--live")) == 1
        ended = listed[1]["call"]
        shown = cli.json("calls", "show", ended.partition("/")[2])
        assert shown["turns"][0]["text"] == FACT
        tailed = cli.ok("calls", "tail", "--once", "--since-s", "600")
        assert "Hello there" in tailed
        assert cli.json("outbox", "list")["dead"] == []
        lines = cli.ok("export").splitlines()
        assert [json.loads(line)["call"] for line in lines] == [ended, listed[0]["call"]]


def test_tables_fit_eighty_columns(sidecar: SidecarProcess, cli: Cli) -> None:
    """Tables are at most 80 columns wide, and commands accept the ids in them."""
    talked(sidecar, "ada", "Hello")
    (call,) = cli.json("calls", "list")
    for args in (("calls", "list"), ("outbox", "list"), ("agents", "list")):
        lines = cli.ok(*args).splitlines()
        assert max(len(line) for line in lines) <= 80
    assert call["short_id"] in cli.ok("calls", "list").split()
    (agent,) = cli.json("agents", "list")
    assert agent["agent_id"] in cli.ok("agents", "list").split()
    assert cli.json("calls", "show", call["short_id"])["call"] == call["call"]


def test_agents_are_listed_shown_and_compared(sidecar: SidecarProcess, cli: Cli) -> None:
    """The caller's agent and its blocks are shown, and the kept copy equals Letta's."""
    talked(sidecar, "ada", "My name is Ada.")
    (agent,) = cli.json("agents", "list")
    blocks = cli.json("agents", "show", agent["agent_id"])
    assert any("Ada" in block["value"] for block in blocks)
    eventually(lambda: cli.run("agents", "diff", agent["agent_id"]).returncode == 0)
    assert cli.run("agents", "diff", "agent-none").returncode == 1


def test_forget_looks_first_then_leaves_no_byte(
    sidecar: SidecarProcess, cli: Cli, tmp_path: Path
) -> None:
    """A dry run erases nothing, and --yes leaves no byte of the caller and keeps others' data."""
    talked(sidecar, "ada", FACT, "my name is Ada")
    talked(sidecar, "bob", "My name is Bob and I juggle")
    plan = cli.json("forget", "--caller", "id:ada")
    assert not plan["done"]
    assert (plan["calls"], plan["turns"], len(plan["agents"])) == (1, 4, 1)
    assert any(b"Barnaby" in raw for raw in bytes_below(tmp_path / "data").values())
    report = cli.json("forget", "--caller", "id:ada", "--yes")
    assert report["done"]
    assert report["traces"] == []
    assert report["searched"] >= 2
    left = bytes_below(tmp_path / "data")
    assert [path for path, raw in left.items() if b"Barnaby" in raw] == []
    assert [path for path, raw in left.items() if plan["caller_key"].encode() in raw] == []
    assert any(b"juggle" in raw for raw in left.values())
    assert len(cli.json("calls", "list")) == 1
    with opened(sidecar) as page:
        page.call("ada")
        assert "Ada" not in page.say("What is my name?")


def test_forget_works_with_no_sidecar_running(
    sidecar: SidecarProcess, cli: Cli, tmp_path: Path
) -> None:
    """With no sidecar running, the command opens the journal itself and leaves no byte either."""
    talked(sidecar, "ada", FACT)
    sidecar.stop()
    assert not (tmp_path / "data" / "control.json").exists()
    report = cli.json("forget", "--caller", "id:ada", "--yes")
    assert report["turns"] == 2
    assert b"Barnaby" not in b"".join(bytes_below(tmp_path / "data").values())


def test_a_caller_on_the_line_is_not_forgotten(sidecar: SidecarProcess, cli: Cli) -> None:
    """While the caller talks, forget refuses, says why, and erases nothing."""
    with opened(sidecar) as page:
        page.call("ada")
        page.say(FACT)
        done = cli.run("forget", "--caller", "id:ada", "--yes")
        assert done.returncode == 1
        assert "live" in done.stderr
        assert len(cli.json("calls", "list")) == 1


def test_wrong_use_is_code_two(cli: Cli) -> None:
    """A wrong caller, a misspelt option and a wrong setting exit with 2."""
    assert cli.run("forget", "--caller", "ada").returncode == 2
    assert cli.run("calls", "list", "--lmit", "3").returncode == 2
    wrong = cli.run("check")
    assert wrong.returncode == 0
    bad = Cli(Path("/nonexistent"), SIDECAR_PORT="x").run("check")
    assert bad.returncode == 2
    assert "SIDECAR_PORT" in bad.stderr


def test_check_loads_what_the_settings_name(tmp_path: Path) -> None:
    """A callable or a map that a start can't use is already a wrong setting in `check`."""
    (tmp_path / "map.json").write_text("[]")
    for name, value in (
        ("SIDECAR_REDACT", "cards,no_such_module:scrub"),
        ("SIDECAR_AGENT_MAP", str(tmp_path / "map.json")),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "1"),
    ):
        otlp = {"OTEL_TRACES_EXPORTER": "otlp"} if name.startswith("OTEL") else {}
        done = Cli(tmp_path, **{name: value}, **otlp).run("check", "--json")
        assert done.returncode == 2
        (field,) = json.loads(done.stdout)["fields"]
        assert field["field"] in {name, "OTEL_*"}
        assert field["remedy"]


def test_without_a_journal_it_says_so(cli: Cli) -> None:
    """Before the first start, commands exit with 1 and a hint, and without a traceback."""
    for args in (("calls", "list"), ("outbox", "list"), ("forget", "--caller", "id:ada")):
        done = cli.run(*args)
        assert done.returncode == 1
        assert "no journal" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("sidecar")
def test_doctor_finds_what_is_wrong(cli: Cli, tmp_path: Path) -> None:
    """With a running sidecar nothing is bad, and each bad finding has a one-line fix."""
    findings = {f["what"]: f for f in cli.json("doctor")}
    assert {"sqlite", "permissions", "disk", "fsync", "clock", "bind", "letta"} <= set(findings)
    assert {"language model", "livekit", "traces", "sidecar"} <= set(findings)
    assert not [f for f in findings.values() if f["verdict"] == "bad"]
    assert findings["sidecar"]["found"].startswith("running, ")
    ill = Cli(
        tmp_path / "data",
        LETTA_BASE_URL="http://127.0.0.1:9",
        LLM_BASE_URL="http://127.0.0.1:9/v1",
        LIVEKIT_URL="ws://127.0.0.1:9",
        LIVEKIT_API_KEY="k",
        LIVEKIT_API_SECRET="s",
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9",
        SIDECAR_HOST="0.0.0.0",
        SIDECAR_LINK_TOKEN="a-token-of-the-tests",
    )
    done = ill.run("doctor", "--json")
    assert done.returncode == 1
    ill_found = {f["what"]: f for f in json.loads(done.stdout)}
    assert ill_found["traces"]["verdict"] == "warning"
    bad = {what: f for what, f in ill_found.items() if f["verdict"] == "bad"}
    assert set(bad) == {"letta", "language model", "livekit"}
    for finding in bad.values():
        assert finding["fix"]
        assert "\n" not in finding["fix"]


def test_a_public_bind_without_a_secret_does_not_start(tmp_path: Path) -> None:
    """Every command refuses a public bind without a secret, and doctor reports it as well."""
    cli = Cli(tmp_path / "data", SIDECAR_HOST="0.0.0.0", SIDECAR_PORT="x")
    done = cli.run("doctor", "--json")
    assert done.returncode == 2
    findings = json.loads(done.stdout)
    assert {"sqlite", "permissions", "disk", "clock"} <= {f["what"] for f in findings}
    assert [f["verdict"] for f in findings if f["what"] == "settings"] == ["bad"]
    done = Cli(tmp_path / "data", SIDECAR_HOST="0.0.0.0").run("doctor")
    assert done.returncode == 2
    assert "fix: SIDECAR_HOST" in done.stdout
    assert "SIDECAR_LINK_TOKEN" in done.stdout
    for command in (["run"], ["calls", "list"], ["outbox", "list"]):
        refused = Cli(tmp_path / "data", SIDECAR_HOST="0.0.0.0").run(*command)
        assert refused.returncode == 2
        assert "SIDECAR_LINK_TOKEN" in refused.stderr


def test_every_command_speaks_json(tmp_path: Path) -> None:
    """Each command except `run` has --json, and its JSON errors name field and remedy."""
    commands = {
        f"{group.name} {command.name}": command.callback
        for group in cli_app.registered_groups
        if group.typer_instance is not None
        for command in group.typer_instance.registered_commands
    }
    commands |= {
        command.name or str(getattr(command.callback, "__name__", "")): command.callback
        for command in cli_app.registered_commands
    }
    assert len(commands) >= 16
    taking = {
        name
        for name, callback in commands.items()
        if callback and "as_json" in signature(callback).parameters
    }
    assert commands.keys() - taking == {"run"}
    missing = Cli(tmp_path / "data").run("calls", "show", "no-such", "--json")
    assert missing.returncode == 1
    assert "no journal" in json.loads(missing.stdout)["error"]
    wrong = Cli(tmp_path / "data", SIDECAR_PORT="x").run("check", "--json")
    assert wrong.returncode == 2
    assert json.loads(wrong.stdout)["fields"][0]["field"] == "SIDECAR_PORT"


def test_long_work_shows_a_bar_on_a_terminal(
    sidecar: SidecarProcess, cli: Cli, tmp_path: Path
) -> None:
    """A terminal shows the progress of an export, and an unknown call makes no file."""
    talked(sidecar, "ada", "Hello")
    assert cli.run("export", "--call", "no-such", "--out", str(tmp_path / "out")).returncode == 1
    assert not (tmp_path / "out").exists()
    seen, terminal = pty.openpty()
    with os.fdopen(seen, "rb", buffering=0) as screen:
        try:
            exported = cli.run(
                "export", "--out", str(tmp_path / "out"), "--json", terminal=terminal
            )
        finally:
            os.close(terminal)
        assert b"exporting" in screen.read(4096)
    assert json.loads(exported.stdout) == {"calls": 1, "out": str(tmp_path / "out")}


def test_control_is_for_this_user_alone(sidecar: SidecarProcess, tmp_path: Path) -> None:
    """The token file is 0600, and the routes refuse a wrong token or a browser."""
    path = tmp_path / "data" / "control.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    control = json.loads(path.read_text())
    url = f"{sidecar.url}/admin/status"
    assert get(url)[0] == 401
    headers = {"Authorization": f"Bearer {control['token']}"}
    asked = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(asked, timeout=5) as answer:
        assert json.loads(answer.read())["pid"] == sidecar.pid
    for name, value, status in (
        ("Origin", sidecar.url, 403),
        ("Authorization", "Bearer wrong", 401),
    ):
        request = urllib.request.Request(url, headers={**headers, name: value})
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=5)
        assert refused.value.code == status
        refused.value.close()


def test_a_live_call_is_commanded(sidecar: SidecarProcess, cli: Cli) -> None:
    """Guidance, a say and a hang-up reach a live call, and fail clearly for an ended one."""
    with opened(sidecar) as page:
        call = page.call("ada")
        page.say("Hello.")
        cli.ok("calls", "guide", call, "Offer a call back.")
        short = cli.json("calls", "list", "--live")[0]["short_id"]
        cli.ok("calls", "say", short, "One moment, please.")
        assert page.until("agent.said")["text"] == "One moment, please."
        turns = cli.json("calls", "show", call)["turns"]
        assert [(t["speaker"], t["text"]) for t in turns][-1] == ("agent", "One moment, please.")
        cli.ok("calls", "hang-up", call)
        page.until("call", call=call, live=False)
    done = cli.run("calls", "say", call, "Too late.")
    assert done.returncode == 1
    assert "is live" in done.stderr


def test_words_cannot_command_the_terminal(sidecar: SidecarProcess, cli: Cli) -> None:
    """Escape sequences in a caller's words never reach the terminal."""
    talked(sidecar, "ada", "look \x1b]0;owned\x07 here \x1b[31mred")
    call = cli.json("calls", "list")[0]["call"]
    shown = cli.ok("calls", "show", call)
    assert "\x1b" not in shown
    assert "owned" in shown


def test_help_is_instant() -> None:
    """`sidecar --help` loads neither the server nor the SDKs, and costs under 0.3 s of CPU."""

    def cost_s() -> float:
        before_s = os.times().children_user
        said = subprocess.run(
            [sys.executable, "-m", "sidecar", "--help"], capture_output=True, timeout=20, check=True
        )
        assert b"doctor" in said.stdout
        return os.times().children_user - before_s

    # The least of three: what runs beside it on the same core makes each of them dearer.
    assert is_within(min(cost_s() for _ in range(3)), 0.3)
    code = "import sys, sidecar.cli; print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True
    ).stdout.split()
    assert not {"apsw", "anyio", "pydantic", "starlette", "letta_client", "livekit", "rich"} & set(
        loaded
    )


def test_everything_kept_is_private_and_goes_in_time(tmp_path: Path) -> None:
    """Every file is 0600 under any umask, and retention erases settled calls from all of them."""
    data = tmp_path / "data"
    umask = os.umask(0)
    try:
        sidecar = SidecarProcess(data).start()
    finally:
        os.umask(umask)
    with contextlib.ExitStack() as stack:
        stack.callback(sidecar.stop)
        talked(sidecar, "ada", FACT)
        mode_of = of_files_below(data, lambda path: stat.S_IMODE(path.stat().st_mode))
        modes = {path.name: mode for path, mode in mode_of.items()}
        assert {*JOURNAL, "letta.db-wal"} <= modes.keys()
        assert {name: oct(mode) for name, mode in modes.items() if mode != 0o600} == {}
        assert stat.S_IMODE(data.stat().st_mode) == 0o700
        assert {p.name for p in data.iterdir()} <= STATE_NAMES
    with SidecarProcess(data, {"SIDECAR_RETENTION_DAYS": "0.000001"}):
        eventually(lambda: Cli(data).json("calls", "list") == [])
        files = partial(of_files_below, data, Path.read_bytes)
        eventually(
            lambda: not [p for p, raw in files().items() if p.name in JOURNAL and b"Barnaby" in raw]
        )


def test_redaction_keeps_numbers_from_the_journal(tmp_path: Path) -> None:
    """With SIDECAR_REDACT a card number is in no file or log line, and the rest is kept."""
    data = tmp_path / "data"
    with SidecarProcess(data, {"SIDECAR_REDACT": "cards,emails"}) as sidecar:
        talked(sidecar, "ada", "My card is 4242 4242 4242 4242, write to ann@example.org")
        (row,) = Cli(data).json("calls", "list")
        shown = Cli(data).json("calls", "show", row["call"])
        assert shown["turns"][0]["text"] == "My card is [card], write to [e-mail]"
        found = b"".join(bytes_below(data).values())
        assert b"4242 4242" not in found
        assert b"ann@example.org" not in found
    assert "4242 4242" not in "".join(sidecar.log)


def reported(sidecar: SidecarProcess, call_id: str, number: str) -> None:
    """Send VAPI's report of a call."""
    said = [{"role": "bot", "message": "Hello?"}, {"role": "user", "message": FACT}]
    call = {"id": call_id, "type": "inboundPhoneCall", "customer": {"number": number}}
    message = {"type": "end-of-call-report", "call": call, "artifact": {"messages": said}}
    request = urllib.request.Request(
        f"{sidecar.url}/vapi/webhook",
        json.dumps({"message": message}).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {SECRET}"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert answer.status == 200


@pytest.fixture
def of_vapi(tmp_path: Path) -> Iterator[SidecarProcess]:
    keys = {"SIDECAR_VAPI_KEY": f"{SECRET}-model", "SIDECAR_VAPI_SECRET": SECRET}
    with SidecarProcess(tmp_path / "data", keys) as process:
        yield process


def test_a_report_repeated_after_the_erasure_brings_nothing_back(
    of_vapi: SidecarProcess, cli: Cli, tmp_path: Path
) -> None:
    """A report repeated after `forget` is accepted, but no word and no agent come back."""
    sidecar, ada, call_id = of_vapi, "+12025550143", "01a0a3c4-6b1e-7aa2-9d0e-3f5b8a1c2d44"
    reported(sidecar, call_id, ada)
    eventually(lambda: sidecar.undelivered() == 0)
    plan = cli.json("forget", "--caller", f"tel:{ada}")
    assert (plan["calls"], plan["tombstones"], len(plan["agents"])) == (1, 1, 1)
    assert cli.json("forget", "--caller", f"tel:{ada}", "--yes")["traces"] == []
    for _ in range(2):
        reported(sidecar, call_id, ada)
        assert cli.json("calls", "list") == []
        assert cli.json("agents", "list") == []
        for path, raw in bytes_below(tmp_path / "data").items():
            assert b"Barnaby" not in raw, path
            assert call_id.encode() not in raw, path
        sidecar.stop()
        sidecar.start()
    reported(sidecar, "another-call", ada)
    eventually(lambda: sidecar.undelivered() == 0)
    assert len(cli.json("calls", "list")) == 1
    assert len(cli.json("agents", "list")) == 1
