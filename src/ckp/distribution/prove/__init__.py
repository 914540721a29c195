"""Proofs of origin: comparison with upstream, and reproduction."""
