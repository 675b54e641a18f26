"""What the user named, and what the file says."""
