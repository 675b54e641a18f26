"""A model as ops over placed memory, one step at a time."""
