"""The journal in one SQLite file: the default engine, for one process.

`file.py` opens and locks the file and keeps a reserve of disk; `threads.py` commits writes in
groups and reads beside them; `writes.py` and `reads.py` are the SQL; `journal.py` puts the
promises of `sidecar.journal.ports.Journal` on top.
"""

from sidecar.journal.sqlite.journal import SqliteJournal

__all__ = ["SqliteJournal"]
