"""`ckp-agent standalone address`: the service that holds the cluster's virtual address on one of its masters (ckp-virtual-address.service).

The masters elect the holder by a Lease, each through its own API server: a holder that can't write to the cluster has no business with its address. The
rules are in ckp.standalone.address.lease. The kernel removes the address if this process stops to renew it, so a process that is killed or gets no processor
does not keep it either.

While the first master is made there is no API server to elect by, but kubeadm already needs the address. Then a file (BOOTSTRAP) says: hold it, without a
lease. Only `standalone install` writes it, below /run, before another master can exist.
"""

from __future__ import annotations

import json
import os
import signal
import ssl
import time
from dataclasses import asdict, dataclass
from typing import Any, Callable, Optional, Protocol

from ckp.hostkit.errors import AgentError, InvalidInput
from ckp.hostkit.files import read_text
from ckp.hostkit.logs import log
from ckp.standalone.address.lease import NEVER, RENEW, WAIT, Election, Record, Timing
from ckp.standalone.address.network import Addresses, Arp, Link, link_of, taken_by
from ckp.standalone.api import Answer, Server, Unreachable, trust

PORT = 6443
NAMESPACE, LEASE = "kube-system", "ckp-virtual-address"
LEASES = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"
FOLDER = "/etc/kubernetes/ckp-virtual-address"
SETTINGS, CERTIFICATE, KEY = f"{FOLDER}/settings.json", f"{FOLDER}/client.crt", f"{FOLDER}/client.key"
CA = "/etc/kubernetes/pki/ca.crt"
BOOTSTRAP = "/run/ckp-standalone/virtual-address-bootstrap"
BOOTSTRAP_SECONDS = 10
ANNOUNCEMENTS, ANNOUNCE_SECONDS = 5, 3.0
"""So many announcements follow each other after a take-over; then there is one every few seconds."""


class Unavailable(Exception):
    """The lease can't be read or written now. The text says why."""


class Conflict(Unavailable):
    """Another host has written the lease since it was read."""


class Stopped(BaseException):
    """SIGTERM."""


@dataclass(frozen=True)
class Settings:
    """What the service needs to know.

    Args:
        address: the virtual one.
        own: the host's own, at which its API server listens.
    """

    address: str
    own: str
    node: str

    def to_json(self) -> str:
        """The content of SETTINGS."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def read(cls, path: str = SETTINGS) -> Settings:
        """Read SETTINGS. Raises InvalidInput."""
        try:
            return cls(**json.loads(read_text(path)))
        except (ValueError, TypeError):
            raise InvalidInput(f"{path} is not there or malformed", resolution="`ckp-agent standalone install --virtual-address` and `join` write it") from None


class Store(Protocol):
    """The Lease. Each method takes the seconds that it may wait, and raises Unavailable."""

    def check_ready(self, timeout: float) -> None:
        """The API server says that it is ready."""

    def get(self, timeout: float) -> Optional[Record]:
        """The Lease; None if there is none."""

    def put(self, me: str, before: Optional[Record], timeout: float) -> Record:
        """Make me its holder, or renew; only if it still is as `before`. `me` may be "", to give it up. Raises Conflict."""


class Nic(Protocol):
    """The host's link. Each method raises OSError or AgentError."""

    def hold(self, seconds: int) -> None:
        """Have the address for `seconds` from now, and announce it."""

    def drop(self) -> None:
        """Not have it."""

    def others(self) -> str:
        """The MAC of another host that answers for it; "" if none does."""


