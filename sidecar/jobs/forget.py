"""Forgets a caller everywhere the sidecar can reach, and checks whether anything remains.

Theory of operation: nothing is erased before it is known that the caller is not on the line and
that Letta answers. Then, in this order: the journal (from here on nothing more of the caller is
posted, and no spool file of an erased call is taken up), spool files, the last good copies, Letta.
Then every file below the data directory, and every worker's file in the spool, is searched byte by
byte for what was erased. Each step may be repeated.

What comes late for an erased call (a report that VAPI repeats, turns that a worker still holds) is
not stored: the journal keeps a tombstone of each call, which names nobody, for as long as it keeps
transcripts.
"""

import errno
import os
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import anyio
import anyio.to_thread

from sidecar import telemetry
from sidecar.access.callers import IdentityRules, resolve
from sidecar.errors import AgentNotFound, CallerBusy, LettaError
from sidecar.journal.erasure import Erasure, StoredOfCaller
from sidecar.letta.digest_agent import caller_tags
from sidecar.letta.port import Letta
from sidecar.model import call_key
from sidecar.telemetry import Emit
from sidecar.wire.frames import hints_of
from sidecar.wire.spool import SpoolFile, damaged_files, look_into, spooled_in

SEARCHED_PIECES = 200
_PIECE_BYTES = 40
_MIN_BYTES = 16
_WINDOW_BYTES = 8 << 20
_LETTA_BUDGET_S = 60.0
# Plain enough that JSON, XML and SQLite all store it as it is.
_PLAIN_RUN = re.compile(r"[A-Za-z0-9 ,.?!-]{16,}")


