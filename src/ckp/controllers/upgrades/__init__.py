"""Upgrades of whole workload clusters: checks, then the control plane minor by minor, then nodes in their order, then what pools ask for."""
