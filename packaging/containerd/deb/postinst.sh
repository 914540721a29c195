#!/bin/sh
# Started at the first installation, restarted by an upgrade: its containers live on in their shims.
set -e
unit=containerd.service

case "$1" in
configure | abort-upgrade | abort-deconfigure | abort-remove)
    deb-systemd-helper unmask "$unit" >/dev/null || true
    if deb-systemd-helper --quiet was-enabled "$unit"; then
        deb-systemd-helper enable "$unit" >/dev/null || true
    else
        deb-systemd-helper update-state "$unit" >/dev/null || true
    fi
    if [ -d /run/systemd/system ]; then
        systemctl --system daemon-reload >/dev/null || true
        if [ -n "$2" ]; then
            deb-systemd-invoke restart "$unit" >/dev/null || true
        else
            deb-systemd-invoke start "$unit" >/dev/null || true
        fi
    fi
    ;;
esac
