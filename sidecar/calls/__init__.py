"""The live calls: memory comes in here before each prompt, words go out here after each reply.

`registry.py` opens, keeps and closes them; `call.py` is one call as a channel holds it;
`memory_feed.py` brings each its memory; `records.py` says whose record counts where several hear
one caller; `guidance.py` keeps what a call was given while its channel is away.
"""

from sidecar.calls.call import Listener, LiveCall, MemoryView
from sidecar.calls.registry import CallPolicy, Calls

__all__ = ["CallPolicy", "Calls", "Listener", "LiveCall", "MemoryView"]
