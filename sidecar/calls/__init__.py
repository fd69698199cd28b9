"""The live calls: memory comes in here before each prompt, words go out here after each reply.

`calls.py` opens, keeps and closes them; `live.py` is one call as a channel holds it; `feed.py`
brings each its memory; `records.py` says whose record counts where several hear one caller.
"""

from sidecar.calls.calls import CallPolicy, Calls
from sidecar.calls.live import Listener, LiveCall, MemoryView

__all__ = ["CallPolicy", "Calls", "Listener", "LiveCall", "MemoryView"]
