"""The journal in one SQLite file: the default engine, for one process.

`file.py` opens and locks the file and keeps a reserve of disk. `transactions.py` runs operations:
`threads.py` runs them in groups, with reads in parallel, `inline.py` on the loop that asks for
them. `writes.py`, `batches.py` and `reads.py` are the SQL, and `journal.py` implements the ports of
`sidecar.journal` with it.
"""

from sidecar.journal.sqlite.journal import SqliteJournal

__all__ = ["SqliteJournal"]
