"""Paths of the host tool."""

from __future__ import annotations

STATE_DIR = "/var/lib/ckp-agent"
CONFIG_DIR = "/etc/ckp-agent"
IMGPKG = "/usr/lib/ckp-agent/imgpkg"
STANDALONE_JOURNAL = "standalone.json"
"""In STATE_DIR: what a standalone installation has done (ckp.agent.journal)."""
