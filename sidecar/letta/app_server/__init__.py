"""The Letta Code App Server, by frames over a WebSocket."""
