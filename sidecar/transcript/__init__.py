"""After the reply: every turn on disk, then at Letta, once and in order."""
