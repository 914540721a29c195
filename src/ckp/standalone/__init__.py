"""One host becomes a whole cluster, in twelve steps, without a management plane. Ships in the agent's one-file tool; may import ckp.agent only."""
