"""Paths of the host tool."""

from __future__ import annotations

STATE_DIR = "/var/lib/ckp-agent"
CONFIG_DIR = "/etc/ckp-agent"
IMGPKG = "/usr/lib/ckp-agent/imgpkg"
STANDALONE_JOURNAL = "standalone.json"
"""In STATE_DIR: what a standalone installation has done (ckp.agent.journal)."""
SITE_SETTINGS = CONFIG_DIR + "/site.json"
"""What the site gives to this host (ckp.agent.system.site_settings)."""
SITE_KEYRING = CONFIG_DIR + "/trusted.gpg"
"""The keys that the site trusts, if it names them: they count instead of those of the agent's package."""
