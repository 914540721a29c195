#!/bin/sh
# Makes this machine a host that CKP may give to clusters: it verifies and installs the agent, which then asks for its enrolment.
#
#     join.sh --hub HOST --project DOMAIN/PROJECT [--proxy http://HOST:PORT [--no-proxy LIST]]
#
# `ckp host join-command` prints the line that fetches it. ca.pem in the present folder is the site's CA, which that line has compared with
# its fingerprint. The project's pre-shared key comes by standard input, or is asked for at the terminal. What the site gives to its hosts
# (trusted keys, private CAs, proxy, name servers and time servers) comes from the hub.
#
# Nothing is changed before all is verified: the repository's signature by the site's keys, the package by the repository, its maintainer.
# If it ends early, for whatever reason, the same line again goes on.
set -eu
umask 022
export LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
unset CDPATH http_proxy https_proxy all_proxy no_proxy HTTPS_PROXY ALL_PROXY NO_PROXY # the proxy is what the line says

MAINTAINER="Coredge.io"
FROM_THE_START="to enrol it from the start: ckp host remove and ckp host delete there, apt-get purge ckp-agent here, and the line again"
DROP_INS=/etc/systemd/system/ckp-agent.service.d
WAIT_SECONDS=${CKP_JOIN_WAIT_SECONDS:-60}
hub='' domain='' project='' proxy='' exceptions='' key='' work=$(pwd)

fail() { # WHAT WHAT-TO-DO
    printf 'error: %s\n' "$1" >&2
    printf '  what to do: %s\n' "$2" >&2
    exit 1
}

setting() { # KEY: of the site's settings, a text; they have a key a line
    sed -n 's/^ *"'"$1"'": "\(.*\)",\{0,1\}$/\1/p' "$work/site.json"
}

step() {
    printf '[%s/5] %s\n' "$1" "$2"
}

put() { # FILE MODE: standard input becomes the file, whole or not at all
    kept=$(mktemp -- "$1.XXXXXX")
    chmod "$2" "$kept"
    cat >"$kept"
    sync -- "$kept"
    mv -f -- "$kept" "$1"
}

ask() { # PATH CURL-ARGUMENTS...
    path=$1
    shift
    # -q: no .curlrc; --capath: Debian's curl trusts the system's CAs beside --cacert; --noproxy: no variables of the environment.
    if [ -n "$proxy" ]; then
        set -- -x "$proxy" --noproxy "" "$@"
    else
        set -- --noproxy "*" "$@"
    fi
    curl -q -sS -m 300 --retry 5 --capath /dev/null --cacert "$work/ca.pem" "$@" "https://$hub:8443$path"
}

fetch() { # PATH FILE
    ask "$1" -f -o "$2" || fail "https://$hub:8443$1 could not be fetched" "see curl's words above: this machine has to reach the hub at port 8443, directly or by --proxy"
}

read_arguments() {
    while [ $# -gt 0 ]; do
        [ $# -ge 2 ] || fail "$1 has no value" "take the line as ckp host join-command prints it"
        case $1 in
        --hub) hub=$2 ;;
        --project) domain=${2%%/*} project=${2#*/} ;;
        --proxy) proxy=$2 ;;
        --no-proxy) exceptions=$2 ;;
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
    VERSION_CODENAME='' PRETTY_NAME=''
    # shellcheck source=/dev/null
    . /etc/os-release
    command -v apt-get >/dev/null && [ -n "$VERSION_CODENAME" ] ||
        fail "the hub has packages for Debian and Ubuntu, and this is ${PRETTY_NAME:-an unknown system}" "install the agent's rpm by hand, as the guide to bringing your own hosts says"
    if [ -s /etc/ckp-agent/config.json ] && ! grep -q "\"https://$hub:8443\"" /etc/ckp-agent/config.json; then
        fail "this machine is set up for another hub: $(sed -n 's/.*"hub": *"\([^"]*\)".*/\1/p' /etc/ckp-agent/config.json)" "$FROM_THE_START"
    fi
    if [ -s /var/lib/ckp-agent/cert.pem ]; then
        look_at_its_enrolment
    fi
    printf '      %s, %s\n' "$PRETTY_NAME" "$(uname -n)"
}

# This machine has an identity: nothing is changed, and whether it is one of this site and project is said truly.
look_at_its_enrolment() {
    if ! cmp -s "$work/ca.pem" /etc/ckp-agent/ca.pem; then
        fail "this machine has the identity of another site, or of this one before its CA was made again" "$FROM_THE_START"
    fi
    grep -q "\"domain\": \"$domain\", \"project\": \"$project\"" /etc/ckp-agent/config.json ||
        fail "this machine is a host of another project than $domain/$project" "$FROM_THE_START"
    [ "$(dpkg-query -W -f '${db:Status-Status}' ckp-agent 2>/dev/null || true)" = installed ] ||
        fail "this machine is enrolled, and the package ckp-agent has been removed" "install the site's ckp-agent again by hand (dpkg -i); or $FROM_THE_START"
    ckp-agent status
    printf 'This machine is enrolled already, and nothing was changed. If its certificate was revoked, or the host deleted: %s\n' "$FROM_THE_START"
    exit 0
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
        printf "      reading the project's pre-shared key from standard input\n"
        IFS= read -r key || true
    fi
    key=$(printf '%s' "$key" | tr -d ' \t\r')
    case $key in
    '') fail "no pre-shared key was given" "make one with ckp host join-command --new-key, or ckp host psk --reset" ;;
    *[!A-Za-z0-9_-]*) fail "what was given is not a pre-shared key" "give the key alone, as ckp host psk --reset shows it" ;;
    esac
}

