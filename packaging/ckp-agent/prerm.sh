#!/bin/sh
set -e
case "$1" in
remove | 0)
    if [ -d /run/systemd/system ]; then
        systemctl disable --now ckp-agent.service ckp-agent-upgrade.service >/dev/null 2>&1 || true
    fi
    ;;
esac
