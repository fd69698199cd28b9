"""How environment variables are read: one rule for the sidecar and for the worker.

Blanks and a carriage return around a value are removed, and a blank value counts as unset. A check
takes the text of a variable and returns the value to use, or raises a ValueError whose text is the
remedy and never repeats the value.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import urlsplit

from sidecar.errors import ConfigError
from sidecar.printable import is_invisible

T = TypeVar("T")

TEXT_LIMIT_CHARS: Final = 4_096
JSON_LIMIT_CHARS: Final = 131_072
SECRET_CHARS: Final = 16
MAKE_ONE: Final = "make one with: openssl rand -hex 16"
WS_SCHEMES: Final = ("ws", "wss")
DATABASE_SCHEMES: Final = ("postgresql", "postgres")
HTTP_SCHEMES: Final = ("http", "https")
_NAME_LIMIT_BYTES = 255
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_HEADER_VALUE = re.compile(r"[!-~]+")
_TRUE = frozenset({"1", "true", "yes", "on", "t", "y"})
_FALSE = frozenset({"0", "false", "no", "off", "f", "n"})


def said(environ: Mapping[str, str], *names: str) -> str | None:
    """Return the value of the first of these variables that is not unset or blank, else None."""
    return next((text for name in names if (text := environ.get(name, "").strip())), None)


def read(environ: Mapping[str, str], name: str, check: Callable[[str], T]) -> T | None:
    """Return the checked value of a variable; None if it is unset or blank.

    Raises:
        ConfigError: it can't be used; `fields` names it with its remedy.
    """
    text = said(environ, name)
    if text is None:
        return None
    try:
        return check(text)
    except ValueError as error:
        raise wrong(((name, str(error)),)) from None


def wrong(fields: Sequence[tuple[str, str]]) -> ConfigError:
    """Return the error that names each of these settings with its remedy."""
    lines = [f"  {field}: {remedy}" for field, remedy in fields]
    return ConfigError("wrong settings:\n" + "\n".join(lines), fields=tuple(fields))


def plain(text: str) -> str:
    """Return one line of text that can be shown and sent."""
    _encodable(text)
    if _CONTROL.search(text):
        raise ValueError("remove the control character")
    return _bounded(text, TEXT_LIMIT_CHARS)


def lines(text: str) -> str:
    """Return text that may have several lines, as JSON has."""
    _encodable(text)
    if _CONTROL.search(text.translate({9: " ", 10: " ", 13: " "})):
        raise ValueError("remove the control character")
    return _bounded(text, JSON_LIMIT_CHARS)


def word(text: str) -> str:
    """Return an id: one word without `/`, `?` and `#`, since it becomes part of a URL."""
    plain(text)
    if re.search(r"[\s/?#]", text):
        raise ValueError("an id has no spaces and none of / ? # in it")
    if text in {".", ".."}:
        raise ValueError("name it by its id")
    return text


def header_value(text: str) -> str:
    """Return a token or key fit for a header: printable ASCII without a blank."""
    if not _HEADER_VALUE.fullmatch(text):
        raise ValueError("write it in printable ASCII without spaces")
    return _bounded(text, TEXT_LIMIT_CHARS)


def link_token(text: str) -> str:
    """Return a token for the sidecar: too long to be guessed."""
    header_value(text)
    if len(text) < SECRET_CHARS:
        raise ValueError(f"at least {SECRET_CHARS} characters; {MAKE_ONE}")
    return text


def password(text: str) -> str:
    """Return a secret of another server, which may have blanks in it."""
    if not all(_HEADER_VALUE.fullmatch(part) for part in text.split(" ") if part):
        raise ValueError("write it in printable ASCII")
    return _bounded(text, TEXT_LIMIT_CHARS)


def flag(text: str) -> bool:
    """Return whether a switch is on."""
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ValueError("write 1 or 0 (also true or false, yes or no, on or off)")


def url(text: str, schemes: Sequence[str]) -> str:
    """Return a URL with one of these schemes, a host that can be looked up, and a port if any.

    A slash at its end is removed.
    """
    starts = " or ".join(f"{scheme}://" for scheme in schemes)
    scheme, separator, _ = text.partition("://")
    if not separator or scheme.lower() not in schemes:
        raise ValueError(f"start it with {starts}")
    plain(text)
    if re.search(r"\s", text):
        raise ValueError("take the blank out of it")
    try:
        parts = urlsplit(text)
        host_name = parts.hostname or ""
        port = parts.port
    except ValueError:
        raise ValueError("write its host and port as HOST:PORT, a port of 1 to 65535") from None
    if port == 0:
        raise ValueError("write its host and port as HOST:PORT, a port of 1 to 65535")
    host(host_name)
    return text.rstrip("/")


def url_alone(text: str, schemes: Sequence[str]) -> str:
    """Return a URL without a user and password: keys and tokens have their own settings."""
    checked = url(text, schemes)
    if has_user(checked):
        raise ValueError("remove the user and password from it: a key or token has its own setting")
    return checked


def has_user(text: str) -> bool:
    """Whether a URL holds a user or a password."""
    return "@" in urlsplit(text).netloc


def base_url(text: str, schemes: Sequence[str]) -> str:
    """Return a URL that paths are added to."""
    checked = url(text, schemes)
    if "?" in checked or "#" in checked:
        raise ValueError("leave out what stands from ? or # on: paths are added to it")
    return checked


def database_url(text: str) -> str:
    """Return a URL as libpq reads it: several hosts, a socket's directory, settings after `?`."""
    starts = " or ".join(f"{scheme}://" for scheme in DATABASE_SCHEMES)
    if not text.startswith(tuple(f"{scheme}://" for scheme in DATABASE_SCHEMES)):
        raise ValueError(f"start it with {starts}, or unset it to use SQLite")
    plain(text)
    if re.search(r"\s", text):
        raise ValueError("write a blank in it as %20")
    user, at, _ = text.partition("://")[2].partition("/")[0].rpartition("@")
    if at and re.search(r"[?#]", user):  # libpq takes them for a part of the user or password
        raise ValueError("write ? as %3F and # as %23 before the @")
    return text


