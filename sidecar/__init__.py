"""The voice sidecar for Letta: memory before the prompt, the transcript after the reply."""

__version__: str


def __getattr__(name: str) -> str:
    """Return `__version__`, read from the installed package only when somebody asks for it."""
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415

        return version("letta-voice-sidecar")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
