"""What a model may call during a call."""
