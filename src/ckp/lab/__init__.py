"""The lab: hosts on one Linux machine, each a systemd in a systemd-nspawn container, on a bridge of their own.

Needs root, cgroups, overlayfs and bridges, and these Debian or Ubuntu packages (APT_PACKAGES, for the Makefile's setup):
systemd-container, mmdebstrap, debian-archive-keyring, iproute2, iptables, openssh-client, util-linux.
"""

APT_PACKAGES = ("systemd-container", "mmdebstrap", "debian-archive-keyring", "iproute2", "iptables", "openssh-client", "util-linux")