class ApiStore:
    """The Lease at this host's own API server."""

    def __init__(self, settings: Settings, timing: Timing) -> None:
        self._settings, self._timing = settings, timing
        self._server: Optional[Server] = None
        self._acquired = ""

    def _request(self, method: str, path: str, timeout: float, body: Any = None) -> Answer:
        try:
            if self._server is None:
                self._server = Server(self._settings.own, PORT, trust(CA, certificate=CERTIFICATE, key=KEY))
            return self._server.request(method, path, body, timeout=timeout)
        except Unreachable as error:
            raise Unavailable(f"this host's API server does not answer: {error}") from None
        except (OSError, ssl.SSLError) as error:
            raise Unavailable(f"the certificates below {FOLDER} can't be used: {error}") from None

    def check_ready(self, timeout: float) -> None:
        answer = self._request("GET", "/readyz", timeout)
        if answer.status != 200:
            raise Unavailable(f"this host's API server is not ready (status {answer.status})")

    def get(self, timeout: float) -> Optional[Record]:
        answer = self._request("GET", f"{LEASES}/{LEASE}", timeout)
        if answer.status == 404:
            return None
        return self._record(answer)

    def put(self, me: str, before: Optional[Record], timeout: float) -> Record:
        now = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime())  # for people: nothing is decided by it
        renewal = before is not None and before.holder == me
        self._acquired = self._acquired if renewal and self._acquired else now
        answer = self._request("PUT", f"{LEASES}/{LEASE}", timeout, lease_object(me, before, self._timing, self._acquired, now))
        if answer.status == 409:
            raise Conflict("another host has written the lease")
        return self._record(answer)

    @staticmethod
    def _record(answer: Answer) -> Record:
        data = answer.json()
        if answer.status not in (200, 201) or not isinstance(data, dict):
            raise Unavailable(f"the Lease {NAMESPACE}/{LEASE}: {answer.message()}")
        spec = data.get("spec") or {}
        version = str(data["metadata"]["resourceVersion"])
        return Record(spec.get("holderIdentity") or "", version, float(spec.get("leaseDurationSeconds") or 0), int(spec.get("leaseTransitions") or 0))


def lease_object(me: str, before: Optional[Record], timing: Timing, acquired: str, now: str) -> dict[str, Any]:
    """The Lease, for a PUT that creates it if there is none and replaces it only as `before`. Without a holder (`me` is "") it is free at once."""
    metadata = {"name": LEASE, "namespace": NAMESPACE, **({"resourceVersion": before.version} if before else {})}
    spec: dict[str, Any] = {"leaseDurationSeconds": int(timing.duration) if me else 1, "renewTime": now, "acquireTime": acquired}
    spec["leaseTransitions"] = (before.transitions if before else 0) + (1 if me and before and before.holder != me else 0)
    if me:
        spec["holderIdentity"] = me
    return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}


