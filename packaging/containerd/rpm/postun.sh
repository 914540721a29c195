systemctl daemon-reload >/dev/null 2>&1 || :
# $1 is 1 at an upgrade. The containers live on in their shims.
if [ "$1" -ge 1 ]; then
    systemctl try-restart containerd.service >/dev/null 2>&1 || :
fi
