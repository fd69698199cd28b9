"""Create the database, pgvector and every table. Runs on the interpreter of `.letta-venv`.

The wheel of letta 0.16.8 ships no alembic scripts, so the tables are made from its ORM classes, and
the sequence of `messages.sequence_id`, which a migration would have made, by hand.
"""

import asyncio
import os
from urllib.parse import urlparse

import asyncpg
import letta.orm  # noqa: F401  (registers the tables)
from letta.orm.base import Base
from letta.server.db import engine
from sqlalchemy import text

AFTER_TABLES = (
    "create sequence if not exists message_seq_id",
    "alter table messages alter column sequence_id set default nextval('message_seq_id')",
    "alter sequence message_seq_id owned by messages.sequence_id",
    "create table if not exists alembic_version (version_num varchar(32) primary key)",
)


async def main() -> None:
    """Make the database named in LETTA_PG_URI ready for the server."""
    uri = urlparse(os.environ["LETTA_PG_URI"])
    server = {"host": uri.hostname, "port": uri.port, "user": uri.username}
    connection = await asyncpg.connect(database="postgres", **server)
    await connection.execute("create database letta")
    await connection.close()
    connection = await asyncpg.connect(database="letta", **server)
    await connection.execute("create extension if not exists vector")
    await connection.close()
    async with engine.begin() as tables:
        await tables.run_sync(Base.metadata.create_all)
        for statement in AFTER_TABLES:
            await tables.execute(text(statement))
    await engine.dispose()


asyncio.run(main())
