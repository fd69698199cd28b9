"""Settings."""

import json
import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.config.agent_map import read_agent_map
from sidecar.config.load import for_a_worker, load
from sidecar.config.settings import Settings, environment_names
from sidecar.environment import said
from sidecar.errors import ConfigError
from sidecar.livekit import LinkSettings, language_model

pytestmark = pytest.mark.unit

SECRET = "a-secret-of-tests"


def wrong(environ: dict[str, str]) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        load(environ)
    return dict(caught.value.fields)


def test_no_setting_is_needed() -> None:
    """An empty environment gives loopback, the embedded Letta and the demo model."""
    settings = load({})
    assert settings.loopback
    assert settings.letta_generation == "local"
    assert not settings.llm_is_real


def test_every_wrong_field_is_named_with_its_remedy() -> None:
    """Three mistakes give three lines, not only the first."""
    fields = wrong(
        {"SIDECAR_PORT": "many", "SIDECAR_POST_MAX_TURNS": "0", "LETTA_BASE_URL": "letta:8283"}
    )
    assert set(fields) == {"SIDECAR_PORT", "SIDECAR_POST_MAX_TURNS", "LETTA_BASE_URL"}
    assert all(fields.values())


def test_a_token_is_replaced_without_a_gap() -> None:
    """During a rotation the old and the new token both open the tenant `default`."""
    old, new = "the-old-token-long-enough", "the-new-token-long-enough"
    settings = load({"SIDECAR_TENANTS": json.dumps({"default": old}), "SIDECAR_LINK_TOKEN": new})
    assert settings.tokens == {old: "default", new: "default"}
    assert settings.tenant_names == {"default"}


def test_a_misspelt_setting_is_refused_with_the_right_name() -> None:
    """A misspelt setting is refused, and the error suggests the right name."""
    assert "SIDECAR_FRESH_S" in wrong({"SIDECAR_FRESH": "1"})["SIDECAR_FRESH"]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "example.org"])
def test_beyond_this_machine_a_secret_is_needed(host: str) -> None:
    """Binding to the network without a token is refused and names the setting that fixes it."""
    assert "SIDECAR_LINK_TOKEN" in wrong({"SIDECAR_HOST": host})["SIDECAR_HOST"]
    assert load({"SIDECAR_HOST": host, "SIDECAR_LINK_TOKEN": SECRET}).host == host


def test_half_of_livekit_is_refused() -> None:
    """Some of LiveKit's three settings without the others are refused."""
    assert "LIVEKIT_API_SECRET" in wrong({"LIVEKIT_URL": "ws://x"})["LIVEKIT_URL"]


def test_two_tenants_with_one_token_are_refused() -> None:
    """Two tenants with the same token are refused, since the token names the tenant."""
    assert wrong({"SIDECAR_TENANTS": json.dumps({"a": SECRET, "b": SECRET})})
    assert wrong({"SIDECAR_TENANTS": json.dumps({"a": SECRET}), "SIDECAR_LINK_TOKEN": SECRET})


@pytest.mark.parametrize("secret", ["", " ", "short", " " * 20])
def test_a_secret_is_long_enough_not_to_be_guessed(secret: str) -> None:
    """A tenant's token or secret that is short enough to guess is refused."""
    assert "SIDECAR_TENANTS" in wrong({"SIDECAR_TENANTS": json.dumps({"acme": secret})})
    vapi = {"acme": {"key": secret, "secret": secret}}
    assert wrong({"SIDECAR_VAPI_TENANTS": json.dumps(vapi)})


def test_one_agent_for_several_tenants_is_refused() -> None:
    """One agent for several tenants is refused, since tenants share nothing."""
    tenants = json.dumps({"a": SECRET, "b": SECRET + "b"})
    assert "SIDECAR_AGENT_ID" in wrong({"SIDECAR_TENANTS": tenants, "SIDECAR_AGENT_ID": "agent-1"})


