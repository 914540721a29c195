# Keeps one lab host going. Runs in a mount namespace of its own, so that the host's root file system is mounted nowhere else and is
# gone with its last process. Started as `sh -c TEXT keeper LOWER DIRECTORY COMMAND...`, where COMMAND enters the host's cgroups
# and becomes systemd-nspawn.
set -eu
lower=$1 directory=$2
shift 2
mount -t overlay ckp-lab -o "lowerdir=$lower,upperdir=$directory/upper,workdir=$directory/work" "$directory/root"

host=
trap '[ -z "$host" ] || kill -TERM "$host"' TERM
while :; do
    "$@" </dev/null &
    host=$!
    code=0
    wait "$host" || code=$?
    # A trapped signal ends `wait` before the host has ended.
    while kill -0 "$host" 2>/dev/null; do
        code=0
        wait "$host" || code=$?
    done
    # systemd-nspawn says with this code that the host asked for a reboot.
    [ "$code" -eq 133 ] || exit "$code"
done