verify() {
    case $(ask "/packages/apt/dists/$VERSION_CODENAME/InRelease" -o /dev/null -w '%{http_code}' || true) in
    404) fail "the hub has no packages for $PRETTY_NAME ($VERSION_CODENAME)" "take a system that the guide to bringing your own hosts names, or install the agent by hand" ;;
    esac
    fetch /v1/join/site.json "$work/site.json"
    if grep -q '"authorities"' "$work/site.json" && ! command -v update-ca-certificates >/dev/null; then
        fail "the site has private CAs, and this machine has no program that adds them to its trust store; nothing was changed" "apt-get install ca-certificates, and the line again"
    fi
    fetch /packages/keys/ckp.gpg "$work/ckp.gpg" # the site's own keyring, if it has one
    : >"$work/status"
    mkdir -p "$work/sources" "$work/lists/partial" "$work/cache/archives/partial"
    cat >"$work/sources/ckp-site.sources" <<END
Types: deb
URIs: https://$hub:8443/packages/apt
Suites: $VERSION_CODENAME
Components: agent
Architectures: amd64
Signed-By: $work/ckp.gpg
END
    # Settings of this run alone: what the owner's may allow (unsigned repositories, no verification of TLS) is not allowed here.
    {
        printf 'Dir::Etc::Main "/dev/null";\nDir::Etc::Parts "/dev/null";\nDir::Etc::SourceList "/dev/null";\nDir::Etc::SourceParts "%s";\n' "$work/sources"
        printf 'Dir::Etc::Preferences "/dev/null";\nDir::Etc::PreferencesParts "/dev/null";\nDir::State::Lists "%s";\nDir::State::status "%s";\nDir::Cache "%s";\n' "$work/lists" "$work/status" "$work/cache"
        printf 'APT::Sandbox::User "root";\nAPT::Update::Error-Mode "any";\nAcquire::Retries "3";\nAcquire::https::Timeout "60";\nAcquire::Languages "none";\n'
        printf 'Acquire::https::CAInfo "%s";\nAcquire::https::Proxy "%s";\n' "$work/ca.pem" "${proxy:-DIRECT}"
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
    version=$(dpkg-deb -f "$package" Version)
    printf '      ckp-agent %s by %s\n' "$version" "$MAINTAINER"
    have=$(dpkg-query -W -f '${Version}' ckp-agent 2>/dev/null || true)
    if [ -n "$have" ] && dpkg --compare-versions "$have" gt "$version"; then
        fail "this machine has ckp-agent $have, which is newer than the site's $version; nothing was changed" "apt-get purge ckp-agent, and the line again"
    fi
}

install_agent() {
    # No source is left behind: the hub upgrades its agents, with a way back.
    dpkg --configure -a --force-confdef --force-confold </dev/null || true # what an interrupted dpkg has left
    # What else is needed comes from the owner's sources: by the owner's proxy for apt, or by the site's.
    http_proxy=$(setting httpProxy) https_proxy=$(setting httpsProxy) no_proxy=$(setting noProxy) \
        DEBIAN_FRONTEND=noninteractive apt-get -q=2 -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 install -y --no-install-recommends "$package" </dev/null ||
        fail "apt could not install ckp-agent" "do what it says above (often: apt-get update), then run the same line again"
}

set_up() {
    mkdir -p /etc/ckp-agent
    chmod 750 /etc/ckp-agent
    rm -f /etc/ckp-agent/psk.?????? /etc/ckp-agent/config.json.?????? /etc/ckp-agent/ca.pem.?????? # of a run that was killed
    if [ -n "$proxy" ]; then
        mkdir -p "$DROP_INS"
        printf '[Service]\nEnvironment=HTTPS_PROXY=%s HTTP_PROXY=%s\nEnvironment=NO_PROXY=%s\n' "$proxy" "$proxy" "$exceptions" | put "$DROP_INS/ckp-site-proxy.conf" 644
    else
        rm -f "$DROP_INS/ckp-site-proxy.conf"
    fi
    systemctl daemon-reload
    put /etc/ckp-agent/ca.pem 644 <"$work/ca.pem"
    keyring=''
    if grep -q '"version"' "$work/site.json"; then
        ckp-agent settings apply --file "$work/site.json" ||
            fail "this machine can't take what the site gives to its hosts" "do what it says above, and run the same line again"
        [ -z "$(setting keyring)" ] || keyring=', "keyring": "/etc/ckp-agent/trusted.gpg"'
    elif [ -e /etc/ckp-agent/site.json ]; then
        ckp-agent settings remove # of an earlier attempt
    fi
    printf '%s' "$key" | put /etc/ckp-agent/psk 600
    printf '{"hub": "https://%s:8443", "channel": "wss://%s:9443/v1/agent", "domain": "%s", "project": "%s", "ca": "/etc/ckp-agent/ca.pem"%s}\n' \
        "$hub" "$hub" "$domain" "$project" "$keyring" | put /etc/ckp-agent/config.json 644
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
