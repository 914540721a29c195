"""A release in one file, for sites without a network."""
