"""The site's own registry: durable, on a management host, where pushes need credentials and pulls do not.

distribution has no rule such as "everybody reads, one writes". So two processes serve the same folder: one is read-only and asks nobody
anything, the other wants a password for each request and listens on a port of its own. Both may share the folder: a blob or a manifest is written
under a temporary name, flushed, and renamed; a tag is written after what it names; and neither process caches what it has read
(distribution v3.1, registry/storage/driver/filesystem and registry/handlers/app.go).

What nothing names any longer stays in the folder until it is collected (ckp.site.registries.gc).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path
from typing import Protocol

from ckp.clients.oci.registry import Registry
from ckp.distribution.bundles import PREFIX
from ckp.distribution.registries.config import server_config
from ckp.kits import paths
from ckp.kits.disks import DiskFull, says_full
from ckp.kits.errors import CkpError, Conflict, InvalidInput
from ckp.kits.files import exclusive
from ckp.kits.retry import wait_until
from ckp.site.hosts.files import HostFile, bring, differing, digests, digests_argv, owners, owners_argv
from ckp.site.hosts.questions import Asked
from ckp.site.inventory import SiteHost
from ckp.site.registries.kept import KeptRegistry
from ckp.site.registries.unit import CONFIG, DRAIN_SECONDS, DROP_IN, PROGRAM, PULL, PUSH, TEMPLATE, USER, drop_in_text, unit_of, unit_text

STORAGE = "/var/lib/ckp-registry"
ACCOUNT = "CKP registry"
"""The comment of the host's account, which tells it from one of the same name that CKP has not made."""
REGISTRY_STATE = "registry"
"""The folder below a site's state with what this machine keeps of its registry."""
RELEASE_GIB, RESERVE_GIB = 4.0, 1.0
"""Free space that a registry needs for its first release, and that one with content must have left."""
START_TIMEOUT = 60.0
INSTANCES = (PULL, PUSH)
CONTENT = "docker"
"""The only entry that distribution makes in its folder."""
STATES = ["systemctl", "show", "--property=ActiveState,SubState,UnitFileState,MainPID", *map(unit_of, INSTANCES)]
LISTENERS = ["ss", "-Hltnp"]
ACCOUNTS = ["getent", "passwd", USER]
_TLS, _USERS, HOST_CA = f"{CONFIG}/tls.pem", f"{CONFIG}/htpasswd", f"{CONFIG}/ca.pem"

Say = Callable[[str], None]
Connect = Callable[[str, Path, Path | None], Registry]
"""Makes a client of `host:port`, the CA's file, and a file of credentials or None."""


class SiteRegistryServer(Protocol):
    """A registry that a site's hosts pull from, as publishing and installing need it; who runs it is its own affair."""

    @property
    def address(self) -> str:
        """`host:port` as hosts and images name it."""
        ...

    @property
    def endpoint(self) -> str:
        """`address:port` that this machine pushes to; for programs such as imgpkg, which are not given a client."""
        ...

    @property
    def ca(self) -> Path | None:
        """The file with the CA of its certificate (PEM), which `ensure` makes for CKP's own; None for those that the system trusts."""
        ...

    @property
    def credentials(self) -> Path | None:
        """A file in the format of docker's config.json (0600) with the password for `endpoint`; None if none is needed."""
        ...

    def ensure(self, say: Say) -> Registry:
        """Make it run, if it does not; a client that may push. Raises CkpError."""
        ...

    def client(self) -> Registry:
        """A client that may push to what `ensure` has made."""
        ...


def connect(address: str, ca: Path, credentials: Path | None) -> Registry:
    """A client over the network."""
    return Registry(address, ca, credentials=credentials)


def configurations(listen: str, port: int, push_listen: str, push_port: int, storage: str, tls: str, users: str) -> dict[str, str]:
    """The configuration of each service.

    Args:
        listen: the address for everybody; 0.0.0.0 for all.
        tls: the file with certificate and key.
        users: the htpasswd file.
    """
    drain = f"{DRAIN_SECONDS}s"
    return {
        PULL: server_config(listen, port, storage, tls, tls, read_only=True, drain=drain),
        PUSH: server_config(push_listen, push_port, storage, tls, tls, htpasswd=users, drain=drain),
    }


