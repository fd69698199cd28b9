"""What dead workers left in the spool."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest

from sidecar.channels.link.frames import CallClose, CallOpen, Hints, TurnFrame
from sidecar.channels.link.spool import SpoolFile, damaged_files
from sidecar.errors import CallError, JournalFull
from sidecar.intake import LOOK_EVERY_S, SpoolIntake
from sidecar.model import CallerHints, Turn
from sidecar.telemetry import Telemetry

pytestmark = [pytest.mark.unit, pytest.mark.anyio]

OPEN = CallOpen("c1", "livekit", Hints(phone="+12025550100"), 1.0)
TURNS = [TurnFrame("c1", f"i{n}", n, "caller", f"word {n}", 1.0) for n in (1, 2)]


class Calls:
    """Takes what the intake restores, or fails as told."""

    def __init__(self) -> None:
        self.restored: list[tuple[str, str, CallerHints, Sequence[Turn]]] = []
        self.held = False
        self.error: Exception | None = None

    def keeps(self, hints: CallerHints) -> bool:
        return hints.consent != "no"

    async def restore(
        self, tenant: str, call_id: str, *, hints: CallerHints, turns: Sequence[Turn], **_: Any
    ) -> bool:
        if self.error is not None:
            raise self.error
        if not self.held:
            self.restored.append((tenant, call_id, hints, turns))
        return not self.held


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


def contents(directory: Path) -> list[bytes]:
    return [path.read_bytes() for path in directory.iterdir()]


async def test_what_a_dead_worker_left_is_stored_and_the_file_deleted(
    calls: Calls, intake: SpoolIntake, tmp_path: Path
) -> None:
    """Call, caller and turns reach the journal in order; then the file is gone."""
    path = left_behind(tmp_path)
    await intake.look()
    [(tenant, call, hints, turns)] = calls.restored
    assert (tenant, call, hints.phone) == ("t", "c1", "+12025550100")
    assert [turn.text for turn in turns] == ["word 1", "word 2"]
    assert not path.exists()


async def test_the_file_of_a_living_worker_is_left_alone(
    calls: Calls, intake: SpoolIntake, tmp_path: Path
) -> None:
    """While its writer lives, a spool file is not touched."""
    file = SpoolFile.create(tmp_path, "c1")
    file.append([OPEN, *TURNS])
    await intake.look()
    assert calls.restored == []
    assert file.path.exists()
    file.close()


@pytest.mark.parametrize("why", ["held", "full"])
async def test_what_can_not_be_stored_now_is_taken_up_later(
    calls: Calls, intake: SpoolIntake, tmp_path: Path, why: str
) -> None:
    """With the call held by a worker, or the disk full, the file stays for the next look."""
    path = left_behind(tmp_path)
    calls.held = why == "held"
    calls.error = JournalFull("no room") if why == "full" else None
    await intake.look()
    assert path.exists()
    calls.held, calls.error = False, None
    await intake.look()
    assert len(calls.restored) == 1
    assert not path.exists()


async def test_a_torn_last_line_costs_that_line_alone(
    calls: Calls, intake: SpoolIntake, tmp_path: Path
) -> None:
    """A writer killed in mid-write loses nothing that was whole."""
    path = left_behind(tmp_path, raw=b'{"type":"turn","call":"c1","it')
    await intake.look()
    assert len(calls.restored[0][3]) == 2
    assert not path.exists()


@pytest.mark.parametrize("error", [None, CallError("call_claimed", "another's")])
async def test_what_can_not_be_understood_is_set_aside_and_kept(
    calls: Calls, intake: SpoolIntake, tmp_path: Path, error: Exception | None
) -> None:
    """Rubbish in a file, or a call that is another's: no byte of it is deleted."""
    path = left_behind(tmp_path, raw=b"rubbish\n" if error is None else b"")
    content = path.read_bytes()
    calls.error = error
    await intake.look()
    assert not path.exists()
    assert contents(tmp_path) == [content]


async def test_words_without_consent_are_not_set_aside(intake: SpoolIntake, tmp_path: Path) -> None:
    """A damaged file of a caller who does not agree is deleted, words and all."""
    refused = CallOpen("c1", "livekit", Hints(phone="+12025550100", consent="no"), 1.0)
    left_behind(tmp_path, raw=b"rubbish\n", opened=refused)
    await intake.look()
    assert contents(tmp_path) == []


async def test_a_withdrawal_in_the_spool_reaches_the_calls(
    calls: Calls, intake: SpoolIntake, tmp_path: Path
) -> None:
    """A "no" that was spooled after the first opening holds for the whole file."""
    file = SpoolFile.create(tmp_path, "c1")
    no = Hints(phone="+12025550100", consent="no")
    file.append([OPEN, *TURNS, CallOpen("c1", "livekit", no, 1.0)])
    file.close()
    await intake.look()
    assert calls.restored[0][2].consent == "no"


async def test_a_file_nested_too_deep_is_stored_but_for_that_line_and_let_go(
    calls: Calls, intake: SpoolIntake, tmp_path: Path
) -> None:
    """A line no decoder bears costs itself; the file is kept, and nobody's lock stays on it."""
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
    """A disk that refuses one file costs the others nothing; whatever the fault, the lock is let go."""
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
    if isinstance(fault, OSError):
        await intake.look()
        assert [call for _, call, _, _ in calls.restored] == ["c1", "c2"]
    else:
        with pytest.raises(ValueError, match="ours"):
            await intake.look()
    file = SpoolFile.take(path)
    assert file is not None
    file.close()


async def test_a_spool_that_does_not_exist_is_empty(calls: Calls, tmp_path: Path) -> None:
    """Without a spool directory there is nothing to do, and no error."""
    emit = Telemetry(strict=True).emit
    intake = SpoolIntake(calls, tmp_path / "none", tenant="t", emit=emit)  # type: ignore[arg-type]
    await intake.look()


async def test_a_look_that_is_asked_for_is_had_at_once(
    calls: Calls, intake: SpoolIntake, tmp_path: Path
) -> None:
    """Who opens a call has the spool looked through well before the next look is due."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(intake.run)
        await intake.looked.wait()
        left_behind(tmp_path)
        with anyio.fail_after(LOOK_EVERY_S - 0.5):
            while not calls.restored:
                intake.look_soon()
                await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()
