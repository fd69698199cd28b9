"""The sidecar as a whole: its parts built, wired, run and drained."""
