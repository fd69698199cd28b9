"""Settings."""

import json
from pathlib import Path

import pytest

from sidecar.config import load, read_agent_map
from sidecar.errors import ConfigError

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
    """Three mistakes give three lines, not the first one only."""
    fields = wrong(
        {"SIDECAR_PORT": "many", "SIDECAR_POST_MAX_TURNS": "0", "LETTA_BASE_URL": "letta:8283"}
    )
    assert set(fields) == {"SIDECAR_PORT", "SIDECAR_POST_MAX_TURNS", "LETTA_BASE_URL"}
    assert all(fields.values())


def test_a_token_is_replaced_without_a_gap() -> None:
    """The old token as that of the tenant `default`, the new as the link's: both open one tenant."""
    old, new = "the old token, long enough", "the new token, long enough"
    settings = load({"SIDECAR_TENANTS": json.dumps({"default": old}), "SIDECAR_LINK_TOKEN": new})
    assert settings.tokens == {old: "default", new: "default"}
    assert settings.tenant_names == {"default"}


def test_a_misspelt_setting_is_refused_with_the_right_name() -> None:
    """A typing mistake is not silently the default."""
    assert "SIDECAR_FRESH_S" in wrong({"SIDECAR_FRESH": "1"})["SIDECAR_FRESH"]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "example.org"])
def test_beyond_this_machine_a_secret_is_needed(host: str) -> None:
    """Binding to the network without a token is refused and names the setting that mends it."""
    assert "SIDECAR_LINK_TOKEN" in wrong({"SIDECAR_HOST": host})["SIDECAR_HOST"]
    assert load({"SIDECAR_HOST": host, "SIDECAR_LINK_TOKEN": SECRET}).host == host


def test_half_of_livekit_is_refused() -> None:
    """LiveKit's three settings come together or not at all."""
    assert "LIVEKIT_API_SECRET" in wrong({"LIVEKIT_URL": "ws://x"})["LIVEKIT_URL"]


def test_two_tenants_with_one_token_are_refused() -> None:
    """A token says who the tenant is, so no two share one."""
    assert wrong({"SIDECAR_TENANTS": json.dumps({"a": SECRET, "b": SECRET})})
    assert wrong({"SIDECAR_TENANTS": json.dumps({"a": SECRET}), "SIDECAR_LINK_TOKEN": SECRET})


@pytest.mark.parametrize("secret", ["", " ", "short", " " * 20])
def test_a_secret_is_long_enough_not_to_be_guessed(secret: str) -> None:
    """An unset variable in a file of tokens opens no door, on this machine neither."""
    assert "SIDECAR_TENANTS" in wrong({"SIDECAR_TENANTS": json.dumps({"acme": secret})})
    vapi = {"acme": {"key": secret, "secret": secret}}
    assert wrong({"SIDECAR_VAPI_TENANTS": json.dumps(vapi)})


def test_one_agent_for_several_tenants_is_refused() -> None:
    """Nothing is shared between tenants, not by a setting either."""
    tenants = json.dumps({"a": SECRET, "b": SECRET + "b"})
    assert "SIDECAR_AGENT_ID" in wrong({"SIDECAR_TENANTS": tenants, "SIDECAR_AGENT_ID": "agent-1"})


def test_with_vapi_in_front_workers_need_a_token() -> None:
    """Where only VAPI's secrets name tenants, nobody can say whose the workers are: set a token."""
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
            "LETTA_API_KEY": "canary",
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
    """A key pasted into the wrong field does not end up in a log."""
    with pytest.raises(ConfigError) as caught:
        load({"SIDECAR_PORT": "sk-canary", "LETTA_BASE_URL": "sk-canary"})
    assert "canary" not in str(caught.value)


def test_a_blank_variable_is_unset() -> None:
    """`LETTA_API_KEY=` in an .env file asks for no Letta."""
    assert load({"LETTA_API_KEY": "", "LETTA_BASE_URL": " "}).letta_generation == "local"


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"a": 1}', '{"a": ""}', '{"+1 (202) 555-0100": "agent-1"}']
)
def test_a_map_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    """A broken map file names the setting."""
    path = tmp_path / "map.json"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        read_agent_map(path, {"default"})
    assert caught.value.fields[0][0] == "SIDECAR_AGENT_MAP"


def test_with_several_tenants_an_entry_of_the_map_names_one(tmp_path: Path) -> None:
    """One tenant's entry can't be meant for another's caller of the same name."""
    path = tmp_path / "map.json"
    entries = {"acme/+12025550100": "agent-1", "globex/ada": "agent-2"}
    path.write_text(json.dumps(entries))
    assert read_agent_map(path, {"acme", "globex"}) == entries
    for entry in ("+12025550100", "initech/ada", "acme/+1 202"):
        path.write_text(json.dumps({entry: "agent-1"}))
        with pytest.raises(ConfigError, match="SIDECAR_AGENT_MAP"):
            read_agent_map(path, {"acme", "globex"})


def test_an_app_server_is_asked_for_by_its_url() -> None:
    """LETTA_APP_SERVER_URL chooses the App Server, and wants a WebSocket's scheme."""
    assert load({"LETTA_APP_SERVER_URL": "ws://127.0.0.1:4500/"}).letta_generation == "app-server"
    with pytest.raises(ConfigError) as wrong:
        load({"LETTA_APP_SERVER_URL": "http://127.0.0.1:4500"})
    assert [field for field, _ in wrong.value.fields] == ["LETTA_APP_SERVER_URL"]
