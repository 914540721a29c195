"""This host as a node: inventory, preflight, join, reset, and the engine that brings the desired state about."""
