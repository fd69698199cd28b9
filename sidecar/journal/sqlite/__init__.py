"""The journal in one SQLite file: the default engine, for one process.

`file.py` opens and locks the file and keeps a reserve of disk; `transactions.py` carries operations
out, `threads.py` in groups with reads beside them, `inline.py` in memory where they are asked for;
`writes.py`, `batches.py` and `reads.py` are the SQL; `journal.py` keeps the ports of
`sidecar.journal` with them.
"""

from sidecar.journal.sqlite.journal import SqliteJournal

__all__ = ["SqliteJournal"]
