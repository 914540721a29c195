"""A hub that serves what machines fetch before they have a credential, and a machine that is to join by the line."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry

from ckp.clients.signing.openpgp import SigningKey
from ckp.distribution.packages.pack import Format, Package
from ckp.distribution.repositories.publish import AGENT, Repositories
from ckp.hub.downloads import Downloads, EnrolmentPort
from ckp.kits.processes import Finished
from ckp.rules import joining
from ckp.runtime.serving import Server, make_server
from ckp.site.settings.model import KEY as KEY_OF_SETTINGS
from ckp.site.settings.model import RPM_KEYS, HostSettings
from tests.support.debian_root import Debian
from tests.support.signing_keys import signing_key
from tests.support.small_packages import MAINTAINER, small_package
from tests.worlds.tls import Authority, make_authority, make_leaf, write_pair

HUB, PORT = "hub.joining.test", joining.ENROLMENT_PORT
LOOPBACK = f"127.0.{os.environ.get('PYTEST_XDIST_WORKER', 'gw0').removeprefix('gw')}.87"
"""The port is one for all hubs, so each process that tests has an address of its own."""
KEY = "ckphk_" + "k" * 43
VERSION = "0.2.0+1-ckp"
CHANGED = ("/etc", "/usr", "/var/lib", "/root", "/opt")


@dataclass
class Hub:
    """A hub that serves, and a machine that is to join."""

    ca: Authority
    packages: Path
    signer: SigningKey
    machine: Debian
    kind: Format = "deb"

    def line(self, ca: Authority | None = None) -> str:
        return joining.line(HUB, (ca or self.ca).pem.encode(), "default", "edge").removeprefix("sudo ")

    def join(self, line: str = "", key: str = KEY) -> Finished:
        command = joining.with_key(line or self.line(), key.strip()).replace(key.strip(), key, 1)
        self.machine.write("/line", f"CKP_JOIN_WAIT_SECONDS=2; export CKP_JOIN_WAIT_SECONDS\n{command}\n")
        return self.machine.sh("code=0; sh /line || code=$?; rm /line; exit $code", check=False)

    def state(self) -> str:
        """Every file that somebody could miss, with its time."""
        found = f"find {' '.join(CHANGED)} -xdev -newer /before ! -type d ! -name 'rpmdb.sqlite-*' | sort"  # which readers have, too
        database = "rpm -qa | sort" if self.kind == "rpm" else "dpkg -l"
        return self.machine.sh(f"{found}; {database} | sha256sum").stdout

    def give(self, settings: HostSettings) -> None:
        """From now on, the site gives these settings to its hosts."""
        data = settings.config_map()["data"]
        (self.packages.parent / "site.json").write_text(data.get(KEY_OF_SETTINGS, ""))
        (self.packages.parent / RPM_KEYS).write_text(data.get(RPM_KEYS, ""))


@contextmanager
def serving(app: object, folder: Path, ca: Authority, address: str = LOOPBACK) -> Iterator[None]:
    """The application on the enrolment port, with a certificate of this CA for the hub's name."""
    pem, key = make_leaf(ca, dns=(HUB,), server=True)
    cert, key_file = write_pair(folder, "hub", pem, key)
    server: Server = make_server(app, host=address, port=PORT, cert=cert, key=key_file)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(20)


def agent(folder: Path, key: SigningKey | None, maintainer: str = MAINTAINER, *, kind: Format = "deb", version: str = VERSION) -> Package:
    """The agent's package, small."""
    depends = {"deb": ["python3", "openssl"], "rpm": ["openssl"]}[kind]
    return small_package(folder, key, "ckp-agent", version, kind, depends=depends, maintainer=maintainer)


@contextmanager
def joining_hub(folder: Path, machine: Debian, kind: Format = "deb") -> Iterator[Hub]:
    """A hub that serves for as long as the block lasts; the machine knows its address."""
    ca, signer = make_authority("site"), signing_key(folder / "keys")
    (folder / "ca.pem").write_text(f"a comment\n{ca.pem}")
    packages = folder / "packages"
    packages.mkdir()
    Repositories(packages, signer).publish([agent(folder / "agent", signer, kind=kind)], AGENT, print)
    machine.write("/etc/hosts", f"{LOOPBACK} {HUB}\n127.0.0.1 localhost\n")
    machine.sh("mkdir -p /var/lib/ckp-agent")
    registry = CollectorRegistry()

    async def nothing_else(scope: dict[str, object], receive: object, send: object) -> None:
        raise AssertionError("no enrolment here")

    with serving(EnrolmentPort(Downloads(packages, folder / "ca.pem", registry, folder / "site.json"), nothing_else), folder, ca):
        yield Hub(ca, packages, signer, machine, kind)
