"""The documents speak of things that exist."""

import re
from pathlib import Path

import pytest

from tests.documents import DOCUMENTS, ROOT, names_in

pytestmark = pytest.mark.unit


def test_every_failure_mode_names_tests_that_exist() -> None:
    """A row's proof is a test that pytest would run."""
    text = (ROOT / "docs/failure-modes.md").read_text()
    named = re.findall(r"`((?:unit|contract|e2e|chaos)/[\w/]+\.py)::([\w:]+)`", text)
    assert len(named) > 30
    missing = [
        f"{file}::{test}"
        for file, test in named
        if not (ROOT / "tests" / file).exists() or test not in names_in(ROOT / "tests" / file)
    ]
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_of_a_document_leads_somewhere(document: Path) -> None:
    """Relative links between the documents are not broken."""
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text())
    local = [link for link in links if "://" not in link and not link.startswith("mailto:")]
    assert [link for link in local if not (document.parent / link).exists()] == []


def test_the_make_targets_that_documents_name_exist() -> None:
    """`make something` in a document works."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in DOCUMENTS:
        named = set(re.findall(r"(?:`|^)make ([a-z-]+)", document.read_text(), re.MULTILINE))
        assert named <= targets, (document.name, named - targets)
