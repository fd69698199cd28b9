"""The VAPI channel: a custom-LLM endpoint and a server URL that share one memory."""
