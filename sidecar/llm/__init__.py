"""Language models: any OpenAI-compatible one, and a rule-based one for demonstrations."""
