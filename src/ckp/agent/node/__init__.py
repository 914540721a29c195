"""This host as a node: inventory, preflight, join, reset, and the engine that reconciles the desired state."""
