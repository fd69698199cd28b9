"""The sidecar as a whole: builds, wires, runs and drains its parts."""
