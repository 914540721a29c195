"""What was made, and of what: SBOMs, provenance, and their signatures."""
