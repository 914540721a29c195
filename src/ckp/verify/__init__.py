"""Verification of packages, bundles and repositories, the same on hosts and where releases are built."""
