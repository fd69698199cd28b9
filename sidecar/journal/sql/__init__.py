"""The journal as SQL that more than one engine runs.

`reads.py`, `writes.py`, `batches.py`, `forgetting.py` and `tombstones.py` are operations, each a
function of a `Transaction`. `journal.py` and `reports.py` implement the ports of `sidecar.journal`
with them. An engine brings the schema, a `Transaction` of its own and an `Executor` that runs the
operations.
"""

from sidecar.journal.sql.journal import SqlJournal
from sidecar.journal.sql.reports import SqlReports

__all__ = ["SqlJournal", "SqlReports"]