@dataclass(frozen=True)
class HostedRegistry:
    """The registry of a site on one of its hosts. Where several have it, this machine keeps the same for all of them.

    This machine keeps, below `state`, what `KeptRegistry` says; the CA's key gets to no host.
    The host has the server's key and the hash, readable for root and the services.

    Args:
        host: runs it.
        program: the built `registry`.
        name: the host name that hosts and images know it by; they resolve it.
        listen: the host's IPv4 address that both services listen on, and this machine connects to.
        port: for everybody, who may read only.
        push_port: for those with the password.
        storage: the folder of its content on the host. With another one, it begins empty: content is not moved.
        beside: IPv4 addresses of the site's other hosts that have a registry of this name with the same content.
        virtual: an address that moves between these hosts; "" for none. With one, the service for everybody listens on all of the host's addresses.
        state: what this machine keeps of it; by default a folder below `paths.state()`, by its name.
        connect: makes clients.
        now: the current time.

    Raises:
        InvalidInput: one of these cannot be.
    """

    host: SiteHost
    program: Path
    name: str
    listen: str
    port: int = 5000
    push_port: int = 5001
    storage: str = STORAGE
    state: Path | None = None
    beside: tuple[str, ...] = ()
    virtual: str = ""
    connect: Connect = connect
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*", self.name) or len(self.name) > 253:
            raise InvalidInput(f"{self.name[:300]!r} is not a host name that a registry can have")
        try:
            IPv4Address(self.listen)
        except AddressValueError as error:
            raise InvalidInput(f"the registry's address is not an IPv4 address: {error}") from None
        if self.port == self.push_port or not all(0 < port < 65536 for port in (self.port, self.push_port)):
            raise InvalidInput(f"a registry cannot listen on the ports {self.port} and {self.push_port}", resolution="name two ports between 1024 and 65535")
        if not re.fullmatch(r"(/[A-Za-z0-9_][A-Za-z0-9._-]*){2,}", self.storage):
            raise InvalidInput(
                f"{self.storage!r} cannot be the folder of a registry's content",
                resolution="write an absolute path, at least two levels deep, of letters, digits and . _ - only",
            )

    # -- SiteRegistryServer

    @property
    def address(self) -> str:
        """`host:port` as hosts and images name it."""
        return f"{self.name}:{self.port}"

    @property
    def endpoint(self) -> str:
        """`address:port` that takes pushes."""
        return f"{self.listen}:{self.push_port}"

    @property
    def ca(self) -> Path:
        """The CA of its certificate (PEM)."""
        return self.kept.ca

    @property
    def credentials(self) -> Path | None:
        """The password for pushing, in the format of docker's config.json (0600)."""
        return self.kept.credentials

    def client(self) -> Registry:
        """A client that may push. InvalidInput before `ensure` was called for the first time."""
        return self.connect(self.endpoint, self.ca, self.credentials)

    def ensure(self, say: Say) -> Registry:
        """Make the host run it as described here, and return a client that may push. What is so already is left alone.

        It may be killed at any moment and called again. A service is restarted only when something has changed that it reads; `say` gets a line
        for each change.

        Raises:
            Conflict: another program uses one of the ports, the host has the registry of another site or an account of that name, or the folder
                for its content has something else in it.
            DiskFull: the host has too little space for a release.
            CkpError: a service does not stay up (the end of its journal is in the details), or the host cannot be reached.
        """
        with self._locked():
            self.refuse()
            with exclusive(self.folder / ".lock", what="making the registry's certificate and password", timeout=600):
                self.prepare(say)
            self._ensure_account(say)
            self._ensure_storage(say)
            self._ensure_files(say)
            self._ensure_services(say)
        return self.client()

    def refuse(self) -> None:
        """Raise what `ensure` refuses before it changes anything. Nothing is changed, here or there.

        Raises:
            Conflict: see `ensure`.
            DiskFull: see `ensure`.
            NotFound: see `prepare`.
        """
        replace(self, host=Asked(self.host, self._questions(), timeout=120))._refuse()

    def _questions(self) -> list[list[str]]:
        """What `_refuse` asks the host."""
        content = f"{self.storage}/{CONTENT}"
        files = [digests_argv([HOST_CA]), owners_argv([content]), owners_argv([self.storage])]
        return [*files, STATES, LISTENERS, ACCOUNTS, *(free_space_argv(folder) for folder in (Path(self.storage), *Path(self.storage).parents))]

    def _refuse(self) -> None:
        self._refuse_another_site()
        self._require_ports()
        self._require_space()
        self._require_own_storage()
        self._require_own_account()
        if self.ca.exists():
            self.kept.require_key(self.why_issue())

    def remove(self, *, storage: bool = False) -> None:
        """Leave the host as it was: no services, files or account. What this machine keeps stays, and so does the content, as root's.

        Args:
            storage: delete the content, too.

        Raises:
            Conflict: the host has the registry of another site than the one whose CA this machine has, or the folder is not that of a registry.
            CkpError: a service cannot be stopped, or the host cannot be reached.
        """
        with self._locked():
            self.refuse_removal()
            if storage:
                self._require_own_storage()
            self.host.run(["systemctl", "stop", *map(unit_of, INSTANCES)], timeout=DRAIN_SECONDS + 60, check=False)
            if running := [unit_of(each) for each, state in self.states().items() if state.get("ActiveState") not in ("inactive", "failed")]:
                raise CkpError(f"{' and '.join(running)} on {self.host.name} cannot be stopped", details=self._journal(*running))
            self.host.run(["systemctl", "disable", *map(unit_of, INSTANCES)], timeout=60, check=False)
            self.host.run(["rm", "-rf", "--", TEMPLATE, DROP_IN], timeout=30)
            self.host.run(["systemctl", "daemon-reload"], timeout=60)
            self.host.run(["systemctl", "reset-failed", *map(unit_of, INSTANCES)], timeout=30, check=False)
            if storage:
                self.host.run(["rm", "-rf", "--", f"{self.storage}/{CONTENT}"], timeout=600)
                self.host.run(["rmdir", "--", self.storage], timeout=30, check=False)  # stays if it is a disk of its own, or has something else
            if self._owner() == USER:  # not left to a number that another account may get one day
                self.host.run(["chown", "-R", "--no-dereference", "root:root", self.storage], timeout=600)
            self.host.run(["rm", "-rf", "--", PROGRAM, CONFIG], timeout=30)
            if self._account() == ACCOUNT:  # last: nothing is left that belongs to it
                self.host.run(["userdel", USER], timeout=60)

    def refuse_removal(self) -> None:
        """Raise Conflict if the host has the registry of another site than the one whose CA this machine has."""
        if self.ca.exists():
            self._refuse_another_site()

    # -- on this machine

    @property
    def folder(self) -> Path:
        """What this machine keeps of it."""
        return self.state or paths.state() / "registries" / self.name

    def _locked(self) -> AbstractContextManager[None]:
        return exclusive(self.folder / f".{self.host.name}.lock", what=f"setting up or removing the registry on {self.host.name}", timeout=600)

    @property
    def kept(self) -> KeptRegistry:
        """What this machine keeps of it."""
        addresses = tuple(sorted({self.listen, *self.beside}, key=IPv4Address))
        return KeptRegistry(self.folder, self.name, addresses, self.virtual, self.push_port, self.now)

    def prepare(self, say: Say) -> None:
        """As `KeptRegistry.prepare`."""
        self.kept.prepare(say)

    def why_issue(self) -> str:
        """As `KeptRegistry.why_issue`."""
        return self.kept.why_issue()

    # -- on the host: what must be so before anything is changed

    def _refuse_another_site(self) -> None:
        there = digests(self.host, [HOST_CA]).get(HOST_CA)
        if there is not None and (not self.ca.exists() or there != HostFile("", self.ca).sha256):
            raise Conflict(
                f"{self.host.name} has the registry of another site: its CA is not the one in {self.ca}",
                resolution="if it is this site's, restore the site's state here; or remove the registry and set it up again, and bring the new CA to the hosts",
            )

    def _require_ports(self) -> None:
        ours = {state.get("MainPID", "0") for state in self.states().values()}
        for line in self._listeners():
            fields = line.split()
            where, _, port = fields[3].rpartition(":") if len(fields) > 3 else ("", "", "")
            wide = bool(self.virtual) and port == str(self.port)  # it is to listen everywhere
            taken = port in (str(self.port), str(self.push_port)) and (wide or where.split("%")[0] in (self.listen, "0.0.0.0", "*"))
            if taken and not ours & set(re.findall(r"pid=(\d+)", line)):
                raise self._port_taken(port, line)

    def _listeners(self) -> list[str]:
        """Lines of ss(8), one for each TCP socket that listens; none where there is no such program: then the service's journal tells."""
        return self.host.run(LISTENERS, timeout=30, check=False).stdout.splitlines()

    def _port_taken(self, port: str | int, details: str) -> Conflict:
        return Conflict(
            f"port {port} of {self.host.name} is taken by another program, and the site's registry needs it",
            details=details,
            resolution="stop that program, or choose another port for the registry",
        )

    def _require_space(self) -> None:
        content = f"{self.storage}/{CONTENT}"
        self.require_space(RESERVE_GIB if content in owners(self.host, [content]) else RELEASE_GIB)

    def require_space(self, gib: float, *, what: str = "the site's registry") -> None:
        """Raise DiskFull if fewer than `gib` GiB are free where the host keeps its content, or will."""
        place = Path(self.storage)
        while not (done := self.host.run(free_space_argv(place), timeout=30, check=False)).stdout.strip():
            if place == place.parent:
                raise CkpError(f"the free space below {self.storage} of {self.host.name} cannot be read", details=done.stderr)
            place = place.parent
        free = int(done.stdout.split()[-1]) / (1 << 30)
        if free < gib:
            raise DiskFull(
                f"there is too little space on {self.host.name} for {what}: {gib:.1f} GiB are needed below {self.storage}, and {free:.1f} GiB are free",
                resolution="free some space there, or choose a folder on a larger disk for the registry's content",
            )

    def _owner(self) -> str:
        """Who owns the storage; "" if it is not there."""
        access = owners(self.host, [self.storage]).get(self.storage)
        return access.split()[1] if access else ""

    def _require_own_storage(self) -> None:
        """It is about to be taken over, or deleted, with all that is in it."""
        if self._owner() in ("", USER):
            return
        entries = self.host.run(["ls", "-A", "--", self.storage], timeout=30).stdout.split("\n")
        if others := set(entries) - {"", CONTENT, "lost+found"}:
            raise Conflict(
                f"{self.storage} on {self.host.name} is not the folder of a registry's content",
                details=f"it has {', '.join(sorted(others)[:10])}",
                resolution="name an empty folder, or one that does not exist",
            )

    def _require_own_account(self) -> None:
        if self._account() not in (None, ACCOUNT):
            raise Conflict(f"{self.host.name} has an account {USER} that CKP has not made", resolution="rename or remove that account")

    # -- on the host: bringing it about

    def _account(self) -> str | None:
        """The comment of the host's account; None if there is no such account."""
        found = self.host.run(ACCOUNTS, timeout=30, check=False).stdout.strip().split(":")
        return found[4] if len(found) == 7 else None

    def _ensure_account(self, say: Say) -> None:
        if self._account() is None:
            options = ["--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin", "--comment", ACCOUNT]
            self.host.run(["useradd", *options, USER], timeout=60, what=f"creating the account {USER}")
            say(f"{self.host.name}: account {USER} created")

    def _ensure_storage(self, say: Say) -> None:
        access = owners(self.host, [self.storage]).get(self.storage)
        if access is None:
            self.host.run(["install", "-d", "-m", "0700", "-o", USER, "-g", USER, self.storage], timeout=30)
            say(f"{self.host.name}: {self.storage} created")
        elif access != f"700 {USER} {USER}":
            # chown changes a folder after what is in it: the folder's owner says that all is done.
            self.host.run(["chown", "-R", "--no-dereference", f"{USER}:{USER}", self.storage], timeout=600)
            self.host.run(["chmod", "0700", self.storage], timeout=30)
            say(f"{self.host.name}: {self.storage} given to {USER}")

    def files(self) -> list[HostFile]:
        """All of them, in the order in which they are written: the CA first, by which the host is known to be this site's."""
        texts = configurations("0.0.0.0" if self.virtual else self.listen, self.port, self.listen, self.push_port, self.storage, _TLS, _USERS)
        return [
            HostFile(HOST_CA, self.ca),
            HostFile(PROGRAM, self.program, mode=0o755, readers=INSTANCES),
            HostFile(_TLS, self.kept.tls, group=USER, readers=INSTANCES),
            HostFile(_USERS, self.kept.users, group=USER),  # is read again when it changes
            *(HostFile(f"{CONFIG}/{instance}.yml", text.encode(), readers=(instance,)) for instance, text in texts.items()),
            HostFile(TEMPLATE, unit_text().encode(), readers=INSTANCES),
            HostFile(f"{DROP_IN}/storage.conf", drop_in_text(self.storage).encode(), readers=(PUSH,)),
        ]

    def _ensure_files(self, say: Say) -> None:
        """Write what differs. A mark of each service that reads it comes before, and stays until that service was restarted."""
        changed = differing(self.host, self.files())
        marked = digests(self.host, [mark_of(instance) for instance in INSTANCES])
        for instance in INSTANCES:
            if mark_of(instance) not in marked and any(instance in file.readers for file in changed):
                self.host.push(b"", mark_of(instance), mode=0o600)
        for file in changed:
            bring(self.host, file)
            say(f"{self.host.name}: {file.target} written")

    def _ensure_services(self, say: Say) -> None:
        marked = digests(self.host, [mark_of(instance) for instance in INSTANCES])
        if marked:
            self.host.run(["systemctl", "daemon-reload"], timeout=60)
        states = self.states()
        if any(state.get("UnitFileState") != "enabled" for state in states.values()):
            self.host.run(["systemctl", "enable", *map(unit_of, INSTANCES)], timeout=60)
        for instance in INSTANCES:
            restart = mark_of(instance) in marked
            if restart or states[instance].get("ActiveState") != "active":
                self._start(instance, "restart" if restart else "start")
                say(f"{self.host.name}: {unit_of(instance)} {'restarted' if restart else 'started'}")
            self._wait(instance)
            if restart:
                self.host.run(["rm", "-f", "--", mark_of(instance)], timeout=30)
        with closing(self.client()) as client:
            client.digest(f"{PREFIX}/none", "none")  # the host takes the password

    def _start(self, instance: str, verb: str) -> None:
        done = self.host.run(["systemctl", verb, unit_of(instance)], timeout=DRAIN_SECONDS + 60, check=False)
        if done.code != 0:
            raise self._failed(instance, done.stderr)

    def _wait(self, instance: str) -> None:
        """Until it answers by TLS with a certificate of the CA."""
        endpoint = self._endpoint(instance)

        def answers(client: Registry) -> bool:
            if client.alive():
                return True
            state = self.states()[instance]
            if state.get("ActiveState") == "failed" or state.get("SubState") == "auto-restart":
                raise self._failed(instance, "")
            return False

        with closing(self.connect(endpoint, self.ca, None)) as client:
            wait_until(
                lambda: answers(client),
                what=f"the registry on {self.host.name} answers at {endpoint}",
                timeout=START_TIMEOUT,
                every=0.3,
                reason=lambda: self._journal(unit_of(instance)),
                resolution=f"its service runs; see whether a firewall keeps this machine from {endpoint}",
            )

    def _endpoint(self, instance: str) -> str:
        return self.endpoint if instance == PUSH else f"{self.listen}:{self.port}"

    def silent(self) -> list[str]:
        """Those of its two endpoints that do not answer now, by TLS with a certificate of the CA that this machine has."""
        found = []
        for endpoint in map(self._endpoint, INSTANCES):
            with closing(self.connect(endpoint, self.ca, None)) as client:
                found += [] if client.alive() else [endpoint]
        return found

    def states(self) -> dict[str, dict[str, str]]:
        """ActiveState, SubState, UnitFileState and MainPID of each service, as systemd has them."""
        shown = self.host.run(STATES, timeout=30, check=False).stdout
        blocks = [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in shown.split("\n\n")]  # as the units were named
        return {instance: blocks[number] if number < len(blocks) else {} for number, instance in enumerate(INSTANCES)}

    def _journal(self, *units: str) -> str:
        selection = [word for unit in units for word in ("-u", unit)]
        return self.host.run(["journalctl", *selection, "-n", "15", "--no-pager", "-o", "cat"], timeout=30, check=False).stdout

    def _failed(self, instance: str, said: str) -> CkpError:
        """Why a service does not stay up, by the end of its journal."""
        journal = self._journal(unit_of(instance))
        details = f"{said.rstrip()}\n{journal}".strip()
        if "address already in use" in journal:
            return self._port_taken(self.push_port if instance == PUSH else self.port, details)
        brief = f"{unit_of(instance)} on {self.host.name} does not stay up"
        if says_full(details):
            return DiskFull(f"{brief}: the disk is full", details=details, resolution=f"free some space on {self.host.name}")
        return CkpError(
            brief, details=details, resolution=f"correct what its journal names, and run the same command again (journalctl -u {unit_of(instance)})"
        )


def free_space_argv(folder: Path) -> list[str]:
    """What tells how many bytes are free there; nothing if there is no such folder."""
    return ["df", "--output=avail", "--block-size=1", "--", str(folder)]


def mark_of(instance: str) -> str:
    """The file that says that a service must be restarted: something that it reads has been written, or was about to be."""
    return f"{CONFIG}/{instance}.restart"
