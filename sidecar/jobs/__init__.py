"""Work beside the calls: what dead workers left, what is kept how long, callers forgotten."""
