"""Each setting of the sidecar and of the worker is in its table, with its default."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import opentelemetry.environment_variables
import opentelemetry.sdk.environment_variables
import pytest

from sidecar.config.load import load
from sidecar.config.settings import Settings, environment_names
from sidecar.livekit import LinkSettings
from tests.documents import DOCUMENTS, ROOT
from tests.variables import OURS, worker_names

pytestmark = pytest.mark.unit

HOME = "/home/somebody"
SIDECAR_TABLES = (("README.md", "Settings"), ("docs/vapi.md", "Settings"))
WORKER_TABLES = (("docs/livekit.md", "Settings of the worker"),)
# Defaults that are no value in the code, in the words of the tables.
IN_WORDS = {
    "SIDECAR_LINK_TOKEN": "made at the first start",
    "LETTA_AGENT_MODEL": "the server's",
    "LETTA_AGENT_EMBEDDING": "the server's",
    "SIDECAR_VAPI_FALLBACK_TEXT": "a sentence",
}
OF_THE_WORKER_IN_WORDS = {
    "SIDECAR_LINK_TOKEN": "that of link-token in the data directory",
    "LIVEKIT_URL": "must be set",
    "LIVEKIT_API_KEY": "must be set",
    "LIVEKIT_API_SECRET": "must be set",
    "LIVEKIT_AGENT_NAME": "none",
    "VOICE_STT": "none",
    "VOICE_TTS": "none",
    "VOICE_DISCLOSURE": "a sentence",
    "VOICE_PARTS": "none",
}
OF_OTHERS = {
    "LETTA_REDIS_HOST": "a Letta server's own",
}
"""Variables in a document that neither the sidecar nor the worker reads."""


@dataclass(frozen=True)
class Row:
    """One variable of a table.

    Attributes:
        name: The variable.
        second: The variable that is read if the first is unset, or empty.
        default: The default in the table, without backticks.
    """

    name: str
    second: str
    default: str


def rows(document: str, heading: str) -> Iterator[Row]:
    """Each variable of a table; a line's only default holds for all of its variables."""
    text = (ROOT / document).read_text()
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    table = section.split("\n| variable | default | |\n", 1)[1].split("\n\n", 1)[0]
    for line in table.splitlines()[1:]:
        named, default = (cell.strip() for cell in line.strip("|").split("|")[:2])
        names = re.findall(r"`([A-Z][A-Z0-9_]+)`(?: \(or `([A-Z0-9_]+)`\))?", named)
        defaults = default.replace("`", "").split(", ")
        for at, (name, second) in enumerate(names):
            one_each = len(defaults) == len(names)
            yield Row(name, second, defaults[at] if one_each else default.replace("`", ""))


def documented(tables: tuple[tuple[str, str], ...]) -> list[Row]:
    found = [row for table in tables for row in rows(*table)]
    return [row for row in found if re.fullmatch(OURS, row.name)]


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user whose home directory has a known name."""
    monkeypatch.setenv("HOME", HOME)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)


def shown(value: object) -> str:
    """A default value in the form that the tables use."""
    match value:
        case None | "" | {}:
            return "none"
        case bool():
            return "on" if value else "off"
        case float():
            return f"{int(value) if value.is_integer() else value}"
        case _:
            return str(value).replace(HOME, "~")


def defaults_of_the_sidecar() -> dict[str, str]:
    """The default of each variable, as the tables must write it."""
    defaults = {
        names[0]: shown(Settings.model_fields[field].get_default(call_default_factory=True))
        for field, names in environment_names().items()
    }
    settings = load({})
    spool = settings.spool.relative_to(settings.data_dir)
    return defaults | {"SIDECAR_SPOOL_DIR": f"DATA_DIR/{spool}"} | IN_WORDS


@pytest.mark.usefixtures("home")
def test_every_setting_of_the_sidecar_is_documented_with_its_default() -> None:
    """The tables name each variable once, with its default, and no other variable."""
    written = documented(SIDECAR_TABLES)
    assert {row.name: row.default for row in written} == defaults_of_the_sidecar()
    assert len(written) == len({row.name for row in written})
    seconds = {names[0]: names[1] for names in environment_names().values() if len(names) > 1}
    assert {row.name: row.second for row in written if row.second} == seconds
    assert all(len(names) <= 2 for names in environment_names().values())


@pytest.mark.usefixtures("home")
def test_every_variable_of_the_worker_is_documented_with_its_default() -> None:
    """The worker's table names each variable that its code reads, with its default."""
    written = documented(WORKER_TABLES)
    names = [name for row in written for name in (row.name, row.second) if name]
    assert sorted(names) == sorted(worker_names())
    link = LinkSettings.of({})
    expected = defaults_of_the_sidecar() | OF_THE_WORKER_IN_WORDS
    expected["SIDECAR_LINK_URL"] = shown(link.url)
    assert {row.name: row.default for row in written} == {
        row.name: expected[row.name] for row in written
    }
    settings = load({})
    assert (link.spool_dir, link.log_text, link.trace_text) == (
        settings.spool,
        settings.log_text,
        settings.trace_text,
    )


@pytest.mark.parametrize(
    "document",
    [*DOCUMENTS, ROOT / ".env.example"],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_no_document_names_a_variable_that_nothing_reads(document: Path) -> None:
    """Each variable in a document is read by the sidecar, the worker or OpenTelemetry."""
    text = document.read_text()
    ours = {name for names in environment_names().values() for name in names} | worker_names()
    named = set(re.findall(rf"\b{OURS}\b", text))
    assert named - ours - OF_OTHERS.keys() == set()
    sdk = {
        *vars(opentelemetry.environment_variables),
        *vars(opentelemetry.sdk.environment_variables),
    }
    traces = set(re.findall(r"`(OTEL_[A-Z_]+[A-Z])\b", text))
    assert traces - sdk == set()
