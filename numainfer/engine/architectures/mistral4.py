"""Mistral 4 (its model card of 2026): DeepSeek V3's layers, weights of the chosen experts divided by their sum, queries that grow."""

from .deepseek2 import build

__all__ = ["build"]
