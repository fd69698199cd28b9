"""State is private to this user, whatever the umask and whoever else is on the machine."""

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from sidecar.app.from_settings import prepare_data_dir
from sidecar.cli.checks import usable
from sidecar.cli.machine import permissions
from sidecar.config.load import load
from sidecar.config.settings import Settings
from sidecar.errors import ConfigError
from sidecar.journal.sqlite.file import open_writer
from sidecar.letta.app_server.process import FolderLock
from sidecar.letta.embedded.store import EmbeddedStore
from sidecar.private import (
    LINK_TOKEN_FILE,
    STATE_DIRECTORIES,
    STATE_FILES,
    installation_secret,
    link_token,
    make_directory,
    refuse_shared,
    token_in,
    write_whole,
)
from sidecar.wire.spool import SpoolFile

pytestmark = pytest.mark.unit


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o000, 0o022, 0o077, 0o777], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


MAKES: Mapping[str, Callable[[Path], object]] = {
    "directory": make_directory,
    "data directory": lambda path: prepare_data_dir(load({"SIDECAR_DATA_DIR": str(path)})),
    "spool": lambda path: SpoolFile.create(path, "call").close(),
    "app server": FolderLock,
    "embedded letta": lambda path: EmbeddedStore(path / "letta.db").close(),
}


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
@pytest.mark.usefixtures("umask")
def test_parents_are_this_users_alone(make: Callable[[Path], object], tmp_path: Path) -> None:
    """New directories are 0700 under any umask, and existing ones keep their mode."""
    there = tmp_path / "there"
    there.mkdir()
    there.chmod(0o755)
    make(there / "state" / "letta-sidecar" / "data")
    made = [there / "state", there / "state/letta-sidecar", there / "state/letta-sidecar/data"]
    assert [mode(path) for path in made] == [0o700] * 3
    assert mode(there) == 0o755


def test_a_file_in_the_place_of_a_directory_is_an_error(tmp_path: Path) -> None:
    """A path that can't be a directory is an error."""
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to(tmp_path / "absent")
    for name in ("file", "nowhere", "file/below"):
        with pytest.raises(OSError):  # noqa: PT011 - any of its kinds
            make_directory(tmp_path / name)


@pytest.mark.parametrize("others", [0o755, 0o750, 0o701, 0o720, 0o704, 0o1777])
def test_a_data_directory_open_to_others_is_refused(others: int, tmp_path: Path) -> None:
    """A data directory open to others is refused, with the command that closes it."""
    data = tmp_path / "data"
    data.mkdir()
    data.chmod(others)
    settings = load({"SIDECAR_DATA_DIR": str(data)})
    for refuses in (prepare_data_dir, usable):
        with pytest.raises(ConfigError, match=str(data)) as refused:
            refuses(settings)
        assert refused.value.fields == (("SIDECAR_DATA_DIR", f"close it: chmod 700 {data}"),)
    assert permissions(data).verdict == "bad"
    assert not any(data.iterdir())
    data.chmod(0o700)
    assert prepare_data_dir(settings) == data
    usable(settings)
    assert permissions(data).verdict == "ok"


def test_a_data_directory_of_another_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A data directory of another user is refused, even if it is closed to all others."""
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    us = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: us + 1)
    with pytest.raises(ConfigError, match="another user") as refused:
        prepare_data_dir(load({"SIDECAR_DATA_DIR": str(data)}))
    ((field, remedy),) = refused.value.fields
    assert field == "SIDECAR_DATA_DIR"
    assert f"chown -R {us + 1} {data}" in remedy


NOT_TO_BE_MADE = (
    "/proc/nope",
    "/proc/a/b",
    "/sys/nope",
    "file",
    "file/below",
    "nowhere",
    "nowhere/a",
)


@pytest.fixture
def around(tmp_path: Path) -> Path:
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to(tmp_path / "absent")
    return tmp_path


def below(directory: Path) -> list[Path]:
    return sorted(directory.rglob("*"))


@pytest.mark.parametrize("judge", [prepare_data_dir, usable])
@pytest.mark.parametrize("variable", ["SIDECAR_DATA_DIR", "SIDECAR_SPOOL_DIR"])
@pytest.mark.parametrize("place", NOT_TO_BE_MADE)
def test_a_directory_that_cant_be_made_is_refused_before_and_at_the_start(
    judge: Callable[[Settings], object], variable: str, place: str, around: Path
) -> None:
    """A check and a start refuse an impossible directory alike, and leave nothing behind."""
    before = below(around)
    directories = {"SIDECAR_DATA_DIR": str(around / "new" / "data"), variable: str(around / place)}
    with pytest.raises(ConfigError, match=variable) as refused:
        judge(load(directories))
    ((field, remedy),) = refused.value.fields
    assert field == variable
    assert remedy
    assert below(around) == before


@pytest.mark.parametrize("judge", [prepare_data_dir, usable])
def test_a_path_too_long_for_a_database_is_refused(
    judge: Callable[[Settings], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The length limit applies to the whole path, also if it is given as a relative one."""
    monkeypatch.chdir(tmp_path)
    for place in ("/".join(["x" * 100] * 5), str(tmp_path / "/".join(["y"] * 250))):
        with pytest.raises(ConfigError, match="at most 480 bytes") as refused:
            judge(load({"SIDECAR_DATA_DIR": place}))
        assert refused.value.fields[0][0] == "SIDECAR_DATA_DIR"
    assert below(tmp_path) == []


