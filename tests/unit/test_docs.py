"""The documents name only things that exist."""

import ast
import json
import re
import tokenize
import tomllib
from pathlib import Path
from pkgutil import resolve_name

import pytest

from tests.documents import DOCUMENTS, ROOT, names_in

pytestmark = pytest.mark.unit


EXTENDING = sorted((ROOT / "docs/extending").glob("*.md"))
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]


def named_tests(text: str) -> list[tuple[str, str]]:
    """Each `file::test` below tests/ in a text."""
    return re.findall(r"`((?:unit|contract|e2e|chaos)/[\w/]+\.py)::([\w:]+)`", text)


def absent(named: list[tuple[str, str]]) -> list[str]:
    """Those of the named tests that do not exist."""
    return [
        f"{file}::{test}"
        for file, test in named
        if not (ROOT / "tests" / file).exists() or test not in names_in(ROOT / "tests" / file)
    ]


def test_every_failure_mode_names_tests_that_exist() -> None:
    """Every test that a row of the failure modes names as its proof exists."""
    named = named_tests((ROOT / "docs/failure-modes.md").read_text())
    assert len(named) > 30
    assert absent(named) == []


def test_there_is_a_page_for_each_way_to_extend_it() -> None:
    """Channel, Letta, journal, tool and setting each have a page that ARCHITECTURE.md links to."""
    names = [page.stem for page in EXTENDING]
    assert names == ["channel", "journal", "letta", "setting", "tool"]
    architecture = (ROOT / "ARCHITECTURE.md").read_text()
    assert [name for name in names if f"(docs/extending/{name}.md)" not in architecture] == []


@pytest.mark.parametrize("page", EXTENDING, ids=lambda path: path.stem)
def test_what_a_page_on_extending_names_exists(page: Path) -> None:
    """Each path, name of the package, test and import contract on the page exists."""
    text = " ".join(page.read_text().split())
    assert re.findall(r" ## ([A-Z][a-z]+(?: [a-z]+)?)", text)[:3] == [
        "Files",
        "Contract suite",
        "Guards",
    ]
    paths = re.findall(r"`((?:sidecar|tests|docs|ops|examples)/[^`:]*|\w+\.(?:toml|yml|md))`", text)
    assert [path for path in paths if "NAME" not in path and not (ROOT / path).exists()] == []
    for name in re.findall(r"`(sidecar\.[\w.]+)`", text):
        resolve_name(name)  # raises if it does not exist
    assert absent(named_tests(text)) == []
    known = {contract["name"] for contract in CONTRACTS["contracts"]}
    contracts = re.findall(r"[Cc]ontract `([^`]+)`", text)
    assert contracts
    assert set(contracts) <= known


def test_each_word_of_the_glossary_is_explained_once_and_used() -> None:
    """Each word of the glossary is defined once and is used in the code."""
    text = (ROOT / "docs/glossary.md").read_text()
    entries = re.findall(r"^\| ([a-z][^|]*?) \| ([^|]+) \|$", text, re.MULTILINE)
    words = [word for word, _ in entries if word != "word"]
    assert len(words) > 50
    assert len(words) == len(set(words))
    code = " ".join(
        path.read_text()
        for kind in ("py", "sql", "js")
        for path in ROOT.glob(f"sidecar/**/*.{kind}")
    )
    used = re.sub(r"[\s_-]+", " ", code).lower()
    assert [word for word in words if word.replace("-", " ") not in used] == []
    assert "(docs/glossary.md)" in (ROOT / "ARCHITECTURE.md").read_text()


def test_no_name_keeps_holds_or_tells_but_those_of_the_glossary() -> None:
    """To keep, to hold and to tell name nothing in the code but what the glossary says they do."""
    text = (ROOT / "docs/glossary.md").read_text()
    allowed = set(re.findall(r"`(\w+)`", text.split("To *keep*, to *hold* and to *tell*")[1]))
    verb = re.compile(
        r"(?<![a-z])(keep(s|er|ers|ing)?|kept|hold(s|er|ers|ing)?|held|(un)?told)(?![a-z])"
    )
    found: set[str] = set()
    for path in (ROOT / "sidecar").glob("**/*.py"):
        with tokenize.open(path) as source:
            names = {
                token.string
                for token in tokenize.generate_tokens(source.readline)
                if token.type == tokenize.NAME
            }
        for name in names:
            words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
            if verb.search(words.replace("keep_alive", "")):
                found.add(name)
    assert found == allowed


def texts_for_people() -> dict[str, str]:
    """The texts people read first: README, commands, HTTP API, local page, how to extend it."""
    documents = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "docs/cli.md", *EXTENDING]
    scripts = (ROOT / "sidecar/channels/console/static").glob("*.js")
    commands = [*(ROOT / "sidecar/cli").glob("*.py"), ROOT / "sidecar/app/serve.py"]
    said = {
        path: " ".join(
            node.value
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        )
        for path in commands
    }
    api = ROOT / "sidecar/app/openapi.json"
    read = {path: path.read_text() for path in [*documents, *scripts, api]}
    return {path.relative_to(ROOT).as_posix(): text for path, text in (said | read).items()}


def test_texts_for_people_use_the_fields_plain_verbs() -> None:
    """No text that people read first has one of the odd words below."""
    odd = r"\b(heed(?:s|ed)?|at hand|comes of it|what is left|is no dead letter)\b"
    found = {name: re.findall(odd, text) for name, text in texts_for_people().items()}
    assert {name: words for name, words in found.items() if words} == {}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_of_a_document_leads_somewhere(document: Path) -> None:
    """Relative links between the documents are not broken."""
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text())
    local = [link for link in links if "://" not in link and not link.startswith("mailto:")]
    assert [link for link in local if not (document.parent / link).exists()] == []


def test_the_make_targets_that_documents_name_exist() -> None:
    """Each `make` target in a document exists."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in DOCUMENTS:
        named = set(re.findall(r"(?:`|^)make ([a-z-]+)", document.read_text(), re.MULTILINE))
        assert named <= targets, (document.name, named - targets)


def test_the_http_api_says_its_version() -> None:
    """The published description of the HTTP API has the package's version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    api = json.loads((ROOT / "sidecar/app/openapi.json").read_text())
    assert api["info"]["version"] == project["version"]
