"""The documentation site builds without a broken link and loads nothing from other hosts."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from typing_extensions import override

from tests.dockerfile import ROOT

pytestmark = pytest.mark.e2e

MKDOCS = ROOT / ".docs-venv/bin/mkdocs"
SOURCES = ("docs", "mkdocs.yml", "examples/vapi/README.md", "ops", "sidecar")


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Build as `make docs` does."""
    if not MKDOCS.exists():
        assert not os.environ.get("CI"), "CI builds the site: make .docs-venv/.installed"
        pytest.skip("mkdocs is not installed: make .docs-venv/.installed")
    command = re.search(
        r"^\t@NO_MKDOCS_2_WARNING=1 \$\(DOCS_VENV\)/bin/mkdocs (build .*)$",
        (ROOT / "Makefile").read_text(),
        re.MULTILINE,
    )
    assert command is not None
    return subprocess.run(
        [str(MKDOCS), *command[1].split(), "--config-file", str(config), "--site-dir", str(site)],
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    directory = tmp_path_factory.mktemp("site")
    done = build(ROOT / "mkdocs.yml", directory)
    assert done.returncode == 0, done.stderr
    return directory


class Page(HTMLParser):
    """What a page links to, what it loads, and the anchors it has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text())

    @override
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif "src" in values:
            self.fetched.append(values["src"])
        elif tag == "link" and values.get("rel") != "canonical":
            self.fetched.append(values.get("href", ""))


def pages_of(site: Path) -> Iterator[tuple[Path, Page]]:
    for path in sorted(site.rglob("*.html")):
        if path.name != "404.html":
            yield path, Page(path)


def test_the_site_builds_with_every_page(site: Path) -> None:
    """Each document in docs/, and each at the root for users, is a page in its place."""
    built = {path.relative_to(site).with_suffix("").as_posix() for path, _ in pages_of(site)}
    written = {
        path.relative_to(ROOT / "docs")
        .with_suffix("")
        .as_posix()
        .replace("adr/README", "adr/index")
        for path in (ROOT / "docs").rglob("*.md")
    }
    root = {"index", "architecture", "contributing", "changelog", "security", "vapi-example"}
    assert built == written | root


def test_every_link_and_anchor_of_the_site_leads_somewhere(site: Path) -> None:
    """In the built site every link to a page or an anchor leads to one."""
    pages = {path.resolve(): page for path, page in pages_of(site)}
    broken: list[str] = []
    followed = 0
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            followed += 1
            found = target.is_file() and (
                not parts.fragment or target not in pages or parts.fragment in pages[target].anchors
            )
            if not found and parts.fragment != "__skip":
                broken.append(f"{path.name}: {link}")
    assert broken == []
    assert followed > 500


def test_the_site_fetches_nothing_from_elsewhere(site: Path) -> None:
    """No font, script, image or style comes from another host, so the site works offline."""
    for path, page in pages_of(site):
        assert [url for url in page.fetched if urlsplit(url).netloc] == [], path
    for style in site.rglob("*.css"):
        assert (
            re.findall(r"(?:url\(|@import\s*)[\"']?(?:https?:)?//[^)\"']+", style.read_text()) == []
        )


def test_no_table_is_torn(site: Path) -> None:
    """Each row of a table is built as a row, not as a line with bars."""
    torn = [path.name for path, _ in pages_of(site) if re.search(r"<p>\s*\|", path.read_text())]
    assert torn == []


def test_the_settings_are_on_the_configuration_page(site: Path) -> None:
    """The README's settings are shown on the configuration page."""
    shown = (site / "configuration.html").read_text()
    for name in ("SIDECAR_LINK_TOKEN", "SIDECAR_CONSENT", "LETTA_APP_SERVER_URL"):
        assert f"<code>{name}</code>" in shown


def test_a_broken_link_fails_the_build(tmp_path: Path) -> None:
    """The strict build fails on a link to a missing page or anchor, in docs/ or outside."""
    faults = {
        "nowhere.md": "nowhere.md",
        "letta.md#no-such-heading": "#no-such-heading",
        "../README.md#no-heading-there": "#no-heading-there",
        "../NOWHERE.md": "NOWHERE.md",
    }
    for source in (*SOURCES, *(path.name for path in ROOT.glob("*.md"))):
        target = tmp_path / "copy" / source
        target.parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
        copy(ROOT / source, target)
    with (tmp_path / "copy/docs/deploy.md").open("a") as page:
        page.writelines(f"\n[gone]({fault})\n" for fault in faults)
    done = build(tmp_path / "copy/mkdocs.yml", tmp_path / "site")
    assert done.returncode != 0
    assert [said for said in faults.values() if said not in done.stderr] == []


def test_the_command_reference_is_that_of_the_commands(tmp_path: Path) -> None:
    """`docs/cli.md` is what `make cli-docs` writes, so that no option in it is out of date."""
    words = "-m typer sidecar.cli utils docs --name sidecar --output"
    assert f"$(BIN)/python {words} docs/cli.md" in (ROOT / "Makefile").read_text()
    subprocess.run(
        [sys.executable, *words.split(), str(tmp_path / "cli.md")],
        check=True,
        capture_output=True,
        timeout=60,
    )
    written = (tmp_path / "cli.md").read_text()
    assert written == (ROOT / "docs/cli.md").read_text(), "renew it: make cli-docs"
