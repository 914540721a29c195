"""Repositories of apt and dnf."""
