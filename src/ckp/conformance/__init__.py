"""Kubernetes' own conformance suite against a cluster: its programs and images, what is run, and what came of it."""
