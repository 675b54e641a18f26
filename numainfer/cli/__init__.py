"""The command `numainfer`: each file parses, calls and prints."""