def test_with_vapi_in_front_workers_need_a_token() -> None:
    """Where only VAPI's secrets name tenants, a LiveKit worker needs SIDECAR_LINK_TOKEN."""
    one = {"SIDECAR_VAPI_KEY": SECRET, "SIDECAR_VAPI_SECRET": SECRET}
    vapi = {"SIDECAR_VAPI_TENANTS": json.dumps({"acme": {"key": SECRET, "secret": SECRET}})}
    assert load({}).makes_token
    assert load(one).makes_token
    assert not load(vapi).makes_token
    assert not load({"SIDECAR_LINK_TOKEN": SECRET}).makes_token
    livekit = {"LIVEKIT_URL": "ws://127.0.0.1:7880", "LIVEKIT_API_KEY": "k"}
    livekit["LIVEKIT_API_SECRET"] = "s"
    assert load(one | livekit).makes_token
    assert "SIDECAR_LINK_TOKEN" in wrong(vapi | livekit)
    assert load(vapi | livekit | {"SIDECAR_LINK_TOKEN": SECRET}).tokens


def test_no_secret_is_printed() -> None:
    """Neither the printed settings nor their repr holds a key."""
    settings = load(
        {
            "LETTA_APP_SERVER_TOKEN": "canary",
            "OPENAI_API_KEY": "canary",
            "SIDECAR_LINK_TOKEN": "canary" + SECRET,
            "SIDECAR_TENANTS": json.dumps({"a": "canary2" + SECRET}),
            "LETTA_BASE_URL": "http://me:canary@letta.internal:8283",
            "LIVEKIT_URL": "wss://x",
            "LIVEKIT_API_KEY": "canary",
            "LIVEKIT_API_SECRET": "canary",
        }
    )
    assert "canary" not in str(settings.redacted())
    assert "canary" not in repr(settings)


def test_wrong_values_are_not_repeated_in_the_error() -> None:
    """A key pasted into the wrong setting is not repeated in the error."""
    with pytest.raises(ConfigError) as caught:
        load({"SIDECAR_PORT": "sk-canary", "LETTA_BASE_URL": "sk-canary"})
    assert "canary" not in str(caught.value)


VARIABLES = [name for names in environment_names().values() for name in names]
BLANKS = ("", " ", "\t", "\r", " \r\n", "\u00a0")
WORKERS = {
    "SIDECAR_LINK_URL": "ws://sidecar.example:8377/link",
    "SIDECAR_LINK_TOKEN": SECRET,
    "SIDECAR_DATA_DIR": "/data",
    "SIDECAR_SPOOL_DIR": "/spool",
    "SIDECAR_LOG_TEXT": "true",
    "SIDECAR_TRACE_TEXT": "on",
}


def good() -> dict[str, str]:
    """A valid value of each setting other than its default."""
    texts = {
        "SIDECAR_HOST": "::1",
        "SIDECAR_TENANTS": json.dumps({"acme": SECRET + "a"}),
        "SIDECAR_LINK_TOKEN": SECRET,
        "SIDECAR_DATA_DIR": "/data",
        "SIDECAR_SPOOL_DIR": "/spool",
        "SIDECAR_REDACT": "cards",
        "SIDECAR_CONSENT": "required",
        "LETTA_BASE_URL": "http://127.0.0.1:8283",
        "LETTA_APP_SERVER_URL": "ws://127.0.0.1:4500",
        "SIDECAR_LETTA": "embedded",
        "SIDECAR_APP_SERVER_PROGRAM": "/bin/letta",
        "SIDECAR_AGENT_MAP": __file__,
        "SIDECAR_DEFAULT_REGION": "FR",
        "SIDECAR_JOURNAL_URL": "postgresql://sidecar:word@db.example/journal?sslmode=require",
        "SIDECAR_SECRET": SECRET + "i",
        "LLM_BASE_URL": "https://llm.example/v1",
        "LIVEKIT_URL": "wss://livekit.example",
        "SIDECAR_VAPI_KEY": SECRET + "k",
        "SIDECAR_VAPI_SECRET": SECRET + "s",
        "SIDECAR_VAPI_TENANTS": json.dumps({"acme": {"key": SECRET + "1", "secret": SECRET + "2"}}),
        "SIDECAR_VAPI_ASSISTANT": __file__,
        "SIDECAR_LOG_LEVEL": "debug",
    }
    for name, variables in environment_names().items():
        field = Settings.model_fields[name]
        kind: Any = field.annotation
        off = "no" if field.default is True else "yes"
        text = {bool: off, int: "7", float: "2.5"}.get(kind, "text")
        texts.setdefault(variables[0], text)
    return texts


