"""The live calls: memory comes in here before each prompt, words go out here after each reply.

`registry.py` opens, lists and closes calls; `call.py` is one call as a channel holds it;
`memory_feed.py` loads the memory of each; `records.py` decides which record is stored where several
calls hear one caller; `guidance.py` keeps a call's guidance while its channel is away.
"""

from sidecar.calls.call import Listener, LiveCall, MemoryView
from sidecar.calls.registry import CallPolicy, Calls

__all__ = ["CallPolicy", "Calls", "Listener", "LiveCall", "MemoryView"]
