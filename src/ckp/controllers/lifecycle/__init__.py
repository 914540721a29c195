"""The fourteen steps: looks at all that belongs to a cluster and writes `status.steps`, no other field."""
