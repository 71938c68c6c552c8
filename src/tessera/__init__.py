"""Tessera: from anyone's data and a compute budget to their own GPT family."""

__version__ = "0.1.0"
