"""The name of a process that owns a lease, by which another one of its machine knows its end.

`HOST:PID:KERNEL:STARTED:NONCE`. A process of the same kernel and the same process namespace can see
whether that process is still there. Others, and systems without /proc, wait for the lease to end.
"""

import os
import socket
import uuid
from pathlib import Path

_FIELDS = 5
_STARTED = 19
"""Place of `starttime` in /proc/PID/stat, counted from the field after the command's name."""


def own_name() -> str:
    """Return a name for this process, another one each time."""
    pid = os.getpid()
    parts = (socket.gethostname(), str(pid), _kernel(), started(pid), uuid.uuid4().hex[:8])
    return ":".join(part.replace(":", "-") for part in parts)


def nonce_of(name: str) -> str:
    """Return what of a name tells it from others, and nothing of its machine."""
    return name.rpartition(":")[2]


def is_gone(name: str) -> bool:
    """Whether the process of a name has certainly ended; False where that can't be known."""
    parts = name.split(":")
    if len(parts) != _FIELDS or not parts[1].isdigit() or not _kernel() or parts[2] != _kernel():
        return False
    pid = int(parts[1])
    return started(pid) != parts[3] if _is_seen(pid) else not _exists(pid)


def shown(name: str) -> str:
    """Return a name as people read it."""
    host, _, rest = name.partition(":")
    return f"process {rest.partition(':')[0]} of {host}"


def _kernel() -> str:
    """Return what names this boot of a kernel and its namespace of processes; empty: not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot}-{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


def _is_seen(pid: int) -> bool:
    """Whether /proc shows a process; it may hide those of other users."""
    return os.access(f"/proc/{pid}/stat", os.R_OK)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def started(pid: int) -> str:
    """Return when a process was started, in the kernel's ticks; empty: it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else fields[_STARTED]
