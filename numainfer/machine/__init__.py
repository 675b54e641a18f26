"""Nodes, CPUs, limits, and where memory lies."""