class Copies(Protocol):
    """The last good copies of agents' memory."""

    async def forget(self, agent_id: str) -> None:
        """Erase every copy of an agent's memory."""
        ...


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What is stored of a caller, or was stored until it was erased.

    Attributes:
        done: False: this is what would be erased.
        caller_key: Of the caller.
        calls: Calls in the journal.
        turns: Turns of them.
        undelivered: Turns that Letta never got, and now never will.
        dead_letters: Batches of them that were given up.
        spool_files: Files that workers left.
        tombstones: Calls that are kept from coming back, by a keyed hash that names nobody.
        agents: Letta agents of this caller alone.
        conversations: Conversations of agents that others use as well.
        searched: Pieces of what was said that were looked for in `files`.
        files: Files that were searched, byte by byte.
        traces: Files in which a piece was found that nobody else has said.
        left: What could not be erased, each with where it is and what to do.
    """

    done: bool
    caller_key: str
    calls: int
    turns: int
    undelivered: int
    dead_letters: int
    spool_files: int
    agents: tuple[str, ...]
    conversations: int
    tombstones: int = 0
    searched: int = 0
    files: int = 0
    traces: tuple[str, ...] = ()
    left: tuple[str, ...] = ()


class Forgetting:
    """Forgets callers.

    Args:
        journal: Of this sidecar.
        letta: Where agents live.
        copies: Last good copies, those in memory as well if a sidecar runs.
        rules: Rules that identify the caller of a spool file.
        directory: The data directory; all below it is searched.
        spool: Where workers leave turns.
        spool_tenant: Whose workers leave turns there; None if several tenants may.
        on_the_line: Whether a caller, by its key, is in a live call of this process. The journal
            does not know of a call that another call of its room records.
        emit: Where events go.
        clock: Unix time in seconds.
    """

    def __init__(
        self,
        journal: Erasure,
        letta: Letta,
        copies: Copies,
        *,
        rules: IdentityRules,
        directory: Path,
        spool: Path,
        spool_tenant: str | None,
        on_the_line: Callable[[str], bool],
        emit: Emit,
        clock: Callable[[], float],
    ) -> None:
        self._journal = journal
        self._letta = letta
        self._copies = copies
        self._rules = rules
        self._directory = directory
        self._spool = spool
        self._spool_tenant = spool_tenant
        self._on_the_line = on_the_line
        self._emit = emit
        self._clock = clock

    async def plan(self, tenant: str, caller_key: str) -> Forgotten:
        """Return what `forget` would erase; nothing is touched.

        Raises:
            LettaError: Letta can't say which agents the caller has.
            JournalError: the journal failed.
        """
        stored = await self._journal.stored_of_caller(caller_key)
        agents = await self._agents_of(tenant, caller_key, stored)
        spooled = await anyio.to_thread.run_sync(self._spooled, caller_key)
        return self._report(caller_key, stored, agents, spooled, done=False)

    async def forget(self, tenant: str, caller_key: str) -> Forgotten:
        """Erase a caller and look for remains.

        Raises:
            CallerBusy: the caller is on the line, or a batch is on its way to Letta; nothing was
                erased.
            LettaError: Letta does not answer; nothing was erased.
            JournalError: the journal failed; repeat it.
        """
        stored = await self._journal.stored_of_caller(caller_key)
        self._refuse_if_busy(caller_key, stored)
        agents = await self._agents_of(tenant, caller_key, stored)
        said = [turn.text for key in stored.calls for turn in await self._journal.turns(key)]
        spooled = await anyio.to_thread.run_sync(self._spooled, caller_key)
        said += [text for file in spooled for text in file.texts]
        also = [file.call for file in spooled]
        self._refuse_if_busy(caller_key, stored)  # a call may have begun meanwhile
        await self._journal.erase_caller(caller_key, also=also, agents=agents, now_s=self._clock())
        await anyio.to_thread.run_sync(_remove, [file.path for file in spooled])
        left = await self._erase_at_letta(agents, stored)
        report = self._report(caller_key, stored, agents, spooled, done=True)
        pieces = await anyio.to_thread.run_sync(pieces_of, said, caller_key)
        files = await anyio.to_thread.run_sync(_searchable, self._directory, self._spool)
        found, unsearched = await anyio.to_thread.run_sync(_search, files, pieces)
        own = await self._said_by_nobody_else(found)
        unread = await anyio.to_thread.run_sync(self._unread)
        traces = tuple(
            sorted(str(path) for path, hits in found.items() if not own.isdisjoint(hits))
        )
        self._emit(
            telemetry.caller_forgotten,
            turns=stored.turns,
            agents=len(agents),
            conversations=report.conversations,
        )
        return replace(
            report,
            searched=len(pieces),
            files=len(files),
            traces=traces,
            left=(*left, *unread, *unsearched, *self._out_of_reach(stored, agents)),
        )

    def _refuse_if_busy(self, caller_key: str, stored: StoredOfCaller) -> None:
        if stored.live_calls or stored.under_way or self._on_the_line(caller_key):
            raise CallerBusy(
                "a call of this caller is live, or a batch on its way to Letta",
                hint="try again when the call has ended and Letta has answered",
            )

    async def _agents_of(
        self, tenant: str, caller_key: str, stored: StoredOfCaller
    ) -> tuple[str, ...]:
        """Return the caller's own agents: the learnt one, and all that carry the caller's tags."""
        found = await self._letta.find_agents(caller_tags(tenant, caller_key))
        own = {agent.agent_id for agent in found}
        if stored.own_agent is not None:
            own.add(stored.own_agent)
        return tuple(sorted(own))

    def _report(
        self,
        caller_key: str,
        stored: StoredOfCaller,
        agents: tuple[str, ...],
        spooled: Sequence["_Spooled"],
        *,
        done: bool,
    ) -> Forgotten:
        return Forgotten(
            done=done,
            caller_key=caller_key,
            calls=len(stored.calls),
            turns=stored.turns,
            undelivered=stored.undelivered,
            dead_letters=stored.dead_batches,
            spool_files=len(spooled),
            agents=agents,
            conversations=sum(agent not in agents for agent, _ in stored.conversations),
            tombstones=len({*stored.calls, *(file.call for file in spooled)}),
        )

    async def _erase_at_letta(self, agents: Sequence[str], stored: StoredOfCaller) -> list[str]:
        """Erase agents and conversations; return what remains, with what to do."""
        left: list[str] = []

        async def erase(what: str, step: Callable[[], Awaitable[None]]) -> None:
            try:
                with anyio.fail_after(_LETTA_BUDGET_S):
                    await step()
            except AgentNotFound:
                return
            except (LettaError, TimeoutError) as error:
                left.append(f"{what} at Letta ({type(error).__name__}): delete it there")

        for agent_id in agents:
            await self._erase_copy(agent_id)
            await erase(f"agent {agent_id}", lambda a=agent_id: self._letta.erase_agent(a))
            # Again, since a read that was under way may have stored a new copy.
            left += await self._erase_copy(agent_id)
        for agent_id, conversation_id in stored.conversations:
            if agent_id not in agents:
                await erase(
                    f"conversation {conversation_id} of agent {agent_id}",
                    lambda a=agent_id, c=conversation_id: self._letta.erase_conversation(a, c),
                )
        return left

    async def _erase_copy(self, agent_id: str) -> list[str]:
        """Erase the last good copy of an agent; return what remains, with what to do."""
        try:
            await self._copies.forget(agent_id)
        except OSError as error:
            why = error.strerror or type(error).__name__
            return [f"the copy of agent {agent_id} in {self._directory} ({why}): delete it"]
        return []

    def _unread(self) -> list[str]:
        """Return the spool files that may be the caller's but don't name one. Blocking."""
        if not self._spool.is_dir():
            return []
        if self._spool_tenant is None:
            files = sorted(path.name for path in self._spool.glob("*.*") if path.is_file())
            why = "written by a worker of a tenant that it does not name"
        else:
            files = [path.name for path in damaged_files(self._spool) if not _names_a_caller(path)]
            why = "damaged, its caller can't be read"
        return [f"spool file {name} in {self._spool}, {why}: look into it" for name in files]

    def _out_of_reach(self, stored: StoredOfCaller, agents: Sequence[str]) -> list[str]:
        shared = [agent for agent in stored.agents if agent not in agents]
        left = [
            f"memory of agent {agent}, which others use: read `sidecar agents show {agent}` and"
            " edit what it learnt from this caller"
            for agent in shared
        ]
        left.append(
            "logs, backups and traces of this host, of Letta and of the model's provider, and the"
            " git history that a Letta App Server keeps of each memory"
        )
        return left

    async def _said_by_nobody_else(self, found: dict[Path, set[bytes]]) -> set[bytes]:
        """Return the pieces that no call still in the journal holds."""
        own = {piece for pieces in found.values() for piece in pieces}
        return own - await self._journal.said_of(own)

    def _spooled(self, caller_key: str) -> list["_Spooled"]:
        """Return the spool files of a caller, damaged ones too. Blocking.

        Raises:
            CallerBusy: a worker holds one.
        """
        if self._spool_tenant is None or not self._spool.is_dir():
            return []
        found: list[_Spooled] = []
        for path in sorted([*self._spool.glob("*.jsonl"), *self._spool.glob("*.damaged")]):
            try:
                file = SpoolFile.take(path)
            except OSError:
                continue
            if file is None:
                if _belongs_to(path, caller_key, self._spool_tenant, self._rules):
                    raise CallerBusy(
                        "a worker holds a spool file of this caller",
                        hint="try again when it has ended",
                    )
                continue
            try:
                read = file.read()
            finally:
                file.close()
            if read.opened is None:
                continue
            hints = hints_of(read.opened)
            if resolve(self._spool_tenant, hints, self._rules).caller_key == caller_key:
                call = call_key(self._spool_tenant, read.opened.call)
                found.append(_Spooled(path, call, tuple(turn.text for turn in read.turns)))
        return found


@dataclass(frozen=True, slots=True)
class _Spooled:
    path: Path
    call: str
    texts: tuple[str, ...]


def _belongs_to(path: Path, caller_key: str, tenant: str, rules: IdentityRules) -> bool:
    """Whether a file that its writer still holds is a caller's, as far as it says by now."""
    try:
        opened = spooled_in(path).opened
    except OSError:
        return False
    return opened is not None and resolve(tenant, hints_of(opened), rules).caller_key == caller_key


