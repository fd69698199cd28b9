"""The voice sidecar for Letta: memory before the prompt, the transcript after the reply."""
