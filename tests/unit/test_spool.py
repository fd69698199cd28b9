"""The spool file: what a worker leaves behind, and how it is taken up."""

import fcntl
import os
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.wire import spool, spooled
from sidecar.wire.frames import MAX_FRAME_BYTES, CallClose, CallOpen, Hints, TurnFrame, encode
from sidecar.wire.spool import (
    SpoolFile,
    damaged_files,
    default_spool_dir,
    erase_damaged,
    spool_files,
    spool_path,
)

pytestmark = pytest.mark.unit

OPENED = CallOpen(call="AJ_1", channel="livekit", hints=Hints(caller="ada"), opened_at_s=1.0)
CLOSED = CallClose(call="AJ_1", at_s=9.0, reason="hung up")


def turn(seq: int, text: str = "hello") -> TurnFrame:
    return TurnFrame(
        call="AJ_1", item=f"i{seq}", seq=seq, speaker="caller", text=text, at_s=float(seq)
    )


def test_what_is_appended_is_read_back_in_order(tmp_path: Path) -> None:
    """A file returns the call's opening, its turns in order, and its end."""
    file = SpoolFile.create(tmp_path, "AJ_1")
    file.append([OPENED, turn(1), turn(2, "zwei\nlines, ünïcode")])
    file.append([CLOSED])

    spooled = file.read()

    assert OPENED == spooled.opened
    assert (turn(1), turn(2, "zwei\nlines, ünïcode")) == spooled.turns
    assert CLOSED == spooled.closed
    assert (0, False) == (spooled.damaged, spooled.torn)
    file.close()


def test_files_set_aside_go_with_the_transcripts_of_their_age(tmp_path: Path) -> None:
    """Files set aside are kept as long as transcripts, and no longer."""
    for name, written_s in (("AJ_old", 1_000.0), ("AJ_new", 9_000.0)):
        file = SpoolFile.create(tmp_path, name)
        file.append([OPENED])
        os.utime(file.set_aside(), (written_s, written_s))
    assert erase_damaged(tmp_path, before_s=5_000.0) == 1
    (aside,) = damaged_files(tmp_path)
    assert aside.stat().st_mtime == 9_000.0
    assert erase_damaged(tmp_path / "none", before_s=5_000.0) == 0


def test_a_file_is_not_taken_while_its_writer_lives(tmp_path: Path) -> None:
    """A file can be taken only after its writer has released the lock."""
    writer = SpoolFile.create(tmp_path, "AJ_1")
    writer.append([OPENED, turn(1)])

    assert SpoolFile.take(writer.path) is None
    writer.close()
    taken = SpoolFile.take(writer.path)

    assert taken is not None
    assert (turn(1),) == taken.read().turns
    taken.remove()
    assert [] == spool_files(tmp_path)


def test_a_file_that_is_gone_is_nothing_to_take(tmp_path: Path) -> None:
    """Taking a file that another sidecar has already removed returns None."""
    assert SpoolFile.take(tmp_path / "gone.jsonl") is None


NOBODY = Hints(agent_id="agent-7")
NO = Hints(caller="ada", consent="no")


@pytest.mark.parametrize(
    ("said", "stands"),
    [
        ([NOBODY, Hints(caller="ada")], Hints(caller="ada")),
        ([Hints(caller="ada"), Hints(caller="bob")], Hints(caller="ada")),
        ([Hints(caller="ada"), NOBODY], Hints(caller="ada")),
        ([NOBODY, Hints()], NOBODY),
        ([Hints(caller="ada", consent="yes"), NO], NO),
        ([NO, Hints(caller="ada", consent="yes")], NO),
        ([Hints(consent="no"), Hints(caller="ada")], NO),
    ],
)
def test_the_first_who_is_named_stands_and_a_no_holds(
    tmp_path: Path, said: list[Hints], stands: Hints
) -> None:
    """Of several openings the first named caller counts, and a single "no" does."""
    file = SpoolFile.create(tmp_path, "AJ_1")
    for n, hints in enumerate(said, start=1):
        file.append([CallOpen("AJ_1", "livekit", hints, 1.0), turn(n)])
    spooled = file.read()
    assert spooled.opened is not None
    assert stands == spooled.opened.hints
    assert (turn(1), turn(2)) == spooled.turns
    file.close()


