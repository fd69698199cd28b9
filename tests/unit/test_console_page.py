"""The console's page keeps its own content policy and speaks the session's frames."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typing_extensions import override

from sidecar.channels.console import session

pytestmark = pytest.mark.unit

STATIC = Path(session.__file__).parent / "static"
HTML = (STATIC / "index.html").read_text()
SCRIPT = (STATIC / "console.js").read_text()
STYLE = (STATIC / "console.css").read_text()


class Page(HTMLParser):
    """Collects what a test asks about."""

    def __init__(self) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str]] = []
        self.inline: list[str] = []
        self._within = ""
        self.feed(HTML)

    @override
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._within = tag
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    @override
    def handle_endtag(self, tag: str) -> None:
        self._within = ""

    @override
    def handle_data(self, data: str) -> None:
        if self._within in {"script", "style"} and data.strip():
            self.inline.append(data)

    def all(self, name: str) -> list[str]:
        return [value for _, attribute, value in self.attributes if attribute == name]


def test_nothing_is_inline_and_nothing_comes_from_elsewhere() -> None:
    """The page works under a policy that allows its own files alone."""
    page = Page()
    assert page.inline == []
    assert [
        name for _, name, _ in page.attributes if name.startswith("on") or name == "style"
    ] == []
    links = [*page.all("src"), *page.all("href")]
    assert {link for link in links if not link.startswith("#")} == {
        "/console.css",
        "/console.js",
        "data:,",
    }
    assert not re.search(r"https?://|url\(|@import", STYLE + SCRIPT)


def test_words_are_never_taken_for_markup() -> None:
    """What was said and remembered reaches the page as text only."""
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", SCRIPT)


def test_the_script_finds_every_element_it_names() -> None:
    """Each id the script asks for is in the page, once."""
    ids = Page().all("id")
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'\$\("([\w-]+)"\)', SCRIPT)) <= set(ids)


def test_every_input_has_a_label() -> None:
    """Fields are named for who does not see them."""
    page = Page()
    inputs = {value for tag, name, value in page.attributes if (tag, name) == ("input", "id")}
    wrapped = {"aloud"}  # stands inside its label
    assert inputs - wrapped <= set(page.all("for"))


def test_page_and_session_speak_the_same_frames() -> None:
    """The script takes every frame the session sends and sends no other than it takes."""
    source = Path(session.__file__).read_text()
    sent = set(re.findall(r'_send\(\s*"([\w.]+)"', source))
    taken = set(re.findall(r'case "([\w.]+)"', source)) | {"hello"}
    block = SCRIPT[SCRIPT.index("const receivers") : SCRIPT.index("function receive(")]
    assert set(re.findall(r'^  "?([a-z.]+)"?[:(]', block, re.MULTILINE)) == sent
    assert set(re.findall(r'type: "([\w.]+)"', SCRIPT)) <= taken


def test_motion_and_darkness_follow_the_reader() -> None:
    """The page heeds the reader's wish for a dark page and for no motion."""
    assert "prefers-color-scheme: dark" in STYLE
    assert "prefers-reduced-motion: reduce" in STYLE
