"""Bundles and images from a registry."""
