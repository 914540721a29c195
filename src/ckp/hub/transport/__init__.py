"""Sockets and TLS of the hub."""
