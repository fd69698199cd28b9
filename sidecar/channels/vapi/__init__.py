"""The VAPI channel: a custom-LLM endpoint and a server URL in front of the same memory."""
