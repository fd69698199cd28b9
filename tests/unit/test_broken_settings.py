"""Every command with each setting broken names it and a remedy, without a traceback."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import typer

from sidecar import cli
from sidecar.config.settings import Settings, environment_names
from tests.unit.test_cli import CALLS, Cli, Done, fill

pytestmark = pytest.mark.unit

COMMANDS: dict[str, tuple[str, ...]] = {
    "run": (),
    "check": (),
    "doctor": (),
    "ready": (),
    "forget": ("--caller", "id:ada"),
    "export": (),
    "backup": ("/proc/no-such-copy.db",),
    "calls list": (),
    "calls show": (CALLS[0].key,),
    "calls guide": (CALLS[0].key, "text"),
    "calls say": (CALLS[0].key, "text"),
    "calls hang-up": (CALLS[0].key,),
    "calls tail": ("--once",),
    "outbox list": (),
    "outbox show": ("batch",),
    "outbox replay": ("--all",),
    "outbox drop": ("--all",),
    "agents list": (),
    "agents create": ("name",),
    "agents show": ("agent-1",),
    "agents diff": ("agent-1",),
    "agents move": ("agent-1", "--to", "embedded"),
    "journal status": (),
    "journal migrate": (),
    "journal copy": ("/proc/no-such-journal.db", "/proc/no-such-copy.db"),
    "memory log": ("agent-1",),
    "memory diff": ("--caller", "id:ada"),
}
_KEY = "k" * 20
BROKEN: dict[str, tuple[str, ...]] = {
    "SIDECAR_HOST": ("two words", "http://127.0.0.1", "0.0.0.0"),
    "SIDECAR_PORT": ("70000", "-1"),
    "SIDECAR_LINK_TOKEN": ("short", "two words and more", "with\x01control-in-it"),
    "SIDECAR_TENANTS": ("{", '{"a": "short"}', "[" * 9_999),
    "SIDECAR_DATA_DIR": (
        *("/" + "x" * 300, "~nobody-of-that-name/x", "/dev/null", "/dev/null/x"),
        *('""', '"/srv/x"', "\ufeff"),
    ),
    "SIDECAR_JOURNAL_URL": (
        *("mysql://u:password@h/d", "localhost", "postgresql://h /d", "a\x01b"),
        "postgresql://u:password?x@h/d",
    ),
    "SIDECAR_SECRET": ("short", "two words and more", "with\x01control-in-it"),
    "SIDECAR_SPOOL_DIR": ("/" + "x" * 300, "''", "\u200b"),
    "SIDECAR_REDACT": ("everything", ",", " , ,"),
    "SIDECAR_CONSENT": ("maybe",),
    "SIDECAR_LETTA": ("cloud",),
    "SIDECAR_APP_SERVER_PROGRAM": ("/" + "x" * 300,),
    "SIDECAR_AGENT_ID": ("a/b", "a b"),
    "SIDECAR_AGENT_MAP": ("/no/such/file",),
    "SIDECAR_DEFAULT_REGION": ("UK", "XX", "+44"),
    "SIDECAR_VAPI_KEY": ("two words here", _KEY),
    "SIDECAR_VAPI_SECRET": ("two words here", _KEY),
    "SIDECAR_VAPI_TENANTS": ("{", '{"a": 1}'),
    "SIDECAR_VAPI_ASSISTANT": ("/no/such/file",),
    "SIDECAR_VAPI_ASSISTANT_ID": ("a/b",),
    "SIDECAR_LOG_LEVEL": ("loud",),
    "LETTA_BASE_URL": (
        "letta:8283",
        "http://",
        "http://host:0",
        "http://[::1",
        "ftp://host",
        "http://[v1.x]",
    ),
    "LETTA_APP_SERVER_URL": ("http://host", "ws://"),
    "LLM_BASE_URL": ("llm", "https://host/?key=1"),
    "LIVEKIT_URL": ("ws://host", "ws://me:password@host", "livekit"),
    "LIVEKIT_API_KEY": ("two words", "key"),
    "LIVEKIT_API_SECRET": ("two words", "secret"),
    "SIDECAR_LINK_URL": ("http://host/link", "ws://me:password@host/link"),
    "OTEL_TRACES_EXPORTER": ("smoke",),
    "OTEL_EXPORTER_OTLP_ENDPOINT": ("http://[::1", "http://"),
    "OTEL_EXPORTER_OTLP_PROTOCOL": ("carrier-pigeon",),
    "SIDECAR_NO_SUCH_SETTING": ("1",),
}
STARTS = ("check", "doctor", "run")
TOGETHER = {"LIVEKIT_API_KEY": "LIVEKIT_URL", "LIVEKIT_API_SECRET": "LIVEKIT_URL"}
"""The setting by which an error names a missing part of a group."""
VAPI = {"SIDECAR_VAPI_KEY": "SIDECAR_VAPI_SECRET", "SIDECAR_VAPI_SECRET": "SIDECAR_VAPI_KEY"}


def broken() -> Iterator[tuple[str, str]]:
    """Each setting with bad values: those listed for it, or else one of the wrong type."""
    for name, variables in environment_names().items():
        kind: Any = Settings.model_fields[name].annotation
        of_kind = {bool: "maybe", int: "many", float: "nan"}.get(kind, "with\x01control")
        for variable in variables:
            for value in BROKEN.get(variable, (of_kind,)):
                yield variable, value
    for variable in BROKEN.keys() - {v for known in environment_names().values() for v in known}:
        for value in BROKEN[variable]:
            yield variable, value


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    (tmp_path / "data").mkdir(mode=0o700)
    anyio.run(fill, tmp_path / "data" / "journal.db")
    return Cli(monkeypatch, tmp_path / "data")


def leaves(group: Any, *above: str) -> Iterator[str]:
    """Every command that is not a group."""
    for name, one in group.commands.items():
        if hasattr(one, "commands"):
            yield from leaves(one, *above, name)
        else:
            yield " ".join((*above, name))


def names(done: Done, variable: str) -> None:
    """Assert that a command exits with 2 and names the setting and a remedy, and no traceback."""
    output = done.out + done.err
    named = {variable, TOGETHER.get(variable, variable), VAPI.get(variable, variable)}
    line = next((line for line in output.splitlines() if any(f"{n}: " in line for n in named)), "")
    assert done.code == 2, (done.code, output)
    assert line.partition(": ")[2].strip(), output
    assert "Traceback" not in output


def test_every_command_is_in_the_table() -> None:
    """Every command is in the table, so that a new one is run with broken settings, too."""
    assert sorted(leaves(typer.main.get_command(cli.app))) == sorted(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_names_the_setting_that_is_wrong(command: Cli, name: str) -> None:
    """A command exits with 2 and names the setting and remedy, without repeating a secret value."""
    every = list(broken())
    first = {variable: (variable, value) for variable, value in reversed(every)}
    for variable, value in every if name in STARTS else first.values():
        done = command.run(*name.split(), *COMMANDS[name], **{variable: value})
        try:
            names(done, variable)
        except AssertionError as error:
            raise AssertionError(f"{name} with {variable}={value[:60]!r}: {error}") from error
        assert "password" not in (done.out + done.err).replace("user and password", "")


Setting = Callable[[Path], dict[str, str]]
USED: dict[str, tuple[str, Setting]] = {
    "a file for a data directory": (
        "SIDECAR_DATA_DIR",
        lambda at: {"SIDECAR_DATA_DIR": str(at / "file")},
    ),
    "a directory below a file": (
        "SIDECAR_DATA_DIR",
        lambda at: {"SIDECAR_DATA_DIR": str(at / "file" / "data")},
    ),
    "a link that leads nowhere": (
        "SIDECAR_DATA_DIR",
        lambda at: {"SIDECAR_DATA_DIR": str(at / "dangling")},
    ),
    "a link to itself": ("SIDECAR_DATA_DIR", lambda at: {"SIDECAR_DATA_DIR": str(at / "loop")}),
    "a data directory open to others": (
        "SIDECAR_DATA_DIR",
        lambda at: {"SIDECAR_DATA_DIR": str(at / "open")},
    ),
    "a file for a spool": ("SIDECAR_SPOOL_DIR", lambda at: {"SIDECAR_SPOOL_DIR": str(at / "file")}),
    "a map that is none": ("SIDECAR_AGENT_MAP", lambda at: {"SIDECAR_AGENT_MAP": str(at / "file")}),
    "an App Server that is none": (
        "SIDECAR_LETTA",
        lambda at: {
            "SIDECAR_LETTA": "app-server",
            "SIDECAR_APP_SERVER_PROGRAM": str(at / "file"),
        },
    ),
    "a directory in /proc": (
        "SIDECAR_DATA_DIR",
        lambda _: {"SIDECAR_DATA_DIR": "/proc/nope"},
    ),
    "a header that is none": (
        "OTEL_EXPORTER_OTLP_HEADERS",
        lambda _: {
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
            "OTEL_EXPORTER_OTLP_HEADERS": "password",
        },
    ),
    "an assistant that is none": (
        "SIDECAR_VAPI_ASSISTANT",
        lambda at: {"SIDECAR_VAPI_ASSISTANT": str(at / "file")},
    ),
    "a user in the model's URL, and a key": (
        "LLM_BASE_URL",
        lambda _: {"LLM_BASE_URL": "http://me:password@llm/v1", "OPENAI_API_KEY": _KEY},
    ),
    "a user in Letta's URL, and a key": (
        "LETTA_BASE_URL",
        lambda _: {"LETTA_BASE_URL": "http://me:password@letta", "LETTA_API_KEY": _KEY},
    ),
    "a user in the App Server's URL, and a token": (
        "LETTA_APP_SERVER_URL",
        lambda _: {
            "LETTA_APP_SERVER_URL": "ws://me:password@letta",
            "LETTA_APP_SERVER_TOKEN": _KEY,
        },
    ),
}


def made(tmp_path: Path) -> Path:
    """Make the things that settings may name by mistake, unless they exist."""
    if (tmp_path / "file").exists():
        return tmp_path
    (tmp_path / "file").write_text("no JSON")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    return tmp_path


@pytest.mark.parametrize("name", STARTS)
def test_check_doctor_and_run_agree(command: Cli, tmp_path: Path, name: str) -> None:
    """`check`, `doctor` and `run` name the same setting for a value that a start can't use."""
    for variable, settings in USED.values():
        names(command.run(name, **settings(made(tmp_path))), variable)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in STARTS])
