"""Makes one host a cluster in twelve steps, without a management cluster. Part of the agent's one-file tool."""
