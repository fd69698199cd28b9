"""Before the prompt: what the agent knows, at hand when it is needed."""
