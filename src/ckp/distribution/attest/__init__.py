"""Attestations of artifacts: SBOMs, provenance, and their signatures."""