def test_a_file_set_aside_covers_no_earlier_one(tmp_path: Path) -> None:
    """Each damaged file of a call is kept."""
    aside: set[Path] = set()
    for n in range(3):
        file = SpoolFile.create(tmp_path, "AJ_1")
        file.append([OPENED, turn(n)])
        aside.add(file.set_aside())
    assert 3 == len(aside)
    assert aside == set(tmp_path.glob("*.damaged"))
    assert [] == spool_files(tmp_path)


def test_a_torn_last_line_costs_only_itself(tmp_path: Path) -> None:
    """A line torn by a killed writer is skipped, and the file is known to be torn."""
    path = spool_path(tmp_path, "AJ_1")
    whole = f"{encode(OPENED)}\n{encode(turn(1))}\n"
    path.write_text(whole + encode(turn(2))[:20])

    file = SpoolFile.take(path)

    assert file is not None
    spooled = file.read()
    assert ((turn(1),), 0, True) == (spooled.turns, spooled.damaged, spooled.torn)
    file.close()


def test_a_writer_goes_on_after_a_torn_line(tmp_path: Path) -> None:
    """A torn line of an earlier process does not damage the next one's first frame."""
    path = spool_path(tmp_path, "AJ_1")
    path.write_text(f"{encode(OPENED)}\n{encode(turn(1))[:15]}")

    file = SpoolFile.create(tmp_path, "AJ_1")
    file.append([OPENED, turn(2)])

    assert file.inherited
    assert ((turn(2),), 1) == (file.read().turns, file.read().damaged)
    assert [turn(2)] == file.read_own(after_seq=0, most=10, most_bytes=1 << 20)
    file.close()


def test_damaged_lines_are_counted_and_can_be_set_aside(tmp_path: Path) -> None:
    """Lines that are no frames are counted, and a file set aside is not taken again."""
    path = spool_path(tmp_path, "AJ_1")
    path.write_bytes(f"{encode(OPENED)}\n".encode() + b'{"type":"turn"}\n\xff\xfe\n')

    file = SpoolFile.take(path)

    assert file is not None
    assert 2 == file.read().damaged
    aside = file.set_aside()
    assert aside.exists()
    assert [] == spool_files(tmp_path)


def test_an_append_that_fails_leaves_no_half_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed append leaves the file as it was, without half a line."""
    file = SpoolFile.create(tmp_path, "AJ_1")
    file.append([OPENED, turn(1)])
    write = os.write

    def full(descriptor: int, data: memoryview) -> int:
        if len(data) > 10:
            return write(descriptor, data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        file.append([turn(2)])
    monkeypatch.undo()

    spooled = file.read()
    assert ((turn(1),), 0, False) == (spooled.turns, spooled.damaged, spooled.torn)
    file.close()


def test_a_file_removed_before_the_lock_was_had_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer whose file was removed before it had the lock makes a new one."""
    path = spool_path(tmp_path, "AJ_1")
    lock = fcntl.flock
    raced = False

    def slow_lock(descriptor: int, flags: int) -> None:
        nonlocal raced
        if not raced:
            raced = True
            path.unlink()
        lock(descriptor, flags)

    monkeypatch.setattr(fcntl, "flock", slow_lock)
    file = SpoolFile.create(tmp_path, "AJ_1")
    file.append([OPENED])

    assert f"{encode(OPENED)}\n" == path.read_text()
    file.close()


def test_a_worker_never_writes_into_anothers_file(tmp_path: Path) -> None:
    """If another's file has a call's name, the call always gets the same other file."""
    theirs = tmp_path / "AJ_1.jsonl"
    theirs.write_text('{"prompt": "hi"}\n')
    target = tmp_path / "target"
    target.write_text("theirs")
    (tmp_path / "AJ_2.jsonl").symlink_to(target)
    for call in ("AJ_1", "AJ_2"):
        for n in (1, 2):
            file = SpoolFile.create(tmp_path, call)
            file.append([OPENED, turn(n)])
            file.close()
        taken = SpoolFile.take(file.path)
        assert taken is not None
        assert [1, 2] == [one.seq for one in taken.read().turns]
        taken.remove()
    assert theirs.read_text() == '{"prompt": "hi"}\n'
    assert target.read_text() == "theirs"
    assert [] == spool_files(tmp_path)


