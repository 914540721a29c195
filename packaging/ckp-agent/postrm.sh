#!/bin/sh
# The identity and the journal stay when the package is removed: without them nobody could undo what was installed. Purging drops them.
set -e
if [ "$1" = purge ]; then
    rm -rf /var/lib/ckp-agent /etc/ckp-agent
fi
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || true
fi
