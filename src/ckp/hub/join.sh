#!/bin/sh
# Makes this machine a host that CKP may give to clusters: it verifies and installs the agent, which then asks for its enrolment.
#
#     join.sh --hub HOST --project DOMAIN/PROJECT [--proxy http://HOST:PORT [--no-proxy LIST]]
#
# `ckp host join-command` prints the line that fetches it. ca.pem in the present folder is the site's CA, which that line has compared with
# its fingerprint. The project's pre-shared key comes by standard input, or is asked for at the terminal.
#
# Nothing is changed before all is verified: the repository's signature by the site's keys, the package by the repository, its maintainer.
# If it ends early, for whatever reason, the same line again goes on.
set -eu
umask 022
export LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
unset CDPATH http_proxy https_proxy all_proxy HTTPS_PROXY ALL_PROXY # the proxy is what the line says

MAINTAINER="Coredge.io"
WAIT_SECONDS=${CKP_JOIN_WAIT_SECONDS:-60}
hub='' domain='' project='' proxy='' no_proxy='' key='' work=$(pwd)

fail() { # WHAT WHAT-TO-DO
    printf 'error: %s\n' "$1" >&2
    printf '  what to do: %s\n' "$2" >&2
    exit 1
}

step() {
    printf '[%s/5] %s\n' "$1" "$2"
}

put() { # FILE MODE: standard input becomes the file, whole or not at all
    kept=$(mktemp -- "$1.XXXXXX")
    chmod "$2" "$kept"
    cat >"$kept"
    mv -f -- "$kept" "$1"
}

fetch() { # PATH FILE
    curl -fsS -m 300 --cacert "$work/ca.pem" ${proxy:+-x "$proxy"} -o "$2" "https://$hub:8443$1" ||
        fail "https://$hub:8443$1 could not be fetched" "see that this machine reaches the hub at port 8443, directly or by --proxy"
}

read_arguments() {
    while [ $# -gt 0 ]; do
        [ $# -ge 2 ] || fail "$1 has no value" "take the line as ckp host join-command prints it"
        case $1 in
        --hub) hub=$2 ;;
        --project) domain=${2%%/*} project=${2#*/} ;;
        --proxy) proxy=$2 ;;
        --no-proxy) no_proxy=$2 ;;
        *) fail "there is no option $1" "take the line as ckp host join-command prints it" ;;
        esac
        shift 2
    done
    for value in "$hub" "$domain" "$project"; do
        case $value in
        '' | *[!A-Za-z0-9.:-]*) fail "--hub or --project is missing, or not a name" "take the line as ckp host join-command prints it" ;;
        esac
    done
    [ -s "$work/ca.pem" ] || fail "there is no ca.pem in this folder" "take the line as ckp host join-command prints it"
}

look_at_this_machine() {
    [ "$(id -u)" -eq 0 ] || fail "this needs root" "run the line with sudo, or as root"
    [ -d /run/systemd/system ] || fail "this machine was not started by systemd" "take a machine, or a virtual one, with systemd; containers cannot be hosts"
    [ "$(uname -m)" = x86_64 ] || fail "this is a $(uname -m) machine" "take an x86_64 one"
    ID='' VERSION_ID='' VERSION_CODENAME='' PRETTY_NAME=''
    # shellcheck source=/dev/null
    . /etc/os-release
    command -v apt-get >/dev/null && [ -n "$VERSION_CODENAME" ] ||
        fail "the hub has packages for Debian and Ubuntu, and this is ${PRETTY_NAME:-an unknown system}" "install the agent's rpm by hand, as the guide to bringing your own hosts says"
    if [ -e /etc/ckp-agent/config.json ] && ! grep -q "\"https://$hub:8443\"" /etc/ckp-agent/config.json; then
        fail "this machine is set up for another hub: $(sed -n 's/.*"hub": *"\([^"]*\)".*/\1/p' /etc/ckp-agent/config.json)" \
            "if it is to leave that one: ckp host remove and ckp host delete there, then apt-get purge ckp-agent and rm -r /etc/ckp-agent /var/lib/ckp-agent here"
    fi
    if [ -s /var/lib/ckp-agent/cert.pem ]; then
        printf 'This machine is enrolled already, and nothing was changed: ckp-agent status\n'
        exit 0
    fi
    printf '      %s, %s\n' "$PRETTY_NAME" "$(uname -n)"
}

read_key() {
    if [ -t 0 ]; then
        printf "      the project's pre-shared key: "
        stty -echo
        trap 'stty echo' EXIT INT TERM
        IFS= read -r key || true
        stty echo
        trap - EXIT INT TERM
        printf '\n'
    else
        IFS= read -r key || true
    fi
    case $key in
    '' | *[!A-Za-z0-9_-]*) fail "no pre-shared key was given" "make one with ckp host join-command --new-key, or ckp host psk --reset" ;;
    esac
}

sources() { # KEYRING
    cat <<END
Types: deb
URIs: https://$hub:8443/packages/apt
Suites: $VERSION_CODENAME
Components: agent
Architectures: amd64
Signed-By: $1
END
}

apt_settings() { # CA
    printf 'Acquire::https::%s::CAInfo "%s";\n' "$hub" "$1"
    if [ -n "$proxy" ]; then
        printf 'Acquire::https::Proxy::%s "%s";\n' "$hub" "$proxy"
    else
        printf 'Acquire::https::Proxy::%s "DIRECT";\n' "$hub"
    fi
}

verify() {
    fetch /packages/keys/ckp.gpg "$work/ckp.gpg"
    mkdir -p "$work/sources" "$work/lists/partial" "$work/cache/archives/partial"
    sources "$work/ckp.gpg" >"$work/sources/ckp-site.sources"
    # Settings of this run alone: what the owner's may allow (unsigned repositories, no verification of TLS) is not allowed here.
    {
        printf 'Dir::Etc::Main "/dev/null";\nDir::Etc::Parts "/dev/null";\nDir::Etc::SourceList "/dev/null";\nDir::Etc::SourceParts "%s";\n' "$work/sources"
        printf 'Dir::Etc::Preferences "/dev/null";\nDir::Etc::PreferencesParts "/dev/null";\nDir::State::Lists "%s";\nDir::Cache "%s";\n' "$work/lists" "$work/cache"
        printf 'APT::Sandbox::User "root";\nAPT::Update::Error-Mode "any";\nAcquire::Retries "3";\nAcquire::https::Timeout "60";\nAcquire::Languages "none";\n'
        apt_settings "$work/ca.pem"
    } >"$work/apt.conf"
    APT_CONFIG="$work/apt.conf" apt-get -q=2 update ||
        fail "the hub's repository was not verified; nothing was changed" "see what apt says above"
    APT_CONFIG="$work/apt.conf" apt-get -q=2 download ckp-agent ||
        fail "the agent's package was not verified; nothing was changed" "see what apt says above"
    package=$(ls "$work"/ckp-agent_*.deb)
    found=$(dpkg-deb -f "$package" Maintainer)
    case $found in
    "$MAINTAINER" | "$MAINTAINER <"*">") ;;
    *) fail "the maintainer of ckp-agent is $found, not $MAINTAINER; nothing was changed" "tell the site's administrator" ;;
    esac
    printf '      ckp-agent %s by %s\n' "$(dpkg-deb -f "$package" Version)" "$MAINTAINER"
}