def _names_a_caller(path: Path) -> bool:
    try:
        return spooled_in(path).opened is not None
    except OSError:
        return False


def pieces_of(said: Iterable[str], caller_key: str, *, limit: int = SEARCHED_PIECES) -> list[bytes]:
    """Return what to search for: the caller's key, and one distinctive piece of each of some turns.

    A piece is long enough not to be said by chance. Turns too short for one ("yes") have none.

    Args:
        said: Texts of turns.
        caller_key: Of the caller.
        limit: At most this many, spread evenly over the turns.
    """
    pieces: list[bytes] = []
    for text in said:
        run = max(_PLAIN_RUN.findall(text), key=len, default=text)
        raw = run.strip()[:_PIECE_BYTES].encode("utf-8", "replace")[:_PIECE_BYTES]
        if len(raw) >= _MIN_BYTES:
            pieces.append(raw)
    every = max(1, -(-len(pieces) // max(1, limit - 1)))
    return [caller_key.encode(), *dict.fromkeys(pieces[::every])]


def _searchable(directory: Path, spool: Path) -> list[Path]:
    """Return the files to search: all below the data directory, and workers' files in the spool.

    Only workers' files, since a spool elsewhere may hold other people's files, of any size.
    """
    found: dict[Path, None] = {}
    for path in sorted(directory.rglob("*")) if directory.is_dir() else ():
        if path.is_file() and not path.is_symlink():
            found[path.resolve()] = None
    for path in [*look_into(spool).files, *damaged_files(spool)]:
        found[path.resolve()] = None
    return list(found)


def _search(
    files: Sequence[Path], pieces: Sequence[bytes]
) -> tuple[dict[Path, set[bytes]], list[str]]:
    """Return the pieces found, by file, and which files could not be read, each with what to do."""
    found: dict[Path, set[bytes]] = {}
    unread: list[str] = []
    for path in files:
        try:
            for window in _windows(path):
                hits = {piece for piece in pieces if piece in window}
                if hits:
                    found.setdefault(path, set()).update(hits)
        except FileNotFoundError:  # gone meanwhile
            continue
        except OSError as error:
            unread.append(f"{path} could not be searched ({error.strerror}): look into it")
    return found, unread


def _windows(path: Path) -> Iterator[bytes]:
    """Yield a file's data in windows that overlap by more than a piece's length; skip holes."""
    with path.open("rb") as file:
        tail, at = b"", 0
        while (data := _data_from(file.fileno(), at)) is not None:
            if data > at:
                tail = b""  # a hole is zeros, which are in no piece
            file.seek(data)
            if not (read := file.read(_WINDOW_BYTES)):
                return
            yield tail + read
            tail, at = read[-2 * _PIECE_BYTES :], data + len(read)


def _data_from(descriptor: int, at: int) -> int | None:
    """Return where a file's data continues; None at its end. Holes, however large, are skipped."""
    try:
        return os.lseek(descriptor, at, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        return at  # a file system without holes


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
