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
DROP_INS=/etc/systemd/system/ckp-agent.service.d
WAIT_SECONDS=${CKP_JOIN_WAIT_SECONDS:-60}
hub='' domain='' project='' proxy='' exceptions='' key='' manager='' purge='' from_the_start='' package='' work=$(pwd)

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
    ID='' ID_LIKE='' VERSION_ID='' VERSION_CODENAME='' PRETTY_NAME=''
    # shellcheck source=/dev/null
    . /etc/os-release
    choose_package_manager
    if [ -s /etc/ckp-agent/config.json ] && ! grep -q "\"https://$hub:8443\"" /etc/ckp-agent/config.json; then
        fail "this machine is set up for another hub: $(sed -n 's/.*"hub": *"\([^"]*\)".*/\1/p' /etc/ckp-agent/config.json)" "$from_the_start"
    fi
    if [ -s /var/lib/ckp-agent/cert.pem ]; then
        look_at_its_enrolment
    fi
    printf '      %s, %s\n' "$PRETTY_NAME" "$(uname -n)"
}

choose_package_manager() {
    case " $ID $ID_LIKE " in
    *" rhel "* | *" ol "*) # Oracle's is like Fedora, as it says
        case $VERSION_ID in
        9 | 9.*) ;;
        *) fail "the hub has packages for RHEL 9 and its rebuilds, and this is ${PRETTY_NAME:-of version $VERSION_ID}" "take a system that the guide to bringing your own hosts names" ;;
        esac
        for program in dnf rpm rpmkeys; do
            command -v "$program" >/dev/null || fail "there is no $program on this machine" "install it; systems of images that are updated as a whole cannot be hosts"
        done
        manager=dnf purge="ckp-agent settings remove; dnf remove ckp-agent; rm -rf /etc/ckp-agent /var/lib/ckp-agent $DROP_INS/ckp-site-proxy.conf"
        ;;
    *)
        if [ -z "$VERSION_CODENAME" ] || ! command -v apt-get >/dev/null; then
            fail "the hub has packages for Debian, Ubuntu and RHEL 9, and this is ${PRETTY_NAME:-an unknown system}" "take a system that the guide to bringing your own hosts names"
        fi
        manager=apt purge="apt-get purge ckp-agent"
        ;;
    esac
    from_the_start="to enrol it from the start: ckp host remove and ckp host delete there, $purge here, and the line again"
}

# This machine has an identity: nothing is changed, and whether it is one of this site and project is said truly.
look_at_its_enrolment() {
    if ! cmp -s "$work/ca.pem" /etc/ckp-agent/ca.pem; then
        fail "this machine has the identity of another site, or of this one before its CA was made again" "$from_the_start"
    fi
    grep -q "\"domain\": \"$domain\", \"project\": \"$project\"" /etc/ckp-agent/config.json ||
        fail "this machine is a host of another project than $domain/$project" "$from_the_start"
    "installed_by_$manager" ||
        fail "this machine is enrolled, and the package ckp-agent has been removed" "install the site's ckp-agent again by hand; or $from_the_start"
    ckp-agent status
    printf 'This machine is enrolled already, and nothing was changed. If its certificate was revoked, or the host deleted: %s\n' "$from_the_start"
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
    case $(ask "$("index_of_$manager")" -o /dev/null -w '%{http_code}' || true) in
    404) fail "the hub has no packages for $PRETTY_NAME" "take a system that the guide to bringing your own hosts names, or install the agent by hand" ;;
    esac
    fetch /v1/join/site.json "$work/site.json"
    if grep -q '"authorities"' "$work/site.json" && ! command -v update-ca-certificates >/dev/null && ! command -v update-ca-trust >/dev/null; then
        fail "the site has private CAs, and this machine has no program that adds them to its trust store; nothing was changed" "install the package ca-certificates, and run the same line again"
    fi
    "verify_by_$manager" # sets package, maintainer, version and have
    of_the_maker "$maintainer" ||
        fail "the maintainer of ckp-agent is $maintainer, not $MAINTAINER; nothing was changed" "tell the site's administrator"
    printf '      ckp-agent %s by %s\n' "$version" "$MAINTAINER"
    for each in $have; do # rpm may have two, after a transaction that was interrupted
        if "newer_by_$manager" "$each" "$version"; then
            fail "this machine has ckp-agent $each, which is newer than the site's $version; nothing was changed" "$purge; and the line again"
        fi
    done
}

of_the_maker() { # MAINTAINER
    case $1 in
    "$MAINTAINER" | "$MAINTAINER <"*">") ;;
    *) return 1 ;;
    esac
}

# -- Debian and Ubuntu: apt and dpkg

installed_by_apt() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' ckp-agent 2>/dev/null || true)" = installed ]
}

index_of_apt() {
    printf '/packages/apt/dists/%s/InRelease' "$VERSION_CODENAME"
}

verify_by_apt() {
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
    maintainer=$(dpkg-deb -f "$package" Maintainer)
    version=$(dpkg-deb -f "$package" Version)
    have=$(dpkg-query -W -f '${Version}' ckp-agent 2>/dev/null || true)
}

newer_by_apt() { # VERSION THAN
    dpkg --compare-versions "$1" gt "$2"
}

install_by_apt() {
    dpkg --configure -a --force-confdef --force-confold </dev/null || true # what an interrupted dpkg has left
    # What else is needed comes from the owner's sources: by the owner's proxy for apt, or by the site's.
    http_proxy=$(setting httpProxy) https_proxy=$(setting httpsProxy) no_proxy=$(setting noProxy) \
        DEBIAN_FRONTEND=noninteractive apt-get -q=2 -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 install -y --no-install-recommends "$package" </dev/null ||
        fail "apt could not install ckp-agent" "do what it says above (often: apt-get update), then run the same line again"
}

