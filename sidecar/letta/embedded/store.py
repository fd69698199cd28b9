"""The one SQLite file of the embedded Letta. Blocking: callers run it in a worker thread."""

import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import apsw

from sidecar.errors import AgentNotFound, ConversationGone, LettaError, Rejected
from sidecar.letta.memory_tools import storable
from sidecar.letta.port import AgentSpec, FoundAgent, Post
from sidecar.model import Block, Passage
from sidecar.private import make_directory

_FORMAT = 2
_BUSY_MS = 5_000

_SCHEMA = """
CREATE TABLE agents (
    agent_id TEXT PRIMARY KEY, name TEXT NOT NULL, system TEXT NOT NULL, created_at_s REAL NOT NULL
) STRICT;
CREATE TABLE tags (
    agent_id TEXT NOT NULL REFERENCES agents ON DELETE CASCADE,
    tag TEXT NOT NULL,
    PRIMARY KEY (tag, agent_id)
) STRICT, WITHOUT ROWID;
CREATE TABLE blocks (
    agent_id TEXT NOT NULL REFERENCES agents ON DELETE CASCADE,
    label TEXT NOT NULL,
    value TEXT NOT NULL,
    description TEXT NOT NULL,
    limit_chars INTEGER,
    read_only INTEGER NOT NULL,
    PRIMARY KEY (agent_id, label)
) STRICT, WITHOUT ROWID;
CREATE TABLE conversations (
    conversation_id TEXT PRIMARY KEY,
    agent_id TEXT NOT NULL REFERENCES agents ON DELETE CASCADE,
    label TEXT NOT NULL,
    created_at_s REAL NOT NULL
) STRICT;
CREATE INDEX conversations_of_agent ON conversations (agent_id);
CREATE TABLE messages (
    otid TEXT PRIMARY KEY,
    conversation_id TEXT NOT NULL REFERENCES conversations ON DELETE CASCADE,
    text TEXT NOT NULL,
    at_s REAL NOT NULL
) STRICT;
CREATE INDEX messages_of_conversation ON messages (conversation_id);
"""
_PASSAGES = """
CREATE TABLE passages (
    passage_id TEXT PRIMARY KEY,
    agent_id TEXT NOT NULL REFERENCES agents ON DELETE CASCADE,
    text TEXT NOT NULL,
    at_s REAL NOT NULL
) STRICT;
CREATE INDEX passages_of_agent ON passages (agent_id);
"""


