"""The fourteen steps of a cluster (writes `status.steps`, no other field), and its deletion."""