GOOD = good()
LIVEKIT = ("LIVEKIT_URL", "LIVEKIT_API_KEY", "LIVEKIT_API_SECRET")
TOGETHER = {
    "SIDECAR_VAPI_KEY": ("SIDECAR_VAPI_SECRET",),
    "SIDECAR_VAPI_SECRET": ("SIDECAR_VAPI_KEY",),
    "SIDECAR_VAPI_TENANTS": (),
    **dict.fromkeys(LIVEKIT, LIVEKIT),
}


def alone(name: str) -> dict[str, str]:
    """One setting, with the others that it needs."""
    return {one: GOOD[one] for one in (name, *TOGETHER.get(name, ()))}


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_blank_variable_is_unset(variable: str) -> None:
    """A setting that is empty or blank, as `X=` in an .env file, counts as unset."""
    for blank in BLANKS:
        assert load({variable: blank}) == load({})


@pytest.mark.parametrize("variable", [names[0] for names in environment_names().values()])
def test_blanks_around_a_value_are_no_part_of_it(variable: str) -> None:
    """Blanks around a value, such as a Windows editor's carriage return, change no setting."""
    clean = alone(variable)
    assert load(clean) != load({})
    for around in ("{}\r", "{} ", "\t{} \r\n"):
        assert load(clean | {variable: around.format(clean[variable])}) == load(clean)


def test_a_blank_first_name_leaves_it_to_the_second() -> None:
    """A blank first name of a setting does not hide the value under its second name."""
    settings = load({"SIDECAR_AGENT_ID": "", "LETTA_AGENT_ID": "agent-1"})
    assert settings.agent_id == "agent-1"
    assert load({"LLM_API_KEY": " ", "OPENAI_API_KEY": "sk-1"}).llm_is_real
    assert "LETTA_AGENT_ID" in wrong({"LETTA_AGENT_ID": "a/b"})


@given(st.sampled_from(sorted(WORKERS)), st.sampled_from(BLANKS), st.sampled_from(BLANKS))
def test_worker_and_sidecar_read_alike(name: str, before: str, after: str) -> None:
    """A worker and the sidecar read the same value from a variable, whatever blanks surround it."""
    environ = WORKERS | {name: f"{before}{WORKERS[name]}{after}"}
    worker, sidecar = LinkSettings.of(environ), load(environ)
    assert worker == LinkSettings.of(WORKERS)
    assert [worker.token] == list(sidecar.tokens)
    assert (worker.spool_dir, worker.log_text, worker.trace_text) == (sidecar.spool, True, True)
    blank = WORKERS | {name: before + after}
    unset = {key: value for key, value in WORKERS.items() if key != name}
    assert LinkSettings.of(blank) == LinkSettings.of(unset)
    assert load(blank) == load(unset)
    assert LinkSettings.of(blank).spool_dir == load(blank).spool


