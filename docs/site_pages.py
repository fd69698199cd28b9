"""What the site needs beside docs/: pages that live at the root, links between the two, one table.

README.md and its neighbours stay where a reader of the repository looks for them, with links that
work there. On the site they are pages like the others, so each relative link is led to its page.
"""

import posixpath
import re
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "examples/vapi/README.md": "vapi-example.md",
}
_LINK = re.compile(r"\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
_SETTINGS = "<!-- on the site, README.md's settings are shown here -->"


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that live outside docs/."""
    mkdocs = import_module("mkdocs.structure.files")  # in the venv of the site alone
    for source, page in PAGES.items():
        files.append(mkdocs.File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Lead links to pages of the site, and fill in the settings."""
    here = page.file.src_uri
    source = next((path for path, name in PAGES.items() if name == here), f"docs/{here}")
    if _SETTINGS in markdown:
        readme = (ROOT / "README.md").read_text(encoding="utf-8")
        markdown = markdown.replace(_SETTINGS, _led(settings_of(readme), "README.md", here))
    return _led(markdown, source, here)


def settings_of(readme: str) -> str:
    """Return the section of the settings, without its heading."""
    section = re.search(r"^## Settings\n(.*?)^## ", readme, re.MULTILINE | re.DOTALL)
    if section is None:
        msg = "README.md has no section Settings: docs/configuration.md shows it"
        raise ValueError(msg)
    return section[1]


def _led(markdown: str, source: str, here: str) -> str:
    """Return text whose relative links, written for `source`, lead from the page `here`."""

    def lead(match: re.Match[str]) -> str:
        label, target, anchor = match[1], match[2], match[3] or ""
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if path in PAGES:
            page = PAGES[path]
        elif path.startswith("docs/"):
            page = path.removeprefix("docs/")
        elif (ROOT / path).exists():
            return f"{label} (`{path}`)" if label.strip("`") != path else f"`{path}`"
        else:
            return match[0]  # leads nowhere: the strict build says so
        return f"[{label}]({posixpath.relpath(page, posixpath.dirname(here) or '.')}{anchor})"

    return _LINK.sub(lead, markdown)