def test_the_longest_path_holds_a_database(tmp_path: Path) -> None:
    """A data directory of the greatest length can hold the databases."""
    data = tmp_path.resolve()
    while len(str(data)) < 477:
        data /= "x"
    data /= "x" * (479 - len(str(data)))
    assert len(str(data)) == 480
    prepare_data_dir(load({"SIDECAR_DATA_DIR": str(data)}))
    EmbeddedStore(data / "letta.db").close()
    open_writer(data / "journal.db").close()


def test_a_check_leaves_nothing_behind(around: Path) -> None:
    """A check removes the directories that it made, and a start makes them."""
    (around / "there").mkdir()
    before = below(around)
    settings = load({"SIDECAR_DATA_DIR": str(around / "there" / "a" / "data")})
    usable(settings)
    assert below(around) == before
    prepare_data_dir(settings)
    after = below(around)
    usable(settings)
    assert below(around) == after


@pytest.mark.parametrize("judge", [prepare_data_dir, usable])
@pytest.mark.parametrize("name", [*STATE_FILES, *STATE_DIRECTORIES])
class TestWhatIsInIt:
    def test_of_another_user(
        self,
        name: str,
        judge: Callable[[Settings], object],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A file that another user left is named, with the command that gives it back."""
        path = tmp_path / "data" / name
        settings = load({"SIDECAR_DATA_DIR": str(path.parent)})
        prepare_data_dir(settings)
        path.mkdir() if name in STATE_DIRECTORIES else path.touch()
        judge(settings)
        allowed = os.access

        def refuses(asked: str | Path, mode: int, refused: Path = path) -> bool:
            return Path(asked) != refused and allowed(asked, mode)

        monkeypatch.setattr(os, "access", refuses)
        with pytest.raises(ConfigError, match=f"{name} can't be used") as refused:
            judge(settings)
        ((field, remedy),) = refused.value.fields
        assert field == "SIDECAR_DATA_DIR"
        assert f"chown -R {os.geteuid()} {path.parent}" in remedy

    def test_of_another_kind(
        self, name: str, judge: Callable[[Settings], object], tmp_path: Path
    ) -> None:
        """A directory in a file's place, or the reverse, is named and not touched."""
        path = tmp_path / "data" / name
        settings = load({"SIDECAR_DATA_DIR": str(path.parent)})
        prepare_data_dir(settings)
        path.touch() if name in STATE_DIRECTORIES else path.mkdir()
        with pytest.raises(ConfigError, match="something else") as refused:
            judge(settings)
        assert refused.value.fields == (("SIDECAR_DATA_DIR", f"move {path} away"),)
        assert path.exists()


@pytest.mark.parametrize(
    "name", ["link-token", "secret", "journal.db", "journal.db-wal", "snapshots"]
)
def test_what_another_has_left_in_a_data_directory_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state file of another user is refused by name, while another file may stay."""
    us = os.geteuid()
    ours = SimpleNamespace(st_uid=us + 1, st_mode=stat.S_IFDIR | 0o700)
    (tmp_path / "note.txt").touch()
    monkeypatch.setattr(os, "geteuid", lambda: us + 1)

    def stat_of(_: Path) -> SimpleNamespace:
        return ours

    monkeypatch.setattr(Path, "stat", stat_of)
    refuse_shared(tmp_path)
    os.close(os.open(tmp_path / name, os.O_CREAT))
    with pytest.raises(ConfigError, match=rf"{name} .* another user \(uid {us}\)"):
        refuse_shared(tmp_path)


class TestToken:
    def test_it_is_made_once(self, tmp_path: Path) -> None:
        """The token is made once with mode 0600, and later starts and workers read the same."""
        made = link_token(tmp_path)
        assert link_token(tmp_path) == made == token_in(tmp_path / LINK_TOKEN_FILE)
        assert len(made) >= 32
        assert mode(tmp_path / LINK_TOKEN_FILE) == 0o600
        assert link_token_of_another(tmp_path) != made

    @pytest.mark.parametrize("left", ["", "short", "\n", "two words that are long", "\x00" * 40])
    def test_what_is_no_token_is_made_anew(self, left: str, tmp_path: Path) -> None:
        """A file without a token is an error to a reader, and a start makes a new token."""
        (tmp_path / LINK_TOKEN_FILE).write_text(left)
        with pytest.raises(ValueError, match="no token"):
            token_in(tmp_path / LINK_TOKEN_FILE)
        assert link_token(tmp_path) == token_in(tmp_path / LINK_TOKEN_FILE)

    def test_one_of_the_users_own_is_kept(self, tmp_path: Path) -> None:
        """A token that the user put into the file is kept."""
        (tmp_path / LINK_TOKEN_FILE).write_text("  my-own-token-0123456789\n")
        assert link_token(tmp_path) == "my-own-token-0123456789"


def link_token_of_another(tmp_path: Path) -> str:
    (tmp_path / "other").mkdir()
    return link_token(tmp_path / "other")


def test_the_secret_of_an_installation_stays(tmp_path: Path) -> None:
    """The secret is made once and kept, and made anew if the file was cut short."""
    made = installation_secret(tmp_path)
    assert installation_secret(tmp_path) == made
    assert mode(tmp_path / "secret") == 0o600
    (tmp_path / "secret").write_bytes(b"cut")
    assert len(installation_secret(tmp_path)) == 32


def test_a_file_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed write leaves the old content, and no other file beside it."""
    path = tmp_path / "file"
    write_whole(path, b"before")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"after")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]
