"""Package repositories for apt and dnf."""
