"""The journal in one SQLite file: the default engine, for one process.

`file.py` opens and locks the file and keeps a reserve of disk. `transactions.py` runs the
operations of `sidecar.journal.sql`: `threads.py` runs them in groups, with reads in parallel,
`inline.py` on the loop that asks for them. `journal.py` opens the journal, and overwrites what is
erased.
"""

from sidecar.journal.sqlite.journal import SqliteJournal

__all__ = ["SqliteJournal"]