def host(text: str) -> str:
    """Return the name or address of a host."""
    if not text:
        raise ValueError("name a host")
    plain(text)
    if text.startswith("["):
        raise ValueError("write an IPv6 address without brackets, as in ::1")
    if re.search(r"[\s/@\\?#]", text):
        raise ValueError("give only a host, such as 127.0.0.1 or sidecar.example")
    try:
        text.encode("idna")
    except UnicodeError:
        raise ValueError("that is no name of a host") from None
    return text


def path(text: str) -> Path:
    """Return a path; `~` is the home of this user.

    No path begins with a quote or with a character that can't be seen: it would name a new
    directory below the working directory.
    """
    if "\0" in text:
        raise ValueError("remove the control character")
    if text.startswith(("'", '"')):  # as `docker --env-file` passes them on
        raise ValueError("write it without quotes: they would be part of the path")
    if text and (is_invisible(text[0]) or all(map(is_invisible, text))):
        raise ValueError("it begins with a character that can't be seen: type it anew")
    raw = os.fsencode(text)
    if len(raw) >= TEXT_LIMIT_CHARS or any(len(n) > _NAME_LIMIT_BYTES for n in raw.split(b"/")):
        raise ValueError("no path may be so long")
    try:
        if text == "~" or text.startswith("~/"):
            return _home() / text[2:]
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError("there is no such home directory: write the whole path") from None


def default_data_dir() -> Path:
    """Return the default directory for state: in this user's XDG state directory.

    Raises:
        ConfigError: this user has no home.
    """
    named = said(os.environ, "XDG_STATE_HOME")
    if named is not None and Path(named).is_absolute():  # as the XDG specification has it
        return Path(named) / "letta-sidecar"
    try:
        return _home() / ".local" / "state" / "letta-sidecar"
    except RuntimeError:
        raise wrong((("SIDECAR_DATA_DIR", "name a directory: this user has no home"),)) from None


def _home() -> Path:
    """Return the home of this user; a HOME that is blank, or not an absolute path, is ignored.

    Raises:
        RuntimeError: the user has none.
    """
    named = said(os.environ, "HOME")
    if named is not None and Path(named).is_absolute():
        return Path(named)
    if "HOME" not in os.environ:
        return Path.home()
    import pwd  # noqa: PLC0415 - only if HOME is of no use

    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        raise RuntimeError("this user has no home") from None


def _encodable(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("write it in UTF-8") from None


def _bounded(text: str, limit_chars: int) -> str:
    if len(text) > limit_chars:
        raise ValueError(f"at most {limit_chars} characters")
    return text
