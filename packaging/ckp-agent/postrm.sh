#!/bin/sh
# The identity and the journal stay when the package is removed: without them nobody could undo what was installed. Purging drops them.
set -e
if [ "$1" = purge ]; then
    rm -rf /var/lib/ckp-agent /etc/ckp-agent
    # What the line that enrolled the machine has written.
    rm -f /etc/systemd/system/ckp-agent.service.d/ckp-site-proxy.conf
    # What the site gave to the machine (`ckp-agent settings`).
    gone=''
    for file in /usr/local/share/ca-certificates/ckp-*.crt /etc/systemd/resolved.conf.d/50-ckp-site.conf \
        /etc/systemd/timesyncd.conf.d/50-ckp-site.conf /etc/chrony/sources.d/ckp-site.sources; do
        if [ -e "$file" ]; then
            rm -f "$file"
            gone="$gone $file"
        fi
    done
    case $gone in *ca-certificates*) update-ca-certificates --fresh >/dev/null || true ;; esac
    case $gone in *resolved*) systemctl try-restart systemd-resolved.service || true ;; esac
    case $gone in *timesyncd*) systemctl try-restart systemd-timesyncd.service || true ;; esac
    case $gone in *chrony*) chronyc reload sources >/dev/null 2>&1 || true ;; esac
    rmdir --ignore-fail-on-non-empty /etc/systemd/system/ckp-agent.service.d /etc/systemd/resolved.conf.d /etc/systemd/timesyncd.conf.d 2>/dev/null || true
fi
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || true
fi
