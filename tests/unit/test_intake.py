"""What dead workers left in the spool."""

import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import anyio
import msgspec
import pytest

from sidecar.errors import CallError, JournalFull
from sidecar.jobs.intake import SpoolIntake
from sidecar.model import CallerHints, Turn
from sidecar.telemetry import Event, Telemetry
from sidecar.wire.frames import CallClose, CallOpen, Hints, TurnFrame, encode
from sidecar.wire.spool import MAX_FILE_BYTES, SpoolFile, damaged_files, erase_damaged

pytestmark = [pytest.mark.unit, pytest.mark.anyio, pytest.mark.backend("asyncio", "trio")]

OPEN = CallOpen("c1", "livekit", Hints(phone="+12025550100"), 1.0)
TURNS = [TurnFrame("c1", f"i{n}", n, "caller", f"word {n}", 1.0) for n in (1, 2)]


class Calls:
    """Stands in for the calls: takes what is restored, or fails as set."""

    def __init__(self) -> None:
        self.restored: list[tuple[str, str, CallerHints, Sequence[Turn]]] = []
        self.live = False
        self.error: Exception | None = None

    def may_store(self, hints: CallerHints) -> bool:
        return hints.consent != "no"

    async def restore(
        self, tenant: str, call_id: str, *, hints: CallerHints, turns: Sequence[Turn], **_: Any
    ) -> bool:
        if self.error is not None:
            raise self.error
        if not self.live:
            self.restored.append((tenant, call_id, hints, turns))
        return not self.live


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.fixture
def intake(calls: Calls, tmp_path: Path) -> SpoolIntake:
    emit = Telemetry(strict=True).emit
    return SpoolIntake(calls, tmp_path, tenant="t", emit=emit)  # type: ignore[arg-type]


def left_behind(directory: Path, *, raw: bytes = b"", opened: CallOpen = OPEN) -> Path:
    file = SpoolFile.create(directory, "c1")
    file.append([opened, *TURNS, CallClose("c1", 2.0)])
    file.close()
    if raw:
        with file.path.open("ab") as more:
            more.write(raw)
    return file.path


