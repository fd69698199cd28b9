"""LiveKit's end of the link, in the process of a job; `sidecar.livekit` is its public path."""
