"""What a site gives to its hosts: trusted keys, private CAs, the proxy, name servers and time servers (docs/adr/0029).

SITE_SETTINGS holds them as one JSON object. `apply` makes the host so by files of CKP's own names, beside the owner's and never in them:

    SITE_KEYRING                                      the keys that bundles and agents must be signed by
    /usr/local/share/ca-certificates/ckp-*.crt        private CAs, for update-ca-certificates (with dnf: update-ca-trust)
    /etc/systemd/resolved.conf.d/50-ckp-site.conf     name servers, where systemd-resolved is what the host asks
    /etc/systemd/timesyncd.conf.d/50-ckp-site.conf    time servers, where systemd-timesyncd sets the clock
    /etc/chrony/sources.d/ckp-site.sources            time servers, where chrony does

The proxy needs no file of its own: the tool takes it from SITE_SETTINGS when it starts (ckp.hostkit.proxies.adopt), and containerd from the tool.
Level-triggered: what is so already is left alone, and a service is restarted only if what it reads is not what it was last restarted with (STAMPS).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from ckp.agent.journal import STANDALONE, Journal
from ckp.agent.system import runtime_proxy
from ckp.hostkit import proxies
from ckp.hostkit.errors import InvalidInput
from ckp.hostkit.files import atomic_write, read_text, remove
from ckp.hostkit.locations import SITE_KEYRING, SITE_SETTINGS, STANDALONE_JOURNAL, STATE_DIR
from ckp.hostkit.processes import have, run

VERSION = 1
KEYRING, AUTHORITIES, NAMESERVERS, TIME_SERVERS = "keyring", "authorities", "nameservers", "timeServers"
PROXY = ("httpProxy", "httpsProxy", "noProxy")
STAMPS = "site-settings.json"
"""Below the state's folder: service -> digest of what it was last restarted with."""
RESOLVED = "/etc/systemd/resolved.conf.d/50-ckp-site.conf"
TIMESYNCD = "/etc/systemd/timesyncd.conf.d/50-ckp-site.conf"
CHRONY = "/etc/chrony/sources.d/ckp-site.sources"
CHRONY_CONFIGURATIONS = ("/etc/chrony/chrony.conf", "/etc/chrony.conf")
RESOLV_CONF = "/etc/resolv.conf"
OWN_CA = re.compile(r"ckp-[0-9a-f]{16}\.crt")
NOTE = "# Written by ckp-agent for this host's site. Removed when the site no longer asks for it.\n"
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----\s+([A-Za-z0-9+/=\s]+?)-----END CERTIFICATE-----")
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_URL = re.compile(r"http://[A-Za-z0-9.-]+(:[0-9]{1,5})?/?")
_NO_PROXY = re.compile(r"[A-Za-z0-9.*:/-]+(,[A-Za-z0-9.*:/-]+)*")
_STORES = (
    ("update-ca-certificates", "/usr/local/share/ca-certificates", ("update-ca-certificates", "--fresh")),
    ("update-ca-trust", "/etc/pki/ca-trust/source/anchors", ("update-ca-trust", "extract")),
)
"""Program, folder and command of an operating system's trust store: Debian and Ubuntu; RHEL and its relatives."""
Problem = Tuple[str, str]
"""Why something can't be applied here, and what to do."""


@dataclass(frozen=True)
class Settings:
    """SITE_SETTINGS as it was read.

    Args:
        keyring: binary OpenPGP certificates; empty: those of the agent's package are trusted.
        authorities: file name below the trust store -> PEM of one certificate.
        proxy: those of PROXY that are set.
    """

    keyring: bytes = b""
    authorities: Dict[str, str] = field(default_factory=dict)
    proxy: Dict[str, str] = field(default_factory=dict)
    nameservers: Tuple[str, ...] = ()
    time_servers: Tuple[str, ...] = ()


