"""The journal in a PostgreSQL database, for one sidecar or for many beside one another.

`connection.py` makes connections; `transactions.py` lets PostgreSQL run the operations of
`sidecar.journal.sql`; `threads.py` runs them in groups and finds out what became of a commit whose
answer was lost; `notifications.py` hears what others commit; `lease.py` and `owner.py` say who
writes; `faults.py` says what an error means; `schema.py` applies the migrations; `journal.py` opens
all of it; `reports.py` and `about.py` look at it from beside. It needs the extra `postgres`.
"""

from sidecar.journal.postgres.journal import PostgresJournal

__all__ = ["PostgresJournal"]
