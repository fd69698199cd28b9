"""Work apart from live calls: taking up what dead workers left, retention, forgetting callers."""
