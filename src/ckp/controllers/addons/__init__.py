"""Addons of a cluster: what is installed into it once its API server answers."""