def names_in(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


def contents(directory: Path) -> list[bytes]:
    return [path.read_bytes() for path in directory.iterdir()]


async def test_what_a_dead_worker_left_is_stored_and_the_file_deleted(
    calls: Calls, intake: SpoolIntake, tmp_path: Path
) -> None:
    """Call, caller and turns are restored in order, and then the file is deleted."""
    path = left_behind(tmp_path)
    await intake.look()
    [(tenant, call, hints, turns)] = calls.restored
    assert (tenant, call, hints.phone) == ("t", "c1", "+12025550100")
    assert [turn.text for turn in turns] == ["word 1", "word 2"]
    assert not path.exists()


async def test_the_file_of_a_living_worker_is_left_alone(
    calls: Calls, intake: SpoolIntake, tmp_path: Path
) -> None:
    """A spool file is not touched while its writer lives."""
    file = SpoolFile.create(tmp_path, "c1")
    file.append([OPEN, *TURNS])
    await intake.look()
    assert calls.restored == []
    assert file.path.exists()
    file.close()


async def test_what_several_workers_left_is_taken_up_as_it_was_opened(
    calls: Calls, intake: SpoolIntake, tmp_path: Path
) -> None:
    """A call is stored before one that may go on with it, whatever their files are named."""
    for name, opened_at_s in (("a", 9.0), ("z", 3.0), ("m", 6.0)):
        file = SpoolFile.create(tmp_path, name)
        file.append([msgspec.structs.replace(OPEN, call=name, opened_at_s=opened_at_s)])
        file.close()
    await intake.look()
    assert [call_id for _, call_id, _, _ in calls.restored] == ["z", "m", "a"]


@pytest.mark.parametrize("why", ["live", "full"])
async def test_what_can_not_be_stored_now_is_taken_up_later(
    calls: Calls, intake: SpoolIntake, tmp_path: Path, why: str
) -> None:
    """If the call is live at a worker or the disk is full, the file stays for the next look."""
    path = left_behind(tmp_path)
    calls.live = why == "live"
    calls.error = JournalFull("no room") if why == "full" else None
    await intake.look()
    assert path.exists()
    calls.live, calls.error = False, None
    await intake.look()
    assert len(calls.restored) == 1
    assert not path.exists()


async def test_a_torn_last_line_costs_that_line_alone(
    calls: Calls, intake: SpoolIntake, tmp_path: Path
) -> None:
    """A last line torn by a killed writer loses only that line."""
    path = left_behind(tmp_path, raw=b'{"type":"turn","call":"c1","it')
    await intake.look()
    assert len(calls.restored[0][3]) == 2
    assert not path.exists()


@pytest.mark.parametrize("error", [None, CallError("call_claimed", "another's")])
async def test_what_can_not_be_understood_is_set_aside_and_kept(
    calls: Calls, intake: SpoolIntake, tmp_path: Path, error: Exception | None
) -> None:
    """A file with an unreadable line, or with another's call, is set aside unchanged."""
    path = left_behind(tmp_path, raw=b"rubbish\n" if error is None else b"")
    content = path.read_bytes()
    calls.error = error
    await intake.look()
    assert not path.exists()
    assert contents(tmp_path) == [content]


async def test_words_without_consent_are_not_set_aside(intake: SpoolIntake, tmp_path: Path) -> None:
    """A damaged file of a caller who does not agree is deleted, not set aside."""
    refused = CallOpen("c1", "livekit", Hints(phone="+12025550100", consent="no"), 1.0)
    left_behind(tmp_path, raw=b"rubbish\n", opened=refused)
    await intake.look()
    assert contents(tmp_path) == []


async def test_a_withdrawal_in_the_spool_reaches_the_calls(
    calls: Calls, intake: SpoolIntake, tmp_path: Path
) -> None:
    """A later "no" in a spool file applies to the whole file."""
    file = SpoolFile.create(tmp_path, "c1")
    no = Hints(phone="+12025550100", consent="no")
    file.append([OPEN, *TURNS, CallOpen("c1", "livekit", no, 1.0)])
    file.close()
    await intake.look()
    assert calls.restored[0][2].consent == "no"


async def test_a_file_nested_too_deep_is_stored_but_for_that_line_and_let_go(
    calls: Calls, intake: SpoolIntake, tmp_path: Path
) -> None:
    """A line nested too deep is skipped, and the file is set aside without a lock."""
    deep = b"[" * 5_000 + b"]" * 5_000
    left_behind(tmp_path, raw=b'{"type":"turn","x":' + deep + b"}\n")
    await intake.look()
    assert len(calls.restored[0][3]) == 2
    file = SpoolFile.take(damaged_files(tmp_path)[0])
    assert file is not None
    file.close()


@pytest.mark.parametrize("fault", [OSError("read only"), ValueError("ours")])
async def test_a_file_that_fails_is_let_go_and_holds_up_no_other(
    calls: Calls,
    intake: SpoolIntake,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Exception,
) -> None:
    """A fault at one file leaves it unlocked and does not keep others from being stored."""
    path = left_behind(tmp_path)
    other = SpoolFile.create(tmp_path, "c2")
    other.append([CallOpen("c2", "livekit", Hints(), 1.0)])
    other.close()
    remove = SpoolFile.remove

    def refuse(file: SpoolFile) -> None:
        if file.path == path:
            raise fault
        remove(file)

    monkeypatch.setattr(SpoolFile, "remove", refuse)
    await intake.look()
    assert [call for _, call, _, _ in calls.restored] == ["c1", "c2"]
    file = SpoolFile.take(path)
    assert file is not None
    file.close()


OURS = f"{encode(OPEN)}\n{encode(TURNS[0])}\n"


def _written(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o600)


def _sparse(path: Path) -> None:
    _written(path, OURS)
    os.truncate(path, 200 << 30)


def _linked(path: Path) -> None:
    target = path.parent.parent / "elsewhere.jsonl"
    _written(target, OURS)
    path.symlink_to(target)


def _open_and_empty(path: Path) -> None:
    path.touch(mode=0o644)
    path.chmod(0o644)


def _another_users(path: Path) -> None:
    _written(path, OURS)
    os.chown(path, 65_534, 65_534)


FOREIGN: dict[str, Callable[[Path], object]] = {
    "training.jsonl": lambda path: _written(path, '{"prompt": "hi", "completion": "ho"}\n' * 9),
    "chat.jsonl": lambda path: _written(path, '{"type":"turn","text":"hi"}\n'),
    "event.jsonl": lambda path: _written(path, '{"type":"hello","worker":"w"}\n'),
    "text.jsonl": lambda path: _written(path, "no json at all"),
    "binary.jsonl": lambda path: path.write_bytes(bytes(range(256)) * 10),
    "zeros.jsonl": lambda path: path.write_bytes(b"\0" * 4_096),
    "empty.jsonl": _open_and_empty,
    "sparse.jsonl": _sparse,
    "link.jsonl": _linked,
    "dangling.jsonl": lambda path: path.symlink_to("nowhere"),
    "pipe.jsonl": os.mkfifo,
    "folder.jsonl": lambda path: path.mkdir(),
    "a name of a person.jsonl": lambda path: _written(path, OURS),
    "two.dots.jsonl": lambda path: _written(path, OURS),
    "another.jsonl": _another_users,
    "training.damaged": lambda path: _written(path, '{"prompt": "hi"}\n'),
    "folder.damaged": lambda path: path.mkdir(),
    "notes.txt": lambda path: _written(path, OURS),
}


def _as_it_is(path: Path) -> tuple[object, ...]:
    status = path.lstat()
    small = stat.S_ISREG(status.st_mode) and status.st_size < MAX_FILE_BYTES
    return status.st_ino, status.st_mtime_ns, status.st_size, path.read_bytes() if small else b""


@pytest.mark.parametrize("name", FOREIGN)
async def test_a_file_that_no_worker_wrote_is_left_as_it_is(
    calls: Calls, tmp_path: Path, name: str
) -> None:
    """A foreign file in the spool is left exactly as it is, and reported once."""
    if name == "another.jsonl" and os.geteuid():
        pytest.skip("only root may give a file away")
    spool = tmp_path / "spool"
    spool.mkdir()
    foreign = spool / name
    FOREIGN[name](foreign)
    before = _as_it_is(foreign)
    telemetry = Telemetry(strict=True)
    intake = SpoolIntake(calls, spool, tenant="t", emit=telemetry.emit)  # type: ignore[arg-type]
    for n in range(3):
        ours = left_behind(spool)
        await intake.look()
        assert len(calls.restored) == n + 1
        assert not ours.exists()
    assert erase_damaged(spool, before_s=1e12) == 0
    assert _as_it_is(foreign) == before
    assert names_in(spool) == [name]
    assert telemetry.counts["spool_refused"] == name.endswith(".jsonl")


async def test_one_trouble_is_said_once_until_it_is_another(
    intake: SpoolIntake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault that persists is logged once, and again only after another fault."""
    left_behind(tmp_path)
    said: list[object] = []

    def emit(_: Event, /, **fields: object) -> None:
        said.append(fields.get("error"))

    monkeypatch.setattr(intake, "_emit", emit)
    for trouble in ("Input/output error", "Read-only file system", "Input/output error"):
        refusing = Mock(side_effect=OSError(5, trouble))
        monkeypatch.setattr(SpoolFile, "read", refusing)
        for _ in range(3):
            await intake.look()
    assert said == ["Input/output error", "Read-only file system", "Input/output error"]


async def test_a_file_of_the_previous_release_is_taken_up(
    calls: Calls, intake: SpoolIntake, tmp_path: Path
) -> None:
    """Files of an earlier version are stored, even those whose first line is torn."""
    (tmp_path / "AJ_old.jsonl").write_text(OURS)
    torn = encode(OPEN)[:40]
    (tmp_path / "AJ_torn.jsonl").write_text(f"{torn}\n{OURS}")
    (tmp_path / "AJ_cut.jsonl").write_text(torn)
    (tmp_path / "AJ_none.jsonl").touch(mode=0o600)
    await intake.look()
    assert [call for _, call, _, _ in calls.restored] == ["c1", "c1"]
    assert names_in(tmp_path) == ["AJ_torn.damaged"]


async def test_a_spool_that_does_not_exist_is_empty(calls: Calls, tmp_path: Path) -> None:
    """Without a spool directory there is nothing to do, and no error."""
    emit = Telemetry(strict=True).emit
    intake = SpoolIntake(calls, tmp_path / "none", tenant="t", emit=emit)  # type: ignore[arg-type]
    await intake.look()


async def test_a_look_that_is_asked_for_is_had_at_once(
    calls: Calls, intake: SpoolIntake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A requested look happens at once, even if the next one is due in an hour."""
    monkeypatch.setattr("sidecar.jobs.intake.LOOK_EVERY_S", 3_600.0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(intake.run)
        await intake.looked.wait()
        left_behind(tmp_path)
        with anyio.fail_after(20.0):
            while not calls.restored:
                intake.look_soon()
                await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()
