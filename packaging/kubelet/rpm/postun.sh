# Never restarted here: kubeadm's upgrade does that when the node is drained.
systemctl daemon-reload >/dev/null 2>&1 || :
