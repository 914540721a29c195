#!/bin/sh
# Enabled at the first installation and not started; an upgrade leaves both as they are, since kubeadm's upgrade restarts the kubelet.
set -e
unit=kubelet.service

case "$1" in
configure | abort-upgrade | abort-deconfigure | abort-remove)
    deb-systemd-helper unmask "$unit" >/dev/null || true
    if [ -n "$2" ] && [ ! -e "/var/lib/systemd/deb-systemd-helper-enabled/$unit.dsh-also" ] && [ ! -e "/etc/systemd/system/multi-user.target.wants/$unit" ]; then
        : # It comes from a package that keeps no such record (upstream's), and its administrator has disabled it.
    elif deb-systemd-helper --quiet was-enabled "$unit"; then
        deb-systemd-helper enable "$unit" >/dev/null || true
    else
        deb-systemd-helper update-state "$unit" >/dev/null || true
    fi
    if [ -d /run/systemd/system ]; then
        systemctl --system daemon-reload >/dev/null || true
    fi
    ;;
esac
