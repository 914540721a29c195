#!/bin/sh
set -e
# Enabled but not started: the kubelet has nothing to do before kubeadm has given it a configuration.
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    systemctl enable kubelet.service >/dev/null 2>&1 || true
fi
