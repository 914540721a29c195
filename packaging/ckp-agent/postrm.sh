#!/bin/sh
# The identity and the journal stay when the package is removed: without them nobody could undo what was installed. Purging drops them.
set -e
if [ "$1" = purge ]; then
    rm -rf /var/lib/ckp-agent /etc/ckp-agent
    # What the line that enrolled the machine has written.
    rm -f /etc/systemd/system/ckp-agent.service.d/ckp-site-proxy.conf
    rmdir --ignore-fail-on-non-empty /etc/systemd/system/ckp-agent.service.d 2>/dev/null || true
fi
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || true
fi
