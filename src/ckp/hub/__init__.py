"""The hub, the agents' door: enrolment, mutual TLS, desired state out, observed state in. It decides nothing and keeps nothing."""
