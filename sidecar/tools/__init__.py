"""What can be called in a call."""
