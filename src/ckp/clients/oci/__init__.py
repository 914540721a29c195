"""Registries of OCI images: the protocol, manifests and blobs."""