class EmbeddedStore:
    """Agents, blocks, passages, conversations and digested messages.

    Every method is one transaction; what it changed is on disk (fsynced) when it returns. Calls
    must not overlap. Faults of the file surface as `apsw.Error`.

    Args:
        path: The file; made with mode 0600, its missing folder with 0700.

    Raises:
        LettaError: the file was written by a later version.
    """

    def __init__(self, path: Path) -> None:
        make_directory(path.parent)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        path.chmod(0o600)
        # apsw's own types are only partly known to a strict checker; rows are `Any` here.
        self._db: Any = apsw.Connection(str(path))
        self._db.set_busy_timeout(_BUSY_MS)
        for pragma in (
            "journal_mode = wal",
            "synchronous = full",
            "foreign_keys = on",
            "secure_delete = on",
        ):
            self._db.execute(f"PRAGMA {pragma}").fetchall()
        with self._db:
            (version,) = self._row("PRAGMA user_version") or (0,)
            if version < _FORMAT:
                schema = _PASSAGES if version else _SCHEMA + _PASSAGES
                self._db.execute(f"{schema} PRAGMA user_version = {_FORMAT}")
        if version > _FORMAT:
            self._db.close()
            raise LettaError(
                "the embedded Letta's file was written by a later version", hint="upgrade sidecar"
            )

    def create_agent(self, spec: AgentSpec, *, now_s: float) -> str:
        """Store an agent and return its new id.

        Raises:
            Rejected: two blocks share a label, or a value is over its limit.
        """
        labels = [block.label for block in spec.blocks]
        if len(set(labels)) != len(labels):
            raise Rejected("two blocks of the agent share a label")
        for block in spec.blocks:
            if block.limit_chars is not None and len(block.value) > block.limit_chars:
                raise Rejected(f"block {block.label!r} is over its limit of {block.limit_chars}")
        agent_id = f"agent-{uuid.uuid4()}"
        with self._db:
            self._db.execute(
                "INSERT INTO agents VALUES (?, ?, ?, ?)",
                (agent_id, storable(spec.name), storable(spec.system), now_s),
            )
            self._db.executemany(
                "INSERT OR IGNORE INTO tags (agent_id, tag) VALUES (?, ?)",
                [(agent_id, storable(tag)) for tag in spec.tags],
            )
            self._db.executemany(
                "INSERT INTO blocks VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (
                        agent_id,
                        storable(b.label),
                        storable(b.value),
                        storable(b.description),
                        b.limit_chars,
                        int(b.read_only),
                    )
                    for b in spec.blocks
                ],
            )
        return agent_id

    def delete_agent(self, agent_id: str) -> None:
        """Delete an agent with all it holds."""
        with self._db:
            self._db.execute("DELETE FROM agents WHERE agent_id = ?", (storable(agent_id),))

    def delete_conversation(self, agent_id: str, conversation_id: str) -> None:
        """Delete a conversation of an agent with its messages."""
        with self._db:
            self._db.execute(
                "DELETE FROM conversations WHERE agent_id = ? AND conversation_id = ?",
                (storable(agent_id), storable(conversation_id)),
            )

    def checkpoint(self) -> None:
        """Empty the write-ahead log: what was deleted is overwritten in the file, too."""
        self._rows("PRAGMA wal_checkpoint(TRUNCATE)")

    def find_agents(self, tags: Sequence[str]) -> list[FoundAgent]:
        """Return the agents that carry all of `tags`, oldest first."""
        with self._db:
            tags_of: dict[str, list[str]] = {}
            for agent_id, tag in self._rows("SELECT agent_id, tag FROM tags ORDER BY tag"):
                tags_of.setdefault(agent_id, []).append(tag)
            rows = self._rows(
                "SELECT agent_id, name, created_at_s FROM agents ORDER BY created_at_s, agent_id"
            )
        return [
            FoundAgent(agent_id, name, tuple(tags_of.get(agent_id, ())), created_at_s)
            for agent_id, name, created_at_s in rows
            if set(tags) <= set(tags_of.get(agent_id, ()))
        ]

    def read_agent(self, agent_id: str) -> tuple[str, dict[str, Block]]:
        """Return an agent's instructions and its blocks by label, in order of label.

        Raises:
            AgentNotFound: no such agent.
        """
        with self._db:
            agent = self._row("SELECT system FROM agents WHERE agent_id = ?", storable(agent_id))
            if agent is None:
                raise AgentNotFound("the embedded Letta has no such agent")
            rows = self._rows(
                "SELECT label, value, description, limit_chars, read_only FROM blocks"
                " WHERE agent_id = ? ORDER BY label",
                storable(agent_id),
            )
        blocks = {
            label: Block(label, value, description, limit_chars, bool(read_only))
            for label, value, description, limit_chars, read_only in rows
        }
        return agent[0], blocks

    def open_conversation(self, agent_id: str, label: str, *, now_s: float) -> str:
        """Store a conversation and return its new id.

        Raises:
            AgentNotFound: no such agent.
        """
        conversation_id = f"conv-{uuid.uuid4()}"
        with self._db:
            self._require_agent(agent_id)
            self._db.execute(
                "INSERT INTO conversations VALUES (?, ?, ?, ?)",
                (conversation_id, agent_id, storable(label), now_s),
            )
        return conversation_id

    def admit(self, post: Post) -> bool:
        """Return whether a post is still to be digested; False when it is stored.

        Raises:
            AgentNotFound: no such agent.
            ConversationGone: the agent has no such conversation.
        """
        with self._db:
            self._require_agent(post.agent_id)
            found = self._has(post.batch_id)
            if not found:
                self._require_conversation(post)
        return not found

    def has(self, post: Post) -> bool:
        """Return whether a post is stored.

        Raises:
            AgentNotFound: no such agent.
        """
        self._require_agent(post.agent_id)
        return self._has(post.batch_id)

    def store_digested(
        self, post: Post, changed: Sequence[Block], archived: Sequence[str], *, now_s: float
    ) -> None:
        """Store a digested post, the blocks it changed and what it archived, all or nothing.

        Raises:
            AgentNotFound: the agent was deleted meanwhile.
            ConversationGone: the conversation was deleted meanwhile.
        """
        with self._db:
            self._require_agent(post.agent_id)
            self._require_conversation(post)
            self._db.execute(
                "INSERT INTO messages VALUES (?, ?, ?, ?)",
                (post.batch_id, post.conversation_id, storable(post.text), now_s),
            )
            self._db.executemany(
                "UPDATE blocks SET value = ? WHERE agent_id = ? AND label = ?",
                [(storable(block.value), post.agent_id, block.label) for block in changed],
            )
            self._db.executemany(
                "INSERT INTO passages VALUES (?, ?, ?, ?)",
                [
                    (f"passage-{uuid.uuid4()}", post.agent_id, storable(text), now_s)
                    for text in archived
                ],
            )

    def search_passages(self, agent_id: str, query: str, limit: int) -> list[Passage]:
        """Return an agent's passages that hold words of a question, those with most first.

        Raises:
            AgentNotFound: no such agent.
        """
        with self._db:
            self._require_agent(agent_id)
            rows = self._rows(
                "SELECT passage_id, text FROM passages WHERE agent_id = ? ORDER BY at_s DESC",
                storable(agent_id),
            )
        wanted = words_of(query)
        shared = [(len(wanted & words_of(text)), Passage(name, text)) for name, text in rows]
        best = sorted((one for one in shared if one[0]), key=lambda one: -one[0])
        return [passage for _, passage in best[:limit]]

    def messages(self, conversation_id: str) -> list[tuple[str, str]]:
        """Return otid and text of a conversation's messages, oldest first."""
        rows = self._rows(
            "SELECT otid, text FROM messages WHERE conversation_id = ? ORDER BY rowid",
            storable(conversation_id),
        )
        return [(otid, text) for otid, text in rows]

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        self._db.close()

    def _require_agent(self, agent_id: str) -> None:
        if self._row("SELECT 1 FROM agents WHERE agent_id = ?", storable(agent_id)) is None:
            raise AgentNotFound("the embedded Letta has no such agent")

    def _require_conversation(self, post: Post) -> None:
        known = self._row(
            "SELECT 1 FROM conversations WHERE conversation_id = ? AND agent_id = ?",
            storable(post.conversation_id),
            post.agent_id,
        )
        if known is None:
            raise ConversationGone("the agent has no such conversation")

    def _has(self, otid: str) -> bool:
        return self._row("SELECT 1 FROM messages WHERE otid = ?", storable(otid)) is not None

    def _rows(self, sql: str, *values: str) -> list[tuple[Any, ...]]:
        return self._db.execute(sql, values).fetchall()

    def _row(self, sql: str, *values: str) -> tuple[Any, ...] | None:
        return next(iter(self._rows(sql, *values)), None)


def words_of(text: str) -> frozenset[str]:
    """Return the words of a text, without their order and case."""
    return frozenset("".join(c if c.isalnum() else " " for c in text.casefold()).split())


def why_unreadable(path: Path) -> str:
    """Return why an embedded Letta's file can't be read; empty if it can or is absent. Blocking."""
    if not path.is_file():
        return ""
    try:
        db: Any = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            db.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        finally:
            db.close()
    except apsw.Error as error:
        return type(error).__name__
    return ""


def has_agents(path: Path) -> bool:
    """Return whether a file is an embedded Letta's and holds an agent. Blocking."""
    if not path.is_file():
        return False
    try:
        db: Any = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            return bool(db.execute("SELECT 1 FROM agents LIMIT 1").fetchall())
        finally:
            db.close()
    except apsw.Error:
        return False
