"""Helpers that depend on nothing else in CKP: errors, processes, steps with progress, retries, clock, files, paths."""
