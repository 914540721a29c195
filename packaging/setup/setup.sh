#!/bin/sh
# Sets up all that the project needs on this machine: packages of the operating system, a Go to bootstrap the pinned toolchains with,
# and the Python environment from the hash-locked requirements. Running it again is cheap and changes nothing.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
cache="${CKP_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/ckp}"

# Unattended upgrades, or another checkout's setup, may be installing just now.
wait_for_dpkg="-oDPkg::Lock::Timeout=600"

say() { printf 'setup: %s\n' "$*" >&2; }

missing_packages() {
    # shellcheck disable=SC2086
    sed -e 's/#.*//' -e '/^[[:space:]]*$/d' $lists | while read -r package; do
        dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || printf '%s ' "$package"
    done
}

find_python() {
    for candidate in /usr/bin/python3.12 /usr/bin/python3.11 /usr/bin/python3 python3.13 python3.12 python3.11 python3; do
        path=$(command -v "$candidate" 2>/dev/null) || continue
        if "$path" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            printf '%s' "$path"
            return
        fi
    done
}

install() {
    if [ "$(id -u)" != 0 ]; then
        say "error: these packages are missing and only root can install them: $*"
        exit 1
    fi
    say "installing $*"
    export DEBIAN_FRONTEND=noninteractive
    # Package lists may be missing or old; a failed update shows in the install.
    apt-get update -q >/dev/null 2>&1 || true
    # Of servers that are here already, nothing is changed: their owner uses them.
    units=""
    case " $* " in *" openssh-server "*) units="ssh.service ssh.socket" ;; esac
    case " $* " in *" postgresql "*) [ -e /lib/systemd/system/postgresql.service ] || units="$units postgresql.service" ;; esac
    if [ -n "$units" ]; then
        without_a_server apt-get "$wait_for_dpkg" install -q -y --no-install-recommends "$@" >/dev/null
    else
        apt-get "$wait_for_dpkg" install -q -y --no-install-recommends "$@" >/dev/null
    fi
}

# The tests start an SSH server and a PostgreSQL of their own, on loopback. Their packages must start none here, neither now nor at the next boot.
without_a_server() {
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
        printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
        chmod 755 /usr/sbin/policy-rc.d
        "$@"
        rm -f /usr/sbin/policy-rc.d
        trap - EXIT
    else
        "$@"
    fi
    # shellcheck disable=SC2086
    ! command -v systemctl >/dev/null 2>&1 || systemctl --root=/ disable $units >/dev/null 2>&1 || true
}

# One setup at a time: checkouts share the cache, and two would make the same environment in one folder. flock(1) holds the lock, not this shell:
# whatever a package starts would inherit it.
if [ -z "${CKP_SETUP_ALONE:-}" ]; then
    mkdir -p "$cache"
    flock -n "$cache/setup.lock" true || say "waiting for another setup on this machine"
    status=0
    CKP_SETUP_ALONE=yes flock -o -w 1800 -E 75 "$cache/setup.lock" sh "$0" "$@" || status=$?
    [ "$status" != 75 ] || say "error: another setup has held $cache/setup.lock for 30 minutes; lslocks shows by which process"
    exit "$status"
fi

# Called as `setup.sh test`, it brings what only the tests need as well.
lists="$here/packaging/setup/apt-packages.txt"
[ "${1:-}" != test ] || lists="$lists $here/packaging/setup/apt-packages-test.txt"
wanted=$(missing_packages)
[ -n "$(find_python)" ] || { [ -x /usr/bin/python3.11 ] || grep -q '22.04' /etc/os-release && wanted="$wanted python3.11 python3.11-venv" || wanted="$wanted python3 python3-venv"; }
# Whoever takes a release from a file builds nothing.
[ -n "${CKP_FROM:-}" ] || command -v go >/dev/null 2>&1 || wanted="$wanted golang-go"
# shellcheck disable=SC2086
[ -z "$(printf '%s' "$wanted" | tr -d ' ')" ] || install $wanted

python=$(find_python)
[ -n "$python" ] || { say "error: no Python 3.11 or newer with venv was found or could be installed"; exit 1; }

# The environment is kept in the cache by what it is made of: a fresh clone takes a made one.
key=$( { cat "$here/requirements/dev.txt"; "$python" -c 'import sys; print(sys.version, sys.executable)'; } | sha256sum | cut -c1-20)
environment="$cache/venv/$key"
if [ ! -e "$environment/complete" ]; then
    say "making the Python environment"
    rm -rf "$environment"
    mkdir -p "$cache/venv"
    "$python" -m venv "$environment"
    if [ -n "${CKP_FROM:-}" ]; then
        # From the release's file, without a network. Its signature is checked later, by the command that this makes: until then nothing but
        # plain wheels comes out of it, and pip installs those alone whose hashes are in this checkout's lock.
        "$python" -I "$here/packaging/setup/wheels.py" "$CKP_FROM" "$environment/wheels"
        set -- --no-index --find-links "$environment/wheels"
    else
        set --
    fi
    "$environment/bin/python" -m pip install -q --disable-pip-version-check --require-hashes --no-deps "$@" -r "$here/requirements/dev.txt"
    rm -rf "$environment/wheels"
    touch "$environment/complete"
fi
[ "$(readlink "$here/.venv" 2>/dev/null)" = "$environment" ] || { rm -rf "$here/.venv"; ln -s "$environment" "$here/.venv"; }
