"""Before the prompt: what the agent knows, ready when it is needed."""
