"""Signatures: OpenPGP for packages, cosign's format for images, DSSE envelopes for statements."""
