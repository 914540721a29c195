"""Addons of a workload cluster: what is installed into it once its API server answers."""
