# $1 is 1 at the first installation, 2 at an upgrade. Whether it is enabled then is the distribution's preset, as for every service.
if [ "$1" -eq 1 ]; then
    systemctl --no-reload preset kubelet.service >/dev/null 2>&1 || :
fi
