"""The local page keeps its own content policy and speaks the session's frames."""

import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typing_extensions import override

from sidecar.channels.console import call, session

pytestmark = pytest.mark.unit

STATIC = Path(session.__file__).parent / "static"
HTML = (STATIC / "index.html").read_text()
SCRIPTS = {path.name: path.read_text() for path in sorted(STATIC.glob("*.js"))}
STYLES = {path.name: path.read_text() for path in sorted(STATIC.glob("*.css"))}
VENDOR = STATIC / "vendor"


class Page(HTMLParser):
    """Collects the attributes and the inline scripts and styles."""

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


def test_nothing_is_inline_and_nothing_comes_from_elsewhere() -> None:
    """The page's policy allows only its own files, and no file names a host."""
    page = Page()
    assert page.inline == []
    assert [n for _, n, _ in page.attributes if n.startswith("on") or n == "style"] == []
    links = [value for _, name, value in page.attributes if name in {"src", "href"}]
    assert all((STATIC / link.removeprefix("/")).is_file() for link in links)
    for path in STATIC.rglob("*"):
        if path.suffix in {".js", ".css", ".html", ".svg"}:
            named = re.findall(r"(?:https?|wss?)://[\w.]+", path.read_text())
            # A namespace is a name, not an address.
            assert set(named) <= {"http://www.w3.org"}, path.name


def test_every_script_that_is_imported_is_there() -> None:
    """Modules import each other by relative paths that exist, and every module is imported."""
    imported: set[Path] = set()
    for name, text in SCRIPTS.items():
        for target in re.findall(r'from "([^"]+)"', text):
            assert target.startswith("./"), (name, target)
            assert (STATIC / target).is_file(), (name, target)
            imported.add((STATIC / target).resolve())
    there = {path.resolve() for path in STATIC.rglob("*.js")}
    assert there - imported == {(STATIC / "page.js").resolve()}


def test_words_are_never_taken_for_markup() -> None:
    """Words and memory are put into the page only as text."""
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(|\bstyle=\$"
    )
    assert {name for name, text in SCRIPTS.items() if re.search(forbidden, text)} == set()


def test_page_and_session_speak_the_same_frames() -> None:
    """The scripts handle every frame that the session sends, and send only frames it takes."""
    source = Path(session.__file__).read_text() + Path(call.__file__).read_text()
    sent = set(re.findall(r'(?:_send|_tell)\(\s*"([\w.]+)"', source))
    cases = re.findall(r"case ([^:]+):", source)
    taken = {kind for case in cases for kind in re.findall(r'"([\w.]+)"', case)} | {"hello"}
    heard = {
        kind
        for text in SCRIPTS.values()
        for block in re.findall(r"^receive\(\{\n(.*?)^\}\);", text, re.DOTALL | re.MULTILINE)
        for kind in re.findall(r'^  "?([a-z.]+)"?[:(]', block, re.MULTILINE)
    }
    assert heard == sent
    said = {kind for text in SCRIPTS.values() for kind in re.findall(r'\btype: "([\w.]+)"', text)}
    said |= set(re.findall(r'act\("([\w.]+)"\)', SCRIPTS["outbox.js"]))
    assert said == taken


def test_what_is_vendored_is_what_it_says() -> None:
    """The note beside the vendored files lists each one with its hash and a licence."""
    note = (VENDOR / "README.md").read_text()
    for path in VENDOR.glob("*.js"):
        assert f"`{path.name}`" in note
        assert hashlib.sha256(path.read_bytes()).hexdigest() in note
    for licence in re.findall(r"`(LICENSE\.\w+)`", note):
        assert (VENDOR / licence).stat().st_size > 500


def test_motion_and_darkness_follow_the_reader() -> None:
    """The page follows the reader's preference for a dark page and for no motion."""
    assert "prefers-color-scheme: dark" in STYLES["base.css"]
    assert "prefers-reduced-motion: reduce" in STYLES["base.css"]
