"""The hosts' connections."""