def parse(text: str) -> Settings:
    """Read the settings; an empty text has none.

    Raises:
        InvalidInput: they are malformed, or name what this version of the tool doesn't know.
    """
    try:
        data = json.loads(text) if text.strip() else {}
    except ValueError as error:
        raise _wrong(f"it is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise _wrong("it is not a JSON object")
    if data and data.get("version") != VERSION:
        raise _wrong(f"its version is {data.get('version')!r}, and this ckp-agent knows {VERSION}")
    if unknown := sorted(set(data) - {"version", KEYRING, AUTHORITIES, NAMESERVERS, TIME_SERVERS, *PROXY}):
        raise _wrong(f"this ckp-agent does not know {', '.join(unknown)}")
    proxy = {name: str(data[name]) for name in PROXY if data.get(name)}
    for name, value in proxy.items():
        if not (_NO_PROXY if name == "noProxy" else _URL).fullmatch(value):
            raise _wrong(f"{name} is not one")  # not quoted: it may hold a password
    return Settings(
        _keyring(data.get(KEYRING, "")),
        dict(_authority(pem) for pem in _texts(data, AUTHORITIES)),
        proxy,
        tuple(_named(data, NAMESERVERS)),
        tuple(_named(data, TIME_SERVERS)),
    )


def _wrong(why: str) -> InvalidInput:
    return InvalidInput(f"the site's settings for this host can't be used: {why}", resolution="apply the site again, with `ckp` and ckp-agent of one version")


def _texts(data: Dict[str, Any], key: str) -> List[str]:
    found = data.get(key, [])
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise _wrong(f"{key} is not a list of texts")
    return found


def _named(data: Dict[str, Any], key: str) -> List[str]:
    found = _texts(data, key)
    if bad := [item for item in found if not _NAME.fullmatch(item)]:
        raise _wrong(f"{key} has {bad[0][:80]!r}, which is neither a name nor an address")
    return found


def _keyring(text: Any) -> bytes:
    try:
        return base64.b64decode(str(text), validate=True)
    except binascii.Error as error:
        raise _wrong(f"{KEYRING} is not in base64: {error}") from None


def _authority(pem: str) -> Tuple[str, str]:
    match = _CERTIFICATE.fullmatch(pem.strip())
    if match is None:
        raise _wrong(f"{AUTHORITIES} has something that is not one certificate in PEM")
    digest = hashlib.sha256(base64.b64decode("".join(match[1].split()))).hexdigest()
    return f"ckp-{digest[:16]}.crt", pem.strip() + "\n"


# -- what speaks against it


def problems(settings: Settings) -> List[Problem]:
    """What of the settings this host can't take. Nothing is changed."""
    found: List[Problem] = []
    if settings.authorities and _store() is None:
        found.append(("it has no program that adds CAs to its trust store", "install the package ca-certificates"))
    if settings.nameservers and not _asks_resolved():
        found.append(
            (
                "its name servers are not those of systemd-resolved, and CKP changes nobody else's /etc/resolv.conf",
                "set the name servers where the host's own network settings have them, and leave network.dns out; or install and enable systemd-resolved",
            )
        )
    if settings.time_servers and not _clock_service():
        found.append(
            (
                "neither systemd-timesyncd nor a chrony that reads /etc/chrony/sources.d sets its clock",
                "enable one of them; or set the time servers by hand, and leave network.timeServers out",
            )
        )
    return found


def _store() -> Optional[Tuple[str, Sequence[str]]]:
    return next(((folder, command) for program, folder, command in _STORES if have(program)), None)


def _active(unit: str) -> bool:
    return run(["systemctl", "is-active", "--quiet", unit], timeout=30, check=False).code == 0


def _asks_resolved() -> bool:
    """Whether this host's programs ask systemd-resolved: by its stub, or by the list of servers that it keeps."""
    if not _active("systemd-resolved.service"):
        return False
    lines = [line.split() for line in read_text(RESOLV_CONF).splitlines()]
    servers = [words[1] for words in lines if words[:1] == ["nameserver"] and len(words) > 1]
    return servers in (["127.0.0.53"], ["127.0.0.54"]) or os.path.realpath(RESOLV_CONF).startswith("/run/systemd/resolve/")


def _clock_service() -> str:
    """The drop-in's path of what sets the clock; "" if nothing that can be told does."""
    if _active("systemd-timesyncd.service"):
        return TIMESYNCD
    if any(_active(unit) for unit in ("chrony.service", "chronyd.service")):
        configuration = "\n".join(map(read_text, CHRONY_CONFIGURATIONS))
        if re.search(rf"^\s*sourcedir\s+{re.escape(os.path.dirname(CHRONY))}/?\s*$", configuration, re.MULTILINE):
            return CHRONY
    return ""


# -- applying


def apply(text: str, *, state_dir: str = STATE_DIR, journal: Optional[Journal] = None) -> List[str]:
    """Make this host as the settings say; returns what was changed, in lines. What they no longer name goes away.

    It may be killed at any moment and called again.

    Args:
        text: of SITE_SETTINGS, which it is written to as well; empty: no settings.
        journal: of a standalone installation.

    Raises:
        InvalidInput: the settings are malformed, or this host can't take one of them. Nothing was changed.
        ProcessFailed: a program or a service failed; the same again goes on.
    """
    settings = parse(text)
    if found := problems(settings):
        raise InvalidInput(
            "this host can't take the site's settings, and nothing was changed",
            details="\n".join(f"{what} (what to do: {remedy})" for what, remedy in found),
            resolution="correct this, and run the same command again",
        )
    applying = _Applying(os.path.join(state_dir, STAMPS))
    applying.file(SITE_SETTINGS, text)
    applying.file(SITE_KEYRING, settings.keyring)
    applying.authorities(settings)
    applying.nameservers(settings)
    applying.clock(settings)
    applying.proxy(settings, journal or Journal(os.path.join(state_dir, STANDALONE_JOURNAL), os.path.join(state_dir, "standalone-saved")))
    return applying.changed


class _Applying:
    """One run: the files, and which services have to read them."""

    def __init__(self, stamps: str) -> None:
        self.changed: List[str] = []
        self._path = stamps
        try:
            self._stamps = dict(json.loads(read_text(stamps) or "{}"))
        except (ValueError, TypeError):
            self._stamps = {}

    def file(self, path: str, content: str | bytes) -> None:
        """A file as it should be; empty: none."""
        data = content.encode() if isinstance(content, str) else content
        if not data:
            if remove(path):
                self.changed.append(f"{path} is gone")
                if path in (RESOLVED, TIMESYNCD) and not os.listdir(os.path.dirname(path)):
                    os.rmdir(os.path.dirname(path))  # systemd's packages bring none: it is ours
            return
        try:
            with open(path, "rb") as stream:
                if stream.read() == data:
                    return
        except FileNotFoundError:
            pass
        atomic_write(path, data)
        self.changed.append(f"{path} written")

    def once(self, service: str, reads: str, act: Callable[[], object], what: str) -> None:
        """Do `act` if the service has not read this yet. A service that reads nothing of ours, and never did, is not touched."""
        digest = hashlib.sha256(reads.encode()).hexdigest()[:16] if reads else ""
        if self._stamps.get(service, "") == digest:
            return
        self._stamp(service, "changing")  # a run that is killed from here on has to do it again, whatever it is asked for then
        act()
        self._stamp(service, digest)
        self.changed.append(what)

    def _stamp(self, service: str, value: str) -> None:
        self._stamps[service] = value
        os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
        kept = {name: stamp for name, stamp in self._stamps.items() if stamp}
        if kept:
            atomic_write(self._path, json.dumps(kept, sort_keys=True))
        else:
            remove(self._path)

    # -- each setting

    def authorities(self, settings: Settings) -> None:
        store = _store()
        if store is None:
            return  # and there are none to bring: `problems` has looked
        folder, command = store
        there = [name for name in (os.listdir(folder) if os.path.isdir(folder) else ()) if OWN_CA.fullmatch(name)]
        for name in {*there, *settings.authorities}:
            self.file(os.path.join(folder, name), settings.authorities.get(name, ""))
        reads = ",".join(sorted(settings.authorities))
        self.once("trust store", reads, lambda: run(command, timeout=120, what="adding the site's CAs to the trust store"), "the trust store was made again")
        self.once("containerd", reads, lambda: _restart("containerd.service"), "containerd has read the trust store again, if it runs")

    def nameservers(self, settings: Settings) -> None:
        # `~.`: names that no link claims for itself are asked of these servers alone.
        text = f"{NOTE}[Resolve]\nDNS={' '.join(settings.nameservers)}\nDomains=~.\n" if settings.nameservers else ""
        self.file(RESOLVED, text)
        self.once("systemd-resolved", text, lambda: _restart("systemd-resolved.service"), "systemd-resolved restarted")

    def clock(self, settings: Settings) -> None:
        used = _clock_service() if settings.time_servers else ""
        # An empty NTP= takes away those that the host's own files name.
        timesyncd = f"{NOTE}[Time]\nNTP=\nNTP={' '.join(settings.time_servers)}\n" if used == TIMESYNCD else ""
        chrony = NOTE + "".join(f"server {server} iburst\n" for server in settings.time_servers) if used == CHRONY else ""
        self.file(TIMESYNCD, timesyncd)
        self.file(CHRONY, chrony)
        self.once("systemd-timesyncd", timesyncd, lambda: _restart("systemd-timesyncd.service"), "systemd-timesyncd restarted")
        self.once("chrony", chrony, _reload_chrony, "chrony has read its sources again")

    def proxy(self, settings: Settings, journal: Journal) -> None:
        """A standalone node's containerd follows here; a worker's agent does it itself, once it is restarted."""
        reads = json.dumps(settings.proxy, sort_keys=True) if settings.proxy else ""
        member = journal.member

        def follow() -> None:
            _restart("ckp-agent.service")
            if member is None or member.key != STANDALONE or "containerd" not in journal.done:
                return  # the installation takes the proxy with it
            proxies.adopt(replace=True)
            direct = tuple(member.settings[name] for name in ("pod_cidr", "service_cidr") if name in member.settings)
            if why := runtime_proxy.follow(journal, direct):
                raise InvalidInput(f"containerd did not take over the proxy: {why}", resolution="run the same command again")

        self.once("proxy", reads, follow, f"the proxy is {settings.proxy.get('httpsProxy') or settings.proxy.get('httpProxy') or 'none'} now")


def _restart(unit: str) -> None:
    """Restart a service if it runs. One that this host does not have is none: systemctl would fail."""
    if run(["systemctl", "show", "--property=LoadState", "--value", unit], timeout=30, check=False).stdout.strip() == "loaded":
        run(["systemctl", "try-restart", unit], timeout=180, what=f"restarting {unit}", resolution=f"journalctl -u {unit}")


def _reload_chrony() -> None:
    if have("chronyc"):
        run(["chronyc", "reload", "sources"], timeout=30, what="letting chrony read its sources", check=False)
