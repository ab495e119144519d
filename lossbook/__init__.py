"""Losses and optimizers of language models: derived, executed, checked."""

__version__ = "0.1.0"
