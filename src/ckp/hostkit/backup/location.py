"""Where a management host has what it needs to make backups by itself: `ckp site apply` writes it, the host tool reads it."""

from __future__ import annotations

FOLDER = "/etc/ckp-backup"
"""For root alone (0700), as all files in it (0600)."""
WORK = "/var/lib/ckp-backup"
"""What is in the making; the service's own (StateDirectory=)."""
SETTINGS = "backup.json"
"""Written last: with it, the host makes backups."""
SIGNER, SIGNER_CERTIFICATE = "signer.sec", "signer.pgp"
"""The key that signs the site's backups."""
STATE = "state.tar.pgp"
"""What the machine that applies keeps of the site, encrypted for the readers: this host can't read it."""
SITE = "site.yaml"
CREDENTIALS, S3_CA, MORE_CAS = "s3-credentials", "s3-ca.pem", "more-cas.pem"
UNIT = "ckp-site-backup"
SERVICE, TIMER = f"{UNIT}.service", f"{UNIT}.timer"
LEASE = UNIT
"""The Lease in ckp-system that one host at a time holds."""
COMMAND = ("ckp-agent", "backup")
