"""The agent's side of the hub: identity, enrolment and the channel."""
