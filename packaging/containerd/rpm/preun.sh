# $1 is 0 at a removal, 1 at an upgrade.
if [ "$1" -eq 0 ]; then
    systemctl --no-reload disable --now containerd.service >/dev/null 2>&1 || :
fi
