"""HTTP: the server that carries every route, its bounds, and its metrics."""
