#!/bin/sh
# deb: $1 is "configure"; rpm: 1 at the first installation, 2 at an upgrade.
set -e
chmod 0750 /etc/ckp-agent
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    systemctl enable ckp-agent.service ckp-agent-upgrade.service >/dev/null 2>&1 || true
    # Without a configuration the unit's condition keeps it from starting; that is no error. An upgrade restarts it without waiting:
    # the agent ends its present step first, and that may be the package manager that runs this very script.
    systemctl --no-block restart ckp-agent.service || true
fi