@pytest.mark.parametrize("blank", BLANKS)
def test_a_blank_variable_is_unset_to_the_parts_of_a_worker(blank: str) -> None:
    """A blank variable counts as unset in a worker's model and disclosure."""
    names = ("LLM_API_KEY", "OPENAI_API_KEY", "LLM_BASE_URL", "LLM_MODEL")
    assert language_model(dict.fromkeys(names, blank)).name == language_model({}).name
    clean = {"LLM_API_KEY": "sk-1", "LLM_BASE_URL": "http://llm.example/v1"}
    padded = {name: f"{blank}{value}{blank}" for name, value in clean.items()}
    assert language_model(padded | {"LLM_MODEL": blank}).name == language_model(clean).name
    code = "import voice_worker; print(repr(voice_worker.DISCLOSURE))"
    environ = {"PATH": "/bin", "VOICE_DISCLOSURE": blank, "LIVEKIT_AGENT_NAME": blank}
    if blank in {"", " \r\n"}:  # each is a process, so two of the six are enough
        done = subprocess.run(
            [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
        )
        assert "AI assistant" in done.stdout


def test_a_worker_refuses_what_the_sidecar_refuses_of_its_model() -> None:
    """A worker refuses a wrong model URL, or one with a password, as the sidecar does."""
    for url in ("llm", "http://me:secret@llm.example/v1"):
        environ = {"LLM_BASE_URL": url, "LLM_API_KEY": "sk-1"}
        with pytest.raises(ConfigError, match="LLM_BASE_URL"):
            language_model(environ)
        assert "LLM_BASE_URL" in wrong(environ)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("SIDECAR_LINK_URL", "http://sidecar.example/link"),
        ("SIDECAR_LINK_URL", "ws://:8377/link"),
        ("SIDECAR_LINK_URL", "ws://host:port/link"),
        ("SIDECAR_LINK_URL", "ws://host:70000/link"),
        ("SIDECAR_LINK_URL", "ws://ho st/link"),
        ("SIDECAR_LINK_URL", "ws://me:secret@host/link"),
        ("SIDECAR_LINK_URL", "ws://localhost@sidecar.example/link"),
        ("SIDECAR_LINK_URL", "ws://[::1/link"),
        ("SIDECAR_LINK_TOKEN", "two words and more"),
        ("SIDECAR_LINK_TOKEN", "schlüssel-mit-umlaut"),
        ("SIDECAR_LINK_TOKEN", "broken\r\nX-Header: 1"),
        ("SIDECAR_LINK_TOKEN", "not-utf-8-\udcff-at-all"),
        ("SIDECAR_SPOOL_DIR", "/spool\0"),
        ("SIDECAR_SPOOL_DIR", "/" + "x" * 300),
        ("SIDECAR_DATA_DIR", "~nobody-of-that-name/x"),
        ("SIDECAR_LOG_TEXT", "maybe"),
        ("SIDECAR_TRACE_TEXT", "2"),
    ],
)
def test_what_a_worker_can_not_use_is_named_at_both_ends(name: str, text: str) -> None:
    """A worker and the sidecar refuse the same value, each by the name of the variable."""
    with pytest.raises(ConfigError, match=name) as worker:
        LinkSettings.of({name: text})
    assert [field for field, _ in worker.value.fields] == [name]
    assert wrong({name: text}) == dict(worker.value.fields)
    assert text not in str(worker.value)


OF_A_PATH = sorted(
    Settings.model_fields[name].alias or ""
    for name in environment_names()
    if "Path" in str(Settings.model_fields[name].annotation)
)


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        *((quoted, "without quotes") for quoted in ('""', "''", '"/srv/x"', "'/srv/x'", '"~/x"')),
        *((unseen, "can't be seen") for unseen in ("\ufeff", "\u200b\u2060", "\ufeff/srv/x")),
        *((unseen, "can't be seen") for unseen in ("\u3164", "\u2800 \u2800", "\u00ad")),
    ],
)
def test_no_path_begins_with_a_quote_or_an_unseen_character(text: str, remedy: str) -> None:
    """A path in quotes, or one that begins with what can't be seen, is refused with the remedy."""
    assert {"SIDECAR_DATA_DIR", "SIDECAR_SPOOL_DIR", "SIDECAR_AGENT_MAP"} < set(OF_A_PATH)
    for name in OF_A_PATH:
        assert remedy in wrong({name: text})[name]
    for name in ("SIDECAR_DATA_DIR", "SIDECAR_SPOOL_DIR"):
        with pytest.raises(ConfigError, match=name):
            LinkSettings.of({name: text})


@pytest.mark.parametrize("text", [",", " , ", ",,,"])
def test_a_redaction_that_takes_nothing_out_is_refused(text: str) -> None:
    """Commas alone name nothing to take out, and are an error like a misspelt pattern."""
    assert "cards,emails" in wrong({"SIDECAR_REDACT": text})["SIDECAR_REDACT"]
    assert load({"SIDECAR_REDACT": "cards, "}).redact
    assert not load({"SIDECAR_REDACT": " "}).redact