class HostNic:
    """The link of this host that has its own address."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings, self._clock = settings, clock
        self._addresses = Addresses()
        self._known: Optional[Link] = None
        self._arp: Optional[Arp] = None
        self._announced = 0
        self._announced_at = NEVER

    def _link(self) -> Link:
        if self._known is None:
            found = link_of(self._settings.own)
            if found is None:
                raise OSError(f"no link of this host has its own address {self._settings.own}")
            self._known = found
        return self._known

    def hold(self, seconds: int) -> None:
        try:
            link = self._link()
            self._addresses.hold(link, self._settings.address, seconds)
            now = self._clock()
            if self._announced >= ANNOUNCEMENTS and now - self._announced_at < ANNOUNCE_SECONDS:
                return
            self._arp = self._arp or Arp(link.name)
            self._arp.announce(self._settings.address)
            self._announced, self._announced_at = self._announced + 1, now
        except OSError:
            self._forget()
            raise

    def drop(self) -> None:
        self._announced = 0
        try:
            self._addresses.drop(self._link(), self._settings.address)
        except OSError:
            self._forget()
            raise

    def others(self) -> str:
        return taken_by(self._link(), self._settings.address)

    def _forget(self) -> None:
        self._known, self._announced = None, 0
        if self._arp is not None:
            self._arp.close()
            self._arp = None


class AddressService:
    """`tick` does all that is to be done now, and returns the seconds until the next."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        nic: Nic,
        *,
        bootstrap: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
        timing: Timing = Timing(),
    ) -> None:
        self.settings = settings
        self.election = Election(settings.node, timing)
        self._store, self._nic, self._bootstrap, self._clock = store, nic, bootstrap, clock
        self._bootstrapping = False
        self._has = False
        self._idle_until = NEVER
        self._noted = ""

    def tick(self) -> float:
        """One look. Raises nothing but Stopped."""
        begun = self._clock()
        try:
            self._look()
        except (OSError, AgentError) as error:  # of the link; those of the API server are Unavailable
            self._fail(str(error))
        return self.election.pause(self._clock(), begun)

    def _look(self) -> None:
        now = self._clock()
        if self._bootstrap():
            self._hold_without_lease(now)
            return
        self._bootstrapping = False
        if not self.election.holds(now):
            self._drop()
        if now < self._idle_until:
            return
        try:
            self._elect()
            self._note("")
        except Unavailable as error:
            self._note(str(error))
        now = self._clock()
        if not self.election.holds(now):
            self._drop()
        elif seconds := self.election.lifetime(now):
            self._hold(seconds)

    def _elect(self) -> None:
        election, store = self.election, self._store
        store.check_ready(election.patience(self._clock()))
        if election.wish(self._clock()) == RENEW:
            try:
                self._write()
                return
            except Conflict:
                pass  # a renewal whose answer was lost, or another host; the record says which
        record = store.get(election.patience(self._clock()))
        election.observe(record, self._clock())
        if election.wish(self._clock()) != WAIT:
            self._write()

    def _write(self) -> None:
        sent = self._clock()
        record = self._store.put(self.election.me, self.election.record, self.election.patience(sent))
        self.election.won(record, sent)

    def _hold_without_lease(self, now: float) -> None:
        if not self._bootstrapping and (other := self._nic.others()):
            self._note(f"{self.settings.address} is not taken: the host with the hardware address {other} has it")
            return
        self._bootstrapping = True
        self.election.held_until = now + self.election.timing.renew_deadline  # until the lease takes over
        self._hold(BOOTSTRAP_SECONDS)

    def _hold(self, seconds: int) -> None:
        self._nic.hold(seconds)
        if not self._has:
            log(f"this host has {self.settings.address}" + (", until its first API server runs" if self._bootstrapping else ""))
        self._has = True

    def _drop(self) -> None:
        if self._has:
            log(f"this host gives up {self.settings.address}")
        self._has = False
        self._nic.drop()

    def _fail(self, text: str) -> None:
        """The address can't be added or removed here. Another host should have it: give the lease up, and don't ask for it for a while."""
        self._note(f"{self.settings.address} can't be held by this host: {text}")
        if not self.election.holds(self._clock()) or self._bootstrapping:
            return
        self._idle_until = self._clock() + 2 * self.election.timing.duration
        self.election.held_until = NEVER
        self.stop()

    def _release(self) -> None:
        """Give the lease up, if it is ours. The address is removed."""
        record, self.election.held_until = self.election.record, NEVER
        if record is None or record.holder != self.settings.node:
            return
        try:
            self.election.observe(self._store.put("", record, 1.0), self._clock())
        except Unavailable as error:
            log(f"the lease is not given up, and expires: {error}")

    def stop(self) -> None:
        """Remove the address first, then give the lease up, so that another host can take both at once."""
        try:
            self._drop()
        except (OSError, AgentError) as error:
            log(f"{self.settings.address} could not be removed, the kernel does it within {self.election.timing.duration:.0f} s: {error}")
            return
        self._release()

    def _note(self, text: str) -> None:
        if text and text != self._noted:
            log(text)
        self._noted = text


def serve(settings_file: str) -> None:
    """Run the service until SIGTERM. Raises InvalidInput."""
    settings = Settings.read(settings_file)
    timing = Timing()
    service = AddressService(settings, ApiStore(settings, timing), HostNic(settings), bootstrap=lambda: os.path.exists(BOOTSTRAP), timing=timing)

    def end(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise Stopped

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    try:
        while True:
            time.sleep(service.tick())
    except Stopped:
        pass
    finally:
        service.stop()