def test_what_is_unusable_breaks_no_command(command: Cli, tmp_path: Path, name: str) -> None:
    """A command that needs the unusable thing exits with 2 and names it; others still work."""
    for variable, settings in USED.values():
        done = command.run(*name.split(), *COMMANDS[name], **settings(made(tmp_path)))
        assert done.code in {0, 1, 2}
        if done.code == 2:
            names(done, variable)


@pytest.mark.parametrize("host", ["2001:db8::1", "192.0.2.1", "256.1.1.1", "no.such.invalid", "*"])
def test_an_address_of_no_machine_or_another_is_named(command: Cli, host: str) -> None:
    """`check` and `run` refuse a wrong host by its setting, and `doctor` reports it."""
    settings = {"SIDECAR_HOST": host, "SIDECAR_LINK_TOKEN": _KEY, "SIDECAR_PORT": "0"}
    for name in ("check", "run"):
        names(command.run(name, **settings), "SIDECAR_HOST")
    done = command.run("doctor", **settings)
    assert done.code == 1
    assert "fix: SIDECAR_HOST" in done.out


def test_addresses_of_version_6_are_taken(command: Cli) -> None:
    """IPv6 addresses of this machine are accepted without brackets, and refused with them."""
    for host in ("::1", "::ffff:127.0.0.1"):
        assert command.run("check", SIDECAR_HOST=host, SIDECAR_LINK_TOKEN=_KEY).code == 0
    names(command.run("check", SIDECAR_HOST="[::1]", SIDECAR_LINK_TOKEN=_KEY), "SIDECAR_HOST")