@pytest.mark.parametrize(
    ("name", "text", "remedy"),
    [
        ("SIDECAR_DEFAULT_REGION", "UK", "UK is not a region; Great Britain is GB"),
        ("SIDECAR_DEFAULT_REGION", "XX", "two-letter"),
        ("SIDECAR_DEFAULT_REGION", "\u00df", "two-letter"),
        ("SIDECAR_HOST", "[::1]", "without brackets"),
        ("SIDECAR_AGENT_ID", "..", "by its id"),
        ("SIDECAR_DEFAULT_REGION", "+44", "two-letter"),
        ("LETTA_BASE_URL", "http://", "host"),
        ("LETTA_BASE_URL", "http://a..b", "host"),
        ("LETTA_BASE_URL", "http://letta:0", "port"),
        ("LETTA_BASE_URL", "http://letta/?key=1", "?"),
        ("LIVEKIT_URL", "wss://me:secret@livekit.example", "user and password"),
        ("SIDECAR_VAPI_ALLOW", "web search", "reasoning_effort"),
        ("SIDECAR_VAPI_ALLOW", "web_search,WEB", "reasoning_effort"),
        ("LLM_API_KEY", "sk-\u2013dash", "ASCII"),
        ("OPENAI_API_KEY", "sk 1", "spaces"),
        ("LETTA_API_KEY", "sk\t1", "ASCII"),
        ("SIDECAR_HOST", "http://127.0.0.1", "host"),
        ("SIDECAR_AGENT_ID", "agent 1", "spaces"),
        ("SIDECAR_POLL_S", "inf", "finite"),
        ("SIDECAR_POLL_S", "1e300", "less"),
        ("SIDECAR_RETENTION_DAYS", "nan", "finite"),
        ("SIDECAR_PORT", "9" * 5_000, "integer"),
        ("SIDECAR_TENANTS", "[" * 100_000, "JSON"),
        ("SIDECAR_TENANTS", '{"a": "b', "JSON"),
        ("SIDECAR_TENANTS", '{"a": "0123456789abcdef", "a": "fedcba9876543210"}', "once"),
        ("SIDECAR_AGENT_MAP", "/" + "x" * 5_000, "long"),
        ("SIDECAR_AGENT_MAP", "/dev/zero", "JSON file"),
        ("SIDECAR_VAPI_KEY", "two words here, and-one-more-key", "ASCII"),
        ("LLM_MODEL", "m" * 10_000, "characters"),
        ("SIDECAR_VAPI_FALLBACK_TEXT", "one\x1b[2Jtwo", "control"),
    ],
)
def test_a_setting_is_checked_against_its_use(name: str, text: str, remedy: str) -> None:
    """A value that would fail later, or silently match nobody, is refused with its remedy."""
    fields = wrong(alone(name) | {name: text} if name in TOGETHER else {name: text})
    assert remedy in fields[name]
    assert text[:40] not in fields[name] or name == "SIDECAR_DEFAULT_REGION"


def test_a_worker_of_ours_gets_what_was_read() -> None:
    """A worker that `run` starts gets clean values and no blank variable of ours."""
    given = {"LIVEKIT_URL": "wss://x\r", "SIDECAR_LINK_URL": " ", "PATH": " /bin ", "LLM_MODEL": ""}
    assert for_a_worker(given) == {"LIVEKIT_URL": "wss://x", "PATH": " /bin "}
    assert said(given, "SIDECAR_LINK_URL") is None