def test_a_worker_writes_no_more_than_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An append that would make a file too large to be read fails, and the rest is kept."""
    file = SpoolFile.create(tmp_path, "AJ_1")
    file.append([OPENED, turn(1)])
    monkeypatch.setattr(spool, "MAX_FILE_BYTES", file.path.stat().st_size + 10)
    with pytest.raises(OSError, match="holds"):
        file.append([turn(2)])
    assert (turn(1),) == file.read().turns
    file.close()
    assert [file.path] == spool_files(tmp_path)


@pytest.mark.parametrize("call", ["../../etc/passwd", "a/b", "", "x" * 300, "ünïcode", ".hidden"])
def test_no_call_id_leads_out_of_the_directory(tmp_path: Path, call: str) -> None:
    """Whatever a call's id is, its file is directly in the spool directory."""
    path = spool_path(tmp_path, call)

    assert tmp_path == path.parent
    assert path.stem.isalnum()


def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    """Directory and file are readable by their owner only, under any umask."""
    before = os.umask(0)
    try:
        file = SpoolFile.create(tmp_path / "spool", "AJ_1")
    finally:
        os.umask(before)
    assert 0o700 == file.path.parent.stat().st_mode & 0o777
    assert 0o600 == file.path.stat().st_mode & 0o777
    file.close()


def test_the_default_directory_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default directory follows XDG_STATE_HOME, and is the same at both ends."""
    monkeypatch.setenv("XDG_STATE_HOME", "/var/state")
    assert Path("/var/state/letta-sidecar/spool") == default_spool_dir()
    monkeypatch.delenv("XDG_STATE_HOME")
    assert Path.home() / ".local/state/letta-sidecar/spool" == default_spool_dir()


def test_what_is_read_back_is_bounded_and_goes_on_where_it_ended(tmp_path: Path) -> None:
    """A file is read in parts bounded in turns and bytes, in order and to its end."""
    file = SpoolFile.create(tmp_path, "AJ_1")
    big = [turn(n, "x" * 100_000) for n in range(1, 31)]
    file.append([OPENED, *big])

    read: list[TurnFrame] = []
    while part := file.read_own(after_seq=len(read), most=7, most_bytes=450_000):
        assert len(part) <= 5
        read += part

    assert big == read
    assert 7 == len(file.read_own(after_seq=0, most=7, most_bytes=1 << 30))
    assert [big[3]] == file.read_own(after_seq=3, most=7, most_bytes=-1)
    file.close()


def test_reading_a_file_holds_no_more_than_what_is_asked_for(tmp_path: Path) -> None:
    """Reading a part of a large file takes only a few megabytes of memory."""
    file = SpoolFile.create(tmp_path, "AJ_1")
    for n in range(1, 51):
        file.append([turn(n, "x" * 1_000_000)])

    tracemalloc.start()
    file.read_own(after_seq=30, most=10_000, most_bytes=2 << 20)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak_bytes < 10 << 20
    file.close()


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(["turn", "junk", "long", "empty"]), max_size=12),
    st.integers(0, 40),
    st.integers(1, 97),
)
def test_a_file_reads_the_same_in_pieces_of_any_size(
    lines: list[str], torn_chars: int, piece_bytes: int
) -> None:
    """Whatever sizes a file is read in, the same frames are found and damaged lines counted."""
    made = {
        "turn": encode(turn(1)),
        "junk": '{"type":"turn"}',
        "long": encode(turn(1, "x" * (MAX_FRAME_BYTES + 1))),
        "empty": "",
    }
    torn = encode(turn(9))[:torn_chars]
    with (
        tempfile.TemporaryFile() as raw,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(spooled, "_PIECE_BYTES", piece_bytes if "long" not in lines else 4096)
        raw.write(("".join(f"{made[line]}\n" for line in lines) + torn).encode())
        raw.flush()
        found = spooled.read_spooled(raw.fileno())

    assert (turn(1),) * lines.count("turn") == found.turns
    assert lines.count("junk") + lines.count("long") == found.damaged
    assert bool(torn) == found.torn