@pytest.mark.parametrize("end", ["\r", " ", "\t", "\u00a0", " \r\n"])
def test_blanks_behind_a_value_change_nothing(command: Cli, end: str) -> None:
    """Blanks behind a value, such as a Windows editor's carriage return, change no command."""
    clean = {"SIDECAR_PORT": "0", "SIDECAR_DEFAULT_REGION": "gb", "LLM_MODEL": "m"}
    clean |= {"SIDECAR_LINK_TOKEN": _KEY, "SIDECAR_LOG_JSON": "1"}
    for args in (("check",), ("check", "--json"), ("calls", "list", "--json")):
        output = command.run(*args, **clean)
        assert output.code == 0
        assert command.run(*args, **{name: f"{v}{end}" for name, v in clean.items()}) == output
        assert command.run(*args, **clean, LLM_API_KEY=end, SIDECAR_HOST=end) == output


@pytest.mark.parametrize(
    ("args", "settings"),
    [
        (("run",), {"SIDECAR_DEFAULT_REGION": "UK"}),
        (("calls", "list"), {"LETTA_BASE_URL": "letta:8283"}),
        (("doctor",), {"LLM_BASE_URL": "http://me:password@llm/v1", "LLM_API_KEY": _KEY}),
        (("check",), {"SIDECAR_DATA_DIR": "/dev/null"}),
    ],
)
def test_a_process_of_its_own_ends_so_too(args: tuple[str, ...], settings: dict[str, str]) -> None:
    """A separate process exits with 2 and names the setting, without a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "sidecar", *args],
        env={"PATH": "/usr/bin:/bin", **settings},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    names(Done(done.returncode, done.stdout, done.stderr), next(iter(settings)))


def test_a_directory_that_may_not_be_used_is_named(
    command: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every command names the setting of a directory that it may not use, without a traceback."""
    allowed = os.access

    def refuses(path: str | Path, mode: int) -> bool:
        return Path(path) != tmp_path / "data" and allowed(path, mode)

    monkeypatch.setattr(os, "access", refuses)
    for name, arguments in COMMANDS.items():
        done = command.run(*name.split(), *arguments)
        names(done, "SIDECAR_DATA_DIR")


@pytest.mark.parametrize("name", ["check", "doctor", "run", "agents list"])
@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("NO_PROXY", "localhost,[::1]"),
        ("ALL_PROXY", "carrier://pigeon"),
        ("SSL_CERT_FILE", "/no/such/file"),
    ],
)
def test_what_a_connection_takes_from_the_environment(
    command: Cli, name: str, variable: str, value: str
) -> None:
    """A proxy or certificate that can't be used is named with a remedy, and the exit code is 2."""
    done = command.run(*name.split(), LETTA_API_KEY=_KEY, **{variable: value})
    names(done, "HTTPS_PROXY")
    assert variable in done.out + done.err
