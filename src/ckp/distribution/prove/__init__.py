"""Whether it is what it says: comparison with upstream, and reproduction."""