# -- RHEL 9 and its rebuilds: dnf and rpm

RPM_PATH=/packages/rpm/el9/agent/x86_64

installed_by_dnf() {
    rpm -q --quiet ckp-agent
}

index_of_dnf() {
    printf '%s/repodata/repomd.xml' "$RPM_PATH"
}

verify_by_dnf() {
    fetch /packages/keys/ckp.asc "$work/ckp.asc" # the site's own keys, if it has some
    # Settings of this run alone, as for apt. gpgcheck is of no use here: dnf would put the key into the machine's own database. rpmkeys does it below.
    {
        printf '[main]\nreposdir=/dev/null\nvarsdir=/dev/null\nplugins=0\nretries=3\ntimeout=60\n'
        printf '[ckp-site]\nname=the hub of the site\nbaseurl=https://%s:8443%s\nenabled=1\nskip_if_unavailable=0\n' "$hub" "$RPM_PATH"
        printf 'repo_gpgcheck=1\ngpgkey=file://%s\nsslverify=1\nsslcacert=%s\n' "$work/ckp.asc" "$work/ca.pem"
        [ -z "$proxy" ] || printf 'proxy=%s\n' "$proxy"
    } >"$work/dnf.conf"
    mkdir "$work/root" # for its cache, its logs, and a database of packages in which nothing is installed
    url=$(dnf -q -y --noplugins --config="$work/dnf.conf" --installroot="$work/root" --releasever=9 --forcearch=x86_64 repoquery --latest-limit=1 --location ckp-agent) ||
        fail "the hub's repository was not verified; nothing was changed" "see what dnf says above"
    # librepo trusts the CAs in a folder of libcurl's beside sslcacert, where libcurl was built with one (RHEL's has none). So curl fetches the rest.
    index=$(find "$work/root" -name repomd.xml -path '*/ckp-site-*') primary=$(find "$work/root" -name '*primary.xml.gz' -path '*/ckp-site-*')
    fetch "$RPM_PATH/repodata/repomd.xml" "$work/repomd.xml"
    cmp -s "$work/repomd.xml" "$index" ||
        fail "dnf got another index than the hub has; nothing was changed" "run the same line again: the hub may just have got other packages"
    case $url in
    "https://$hub:8443$RPM_PATH/"*) fetch "${url#"https://$hub:8443"}" "$work/ckp-agent.rpm" ;;
    *) fail "the hub's repository has no ckp-agent; nothing was changed" "tell the site's administrator" ;;
    esac
    package=$work/ckp-agent.rpm
    digest=$(sha256sum <"$package")
    digest=${digest%% *}
    gzip -dc "$primary" | grep -q ">$digest<" ||
        fail "the agent's package was not verified: its SHA-256 is not in the hub's index; nothing was changed" "tell the site's administrator"
    # A database of its own: the machine's does not get the key, and other keys in it do not count. The macro: what is unsigned is refused.
    mkdir "$work/keys"
    rpmkeys --dbpath="$work/keys" --import "$work/ckp.asc" ||
        fail "the site's keys can't be used by rpm; nothing was changed" "see what rpm says above; tell the site's administrator"
    rpmkeys --dbpath="$work/keys" --define '_pkgverify_level all' --checksig "$package" >&2 ||
        fail "the agent's package was not verified: no signature by a key of the site; nothing was changed" "see what rpm says above; tell the site's administrator"
    maintainer=$(field_of_rpm PACKAGER) vendor=$(field_of_rpm VENDOR)
    of_the_maker "$vendor" || maintainer=$vendor
    version=$(field_of_rpm VERSION)-$(field_of_rpm RELEASE)
    [ "$(field_of_rpm NAME)" = ckp-agent ] || fail "the package is $(field_of_rpm NAME), not ckp-agent; nothing was changed" "tell the site's administrator"
    have=''
    if installed_by_dnf; then
        have=$(rpm -q --qf '%{VERSION}-%{RELEASE}\n' ckp-agent)
    fi
}

field_of_rpm() { # TAG
    rpm --dbpath="$work/keys" -qp --nosignature --qf "%{$1}" "$package"
}

newer_by_dnf() { # VERSION-RELEASE THAN
    case $(rpm --eval "%{lua: print(rpm.vercmp('${1%-*}', '${2%-*}'))}") in
    1) return 0 ;;
    0) [ "$(rpm --eval "%{lua: print(rpm.vercmp('${1##*-}', '${2##*-}'))}")" = 1 ] ;;
    *) return 1 ;;
    esac
}

install_by_dnf() {
    # What else is needed comes from the owner's repositories: by the owner's proxy for dnf, or by the site's. They are checked as the owner has it;
    # the file of this run has been verified. SELinux labels what rpm installs, and the firewall stays as it is: the agent only dials out.
    http_proxy=$(setting httpProxy) https_proxy=$(setting httpsProxy) no_proxy=$(setting noProxy) \
        dnf -q -y --setopt=install_weak_deps=False --setopt=localpkg_gpgcheck=0 install "$package" </dev/null ||
        fail "dnf could not install ckp-agent" "do what it says above, then run the same line again"
    installed_by_dnf || fail "dnf has not installed ckp-agent" "see what it says above (an exclude of the owner's?), then run the same line again"
}

# -- both

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
    "install_by_$manager" # no source is left behind: the hub upgrades its agents, with a way back
    step 4 "Setting it up"
    set_up
    step 5 "Waiting until the hub has the request"
    wait_for_request
}

main "$@"
