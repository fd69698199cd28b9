"""The sidecar's settings."""
