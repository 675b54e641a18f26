"""Speed beside what the machine can give, and machines that one does not have."""
