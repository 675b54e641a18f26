"""Whose tokens run in the next step, and what becomes of their logits."""