def test_who_has_no_home_names_a_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a home directory gets an error that names SIDECAR_DATA_DIR."""
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)

    def homeless() -> Path:
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", homeless)
    for read in (load, LinkSettings.of):
        with pytest.raises(ConfigError, match="SIDECAR_DATA_DIR"):
            read({})
        assert read({"SIDECAR_DATA_DIR": "/data"})


@pytest.mark.parametrize("home", ["", " ", "\r", "here", "."])
def test_a_blank_home_is_an_unset_one(monkeypatch: pytest.MonkeyPatch, home: str) -> None:
    """A blank HOME counts as unset, so that data is not kept in `/` or the working directory."""
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("HOME", home)
    ours = Path(pwd.getpwuid(os.getuid()).pw_dir)
    assert load({}).data_dir == ours / ".local/state/letta-sidecar"
    assert load({"SIDECAR_DATA_DIR": "~/x"}).data_dir == ours / "x"
    monkeypatch.setenv("HOME", "/elsewhere\r")
    assert load({}).data_dir == Path("/elsewhere/.local/state/letta-sidecar")
    assert load({"SIDECAR_DATA_DIR": "~"}).data_dir == Path("/elsewhere")


def test_a_directory_that_was_removed_breaks_no_setting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the working directory removed, settings with an absolute path are still read."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert load({"SIDECAR_DATA_DIR": str(tmp_path)}).data_dir == tmp_path


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", "{", "[" * 9_999, '{"a": 1}', '{"a": ""}', '{"a": "agent 1"}', '{"a": "a/1"}'),
        *('{"a": "\\ud800"}', '{"a": "x\\u0001"}', '{"a": "agent-1", "a": "agent-2"}'),
        '{"+1 (202) 555-0100": "agent-1"}',
    ],
)
def test_a_map_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    """A broken map file names the setting."""
    path = tmp_path / "map.json"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        read_agent_map(path, {"default"})
    assert caught.value.fields[0][0] == "SIDECAR_AGENT_MAP"


def test_a_map_of_an_editor_of_windows_is_read(tmp_path: Path) -> None:
    """A byte order mark at the start of a map file is skipped."""
    path = tmp_path / "map.json"
    path.write_text('{"id:ada": "agent-1"}\r\n', encoding="utf-8-sig")
    assert read_agent_map(path, {"default"}) == {"id:ada": "agent-1"}


@pytest.mark.parametrize(
    "entry",
    [
        "+15550100",
        "+447700900123",
        "+1202555010\uff10",
        "\uff0b12025550100",
        "+12025550100 ",
        "+12025550100;ext=12",
        "+1 202 555 0100",
        "(202) 555-0100",
        "tel:+12025550100",
        "sip:+12025550100@pbx.example",
        "+8656696",
        "anonymous",
        "Unknown Caller",
        " ",
    ],
)
def test_an_entry_of_the_map_that_no_caller_can_have_is_refused(tmp_path: Path, entry: str) -> None:
    """An entry that looks like a number but is none, or names nobody, is refused with a remedy."""
    path = tmp_path / "map.json"
    for tenants, within in (({"t"}, ""), ({"t", "u"}, "t/")):
        path.write_text(json.dumps({f"{within}ada": "agent-1", within + entry: "agent-2"}))
        with pytest.raises(ConfigError) as caught:
            read_agent_map(path, tenants)
        (field,) = caught.value.fields
        assert field[0] == "SIDECAR_AGENT_MAP"
        assert field[1]
        assert "entry 2" in caught.value.message
        assert entry.strip() not in caught.value.message or not entry.strip()


def test_names_and_ids_of_an_owner_stay_in_the_map(tmp_path: Path) -> None:
    """Identities, database ids and mail addresses are accepted as they are written."""
    entries = dict.fromkeys(("+12025550100", "alice1002", "8656696", "7", "a@x.example"), "agent-1")
    path = tmp_path / "map.json"
    path.write_text(json.dumps(entries))
    assert read_agent_map(path, {"default"}) == entries


def test_with_several_tenants_an_entry_of_the_map_names_one(tmp_path: Path) -> None:
    """With several tenants, each entry of the map must name one of them."""
    path = tmp_path / "map.json"
    entries = {"acme/+12025550100": "agent-1", "globex/ada": "agent-2"}
    path.write_text(json.dumps(entries))
    assert read_agent_map(path, {"acme", "globex"}) == entries
    for entry in ("+12025550100", "initech/ada", "acme/+1 202"):
        path.write_text(json.dumps({entry: "agent-1"}))
        with pytest.raises(ConfigError, match="SIDECAR_AGENT_MAP"):
            read_agent_map(path, {"acme", "globex"})


def test_an_app_server_is_asked_for_by_its_url() -> None:
    """LETTA_APP_SERVER_URL chooses the App Server, and must have a WebSocket's scheme."""
    assert load({"LETTA_APP_SERVER_URL": "ws://127.0.0.1:4500/"}).letta_generation == "app-server"
    with pytest.raises(ConfigError) as wrong:
        load({"LETTA_APP_SERVER_URL": "http://127.0.0.1:4500"})
    assert [field for field, _ in wrong.value.fields] == ["LETTA_APP_SERVER_URL"]


def test_a_lettas_password_may_have_blanks_in_it() -> None:
    """Blanks inside a Letta password are sent unchanged."""
    settings = load({"LETTA_BASE_URL": "http://letta", "LETTA_API_KEY": " a pass  phrase \r"})
    assert settings.letta_api_key is not None
    assert settings.letta_api_key.get_secret_value() == "a pass  phrase"
