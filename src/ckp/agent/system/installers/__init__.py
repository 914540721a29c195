"""One file per package manager: dpkg with apt, rpm with dnf."""
