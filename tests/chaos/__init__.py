"""Chaos: the real agent, hub and controllers under a seeded schedule of faults, and a checker of the whole (docs/how-to/chaos.md)."""
