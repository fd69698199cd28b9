"""No line of the tree is over 100 columns."""

import os
import re
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.documents import ROOT

pytestmark = pytest.mark.unit

COLUMNS = 100
NOT_WRAPPED = (
    "*.json",  # a string of JSON can't be broken, and most of them are generated
    "docs/cli.md",  # generated: make cli-docs
    "requirements/*.txt",  # lock files: make lock
    "sidecar/channels/console/static/vendor/*.js",
    "tests/axe/*.js",
)
"""Files that nobody wraps by hand."""
NOT_OURS = re.compile(r"\.(?!ci$|github$)|(?:__pycache__|build|dist|site)$|.*\.egg-info$")
"""Folders and files that are skipped without git."""


def files() -> Iterator[Path]:
    """Each file that git does not ignore; without git, each that is not hidden or built."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True, timeout=20)
    except (OSError, subprocess.CalledProcessError):
        for folder, folders, names in os.walk(ROOT):
            folders[:] = [name for name in folders if not NOT_OURS.match(name)]
            yield from (Path(folder, name) for name in names if not NOT_OURS.match(name))
    else:
        found = (ROOT / os.fsdecode(name) for name in done.stdout.split(b"\0") if name)
        yield from (path for path in found if path.is_file())


def can_be_wrapped(line: str, kind: str, fence: str) -> bool:
    """A table row, a frame of an example and one unbreakable word behind a marker can't be."""
    if kind == ".md" and (line.lstrip().startswith("|") or fence == "json"):
        return False
    words = line.split()
    return len(words[1:] if re.fullmatch(r"\W+", words[0]) else words) > 1


def too_long(text: str, kind: str) -> Iterator[int]:
    """The number, from 1, of each line that is over and can be wrapped."""
    fence = ""
    for number, line in enumerate(text.split("\n"), start=1):
        if kind == ".md" and line.lstrip().startswith("```"):
            fence = "" if fence else line.strip().removeprefix("```") or "text"
        if len(line) > COLUMNS and can_be_wrapped(line, kind, fence):
            yield number


def test_no_line_is_over_a_hundred_columns() -> None:
    """Code, documents and settings can be read beside a second file without scrolling sideways."""
    over: list[str] = []
    for path in sorted(files()):
        name = path.relative_to(ROOT).as_posix()
        if any(fnmatch(name, pattern) for pattern in NOT_WRAPPED):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # a picture, a recording
            continue
        over += [f"{name}:{number}" for number in too_long(text, path.suffix)]
    assert over == [], "\n".join(over)
