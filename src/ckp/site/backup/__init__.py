"""Backups of a whole site: made, proved by reading them back, and shown."""