install_agent() {
    put /usr/share/keyrings/ckp-site.gpg 644 <"$work/ckp.gpg"
    put /etc/apt/ckp-site-ca.pem 644 <"$work/ca.pem"
    apt_settings /etc/apt/ckp-site-ca.pem | put /etc/apt/apt.conf.d/60ckp-site 644
    sources /usr/share/keyrings/ckp-site.gpg | put /etc/apt/sources.list.d/ckp-site.sources 644
    DEBIAN_FRONTEND=noninteractive apt-get -q=2 -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 install -y --no-install-recommends "$package" </dev/null ||
        fail "apt could not install ckp-agent" "do what it says above (often: apt-get update), then run the same line again"
}

set_up() {
    mkdir -p /etc/ckp-agent
    chmod 750 /etc/ckp-agent
    if [ -n "$proxy" ]; then
        mkdir -p /etc/systemd/system/ckp-agent.service.d
        printf '[Service]\nEnvironment=HTTPS_PROXY=%s HTTP_PROXY=%s\nEnvironment=NO_PROXY=%s\n' "$proxy" "$proxy" "$no_proxy" |
            put /etc/systemd/system/ckp-agent.service.d/proxy.conf 644
        systemctl daemon-reload
    fi
    put /etc/ckp-agent/ca.pem 644 <"$work/ca.pem"
    printf '%s' "$key" | put /etc/ckp-agent/psk 600
    printf '{"hub": "https://%s:8443", "channel": "wss://%s:9443/v1/agent", "domain": "%s", "project": "%s", "ca": "/etc/ckp-agent/ca.pem"}\n' \
        "$hub" "$hub" "$domain" "$project" | put /etc/ckp-agent/config.json 644
    rm -f /var/lib/ckp-agent/status.json # what an earlier attempt says
    systemctl restart ckp-agent
}

wait_for_request() {
    waited=0
    while [ "$waited" -lt "$WAIT_SECONDS" ]; do
        state=$(sed -n '/"enrolment"/,/}/s/.*"state": "\([^"]*\)".*/\1/p' /var/lib/ckp-agent/status.json 2>/dev/null || true)
        case $state in
        Pending | Approved)
            ckp-agent status
            [ "$state" = Approved ] || printf 'The request has arrived. An administrator approves it: ckp host requests, ckp host approve ID\n'
            return
            ;;
        '' | HubUnreachable | HubError | TooManyRequests) ;; # the agent tries again
        *)
            ckp-agent status
            fail "the hub does not take this machine" "see above; then run the same line again"
            ;;
        esac
        sleep 1
        waited=$((waited + 1))
    done
    ckp-agent status || true
    fail "no request has reached the hub within $WAIT_SECONDS s; the agent goes on trying" "see: journalctl -u ckp-agent"
}

main() {
    read_arguments "$@"
    step 1 "Looking at this machine"
    look_at_this_machine
    read_key
    step 2 "Fetching and verifying the agent's package from $hub"
    verify
    step 3 "Installing it"
    install_agent
    step 4 "Setting it up"
    set_up
    step 5 "Waiting until the hub has the request"
    wait_for_request
}

main "$@"
