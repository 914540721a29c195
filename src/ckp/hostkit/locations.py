"""Paths of the host tool."""

from __future__ import annotations

STATE_DIR = "/var/lib/ckp-agent"
CONFIG_DIR = "/etc/ckp-agent"
IMGPKG = "/usr/lib/ckp-agent/imgpkg"
RESTORED = "/var/lib/ckp-restored"
"""What a standalone cluster begins with, if it is there: `etcd`, the data of its etcd, and `pki`, Kubernetes' CAs."""
RESTORED_RECORD = RESTORED + "/record.json"
"""Written first: `backup` says which backup it comes from; `placed` is true once all of it is there."""
STANDALONE_JOURNAL = "standalone.json"
"""In STATE_DIR: what a standalone installation has done (ckp.agent.journal)."""
SITE_SETTINGS = CONFIG_DIR + "/site.json"
"""What the site gives to this host (ckp.agent.system.site_settings)."""
REGISTRY_LOGIN = CONFIG_DIR + "/registry-login.json"
"""How this host pulls from a registry that asks for a password, for root only (ckp.agent.system.registry_login)."""
SITE_KEYRING = CONFIG_DIR + "/trusted.gpg"
"""The keys that the site trusts, if it names them: they count instead of those of the agent's package."""
