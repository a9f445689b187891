"""A complete GPT that one can train, use and see through."""

__version__ = "0.1.0"
