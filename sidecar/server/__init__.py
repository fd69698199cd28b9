"""HTTP and WebSocket: routes, the sidecar's end of the link, health."""
