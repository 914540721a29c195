"""Clients of the outside: Kubernetes, OCI registries, OpenPGP. Each has its simulator or real counterpart in the tests."""
