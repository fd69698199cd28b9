"""The local page: a person types or speaks through the browser."""
