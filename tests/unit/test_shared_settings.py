"""Variables that a voice worker and the sidecar both read mean the same to both."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from typing_extensions import override

from sidecar.app.from_settings import build_llm
from sidecar.config.load import load
from sidecar.config.settings import Settings, environment_names
from sidecar.errors import ConfigError
from sidecar.livekit import LinkSettings, language_model
from sidecar.llm.port import Llm

pytestmark = pytest.mark.unit

TOKEN = "0123456789abcdef"
FLAGS = (
    *("1", "true", "True", "TRUE", "yes", "on", "t", "y"),
    *("0", "false", "FALSE", "no", "off", "f", "n"),
    *("", " ", "\r", " true \r", "2", "maybe", "ja", "tru e", "1\x00"),
)
PATHS = (
    *("/data", "~/data", "~", "data", " /data\r", "", " ", "/a\0b", "~nobody-of-that-name/x"),
    *('""', "''", '"/data"', "\ufeff", "\u200b\u200b", "\ufeff/data", "/da\u200cta", "it's"),
)
KEYS = ("sk-1", " sk-1\r", "", " ", "sk 1", "sk-\u2013dash", "k" * 5_000)


@dataclass(frozen=True)
class Shared:
    """A variable of both ends.

    Attributes:
        texts: Values of it, good and bad.
        worker: Returns what the worker reads from an environment.
        sidecar: Returns the same from the sidecar's settings.
        beside: Other variables that are set.
    """

    texts: tuple[str, ...]
    worker: Callable[[Mapping[str, str]], object]
    sidecar: Callable[[Settings], object]
    beside: Mapping[str, str]


def link(attribute: str) -> Callable[[Mapping[str, str]], object]:
    return lambda environ: getattr(LinkSettings.of(environ), attribute)


def state_dir(environ: Mapping[str, str]) -> object:
    token_file = LinkSettings.of(environ).token_file
    assert token_file is not None
    return token_file.parent


def model(llm: Llm) -> object:
    """Where a model's requests are sent, and the headers that they carry."""
    made: Any = llm
    return llm.name, getattr(made, "_url", None), getattr(made, "_headers", None)


def of_model(texts: tuple[str, ...], **beside: str) -> Shared:
    return Shared(
        texts,
        lambda environ: model(language_model(environ)),
        lambda settings: model(build_llm(settings)),
        beside,
    )


TABLE = {
    "SIDECAR_LOG_TEXT": Shared(FLAGS, link("log_text"), lambda s: s.log_text, {}),
    "SIDECAR_TRACE_TEXT": Shared(FLAGS, link("trace_text"), lambda s: s.trace_text, {}),
    "SIDECAR_LINK_TOKEN": Shared(
        (
            TOKEN,
            f" {TOKEN}\r",
            TOKEN[1:],
            "",
            " ",
            "two words and more",
            "schl\u00fcssel-mit-umlaut",
        ),
        link("token"),
        lambda s: s.link_token and s.link_token.get_secret_value(),
        {},
    ),
    "SIDECAR_DATA_DIR": Shared(PATHS, state_dir, lambda s: s.data_dir, {}),
    "SIDECAR_SPOOL_DIR": Shared(PATHS, link("spool_dir"), lambda s: s.spool, {}),
    "LLM_BASE_URL": of_model(
        (
            *("http://llm.example/v1", "https://llm.example/v1/", " http://llm.example/v1\r"),
            *("", " ", "llm", "ws://llm.example", "http://", "http://llm.example/v1?key=1"),
            *("http://me:secret@llm.example/v1", "http://a b/v1", "http://llm.example:0"),
        ),
        LLM_API_KEY="sk-1",
    ),
    "LLM_API_KEY": of_model(KEYS, OPENAI_API_KEY="sk-2"),
    "OPENAI_API_KEY": of_model(KEYS),
    "LLM_MODEL": of_model(
        ("small", " small\r", "", " ", "one\x1b[2Jtwo", "m" * 5_000), LLM_API_KEY="sk-1"
    ),
}


def taken(read: Callable[[], object]) -> object:
    """Return the value that is read, or the names of the settings that were refused."""
    try:
        return read()
    except ConfigError as error:
        return [name for name, _ in error.fields]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        pytest.param(name, text, id=f"{name}={text[:20]!r}")
        for name in TABLE
        for text in TABLE[name].texts
    ],
)
def test_both_ends_make_the_same_of_a_variable(name: str, text: str) -> None:
    """From the same value, worker and sidecar read the same, or both refuse it."""
    shared = TABLE[name]
    environ = {**shared.beside, name: text}
    at_worker = taken(lambda: shared.worker(environ))
    assert at_worker == taken(lambda: shared.sidecar(load(environ)))


@pytest.mark.parametrize("name", TABLE)
def test_both_ends_have_the_same_default(name: str) -> None:
    """An unset variable has the same default for worker and sidecar."""
    shared = TABLE[name]
    assert shared.worker(shared.beside) == shared.sidecar(load(shared.beside))
    assert shared.worker({**shared.beside, name: shared.texts[0]}) != shared.worker(shared.beside)


class Watched(Mapping[str, str]):
    """An environment of blank values that records which variables are read."""

    def __init__(self) -> None:
        self.asked: set[str] = set()

    @override
    def __getitem__(self, name: str) -> str:
        self.asked.add(name)
        return ""

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(())

    @override
    def __len__(self) -> int:
        return 0


def test_the_table_has_every_variable_of_both_ends() -> None:
    """Each variable that the worker reads and the sidecar knows is in the table above."""
    worker = Watched()
    LinkSettings.of(worker)
    language_model(worker)
    known = {variable for variables in environment_names().values() for variable in variables}
    assert worker.asked & known == TABLE.keys()
