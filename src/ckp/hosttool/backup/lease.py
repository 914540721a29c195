"""One management host at a time makes a backup: it holds a Lease in the management cluster meanwhile.

The holder renews it; another host takes it over once it has seen it unchanged for the whole of its time, by its own clock: what clocks differ by does no
harm. What it saw, and when, is kept between runs, since each run lasts for moments. That a host takes over late is fine, as backups are hours apart.
"""

from __future__ import annotations

import json
import threading
import time
from datetime import datetime, timezone
from typing import Any, Callable, Dict, Optional, Tuple

from ckp.hostkit.errors import AgentError
from ckp.hostkit.files import atomic_write, read_text

SECONDS = 300
"""How long a Lease lasts that nobody renews."""
RENEW_SECONDS = 60.0
Kubectl = Callable[..., str]
"""kubectl in the namespace of CKP: its arguments, and `stdin`; what it prints. Raises AgentError."""
Clock = Callable[[], float]


class Lost(AgentError):
    """Another host has it by now."""

    default_reason = "LeaseLost"


class Lease:
    """A Lease.

    Args:
        holder: this host's name.
        seen: the file with what was seen of another's last, and when.
        boot: tells this boot of the host from others: its monotonic clock begins again.
    """

    def __init__(self, kubectl: Kubectl, name: str, holder: str, seen: str, boot: str, clock: Clock = time.monotonic) -> None:
        self._kubectl, self._name, self._holder, self._seen, self._boot, self._clock = kubectl, name, holder, seen, boot, clock
        self._version = ""
        self._lost: Optional[str] = None
        self._over = threading.Event()

    def acquire(self) -> str:
        """Take it; "" if that is done, otherwise the host that has it.

        Raises:
            AgentError: the management cluster does not answer.
        """
        found = self._read()
        if found is None:
            return self._write(None)
        meta, spec = found["metadata"], found.get("spec") or {}
        other = str(spec.get("holderIdentity") or "")
        if other in ("", self._holder) or self._is_over(str(meta["resourceVersion"])):
            return self._write(found)
        return other

    def keep(self) -> None:
        """Renew it in the background until `release`."""
        threading.Thread(target=self._renewing, daemon=True).start()

    def require(self) -> None:
        """Raise Lost if another host has it by now."""
        if self._lost is not None:
            raise Lost(f"{self._lost} has taken over the backup, and this host has given it up", resolution="nothing: that host makes it")

    def release(self) -> None:
        """Give it back. That can't be done without the cluster; it then ends by itself."""
        self._over.set()
        try:
            found = self._read()
            if found is not None and (found.get("spec") or {}).get("holderIdentity") == self._holder:
                self._replace({**found, "spec": {**found["spec"], "holderIdentity": ""}})
        except AgentError:
            pass

    # -- how

    def _read(self) -> Optional[Dict[str, Any]]:
        text = self._kubectl("get", "lease", self._name, "--ignore-not-found", "--output=json")
        return json.loads(text) if text.strip() else None

    def _is_over(self, version: str) -> bool:
        """Whether another's Lease was seen as it is now a whole lifetime ago."""
        now = self._clock()
        since = _parse(read_text(self._seen), self._boot, version)
        if since is None or since > now:
            atomic_write(self._seen, json.dumps({"boot": self._boot, "version": version, "at": now}), mode=0o600)
            return False
        return now - since > SECONDS

    def _write(self, found: Optional[Dict[str, Any]]) -> str:
        """Make it ours: of several who try at once, the API server lets one."""
        spec = {"holderIdentity": self._holder, "leaseDurationSeconds": SECONDS, "renewTime": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")}
        lease: Dict[str, Any] = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": self._name}, "spec": spec}
        try:
            if found is None:
                self._kubectl("create", "-f", "-", stdin=json.dumps(lease))
            else:
                lease["metadata"]["resourceVersion"] = found["metadata"]["resourceVersion"]
                self._replace(lease)
        except AgentError:
            now = self._read()  # raises if the cluster is what failed
            other = str(((now or {}).get("spec") or {}).get("holderIdentity") or "")
            if other and other != self._holder:
                return other
            raise
        return ""

    def _replace(self, lease: Dict[str, Any]) -> None:
        self._kubectl("replace", "-f", "-", stdin=json.dumps(lease))

    def _renewing(self) -> None:
        while not self._over.wait(RENEW_SECONDS):
            self.renew()

    def renew(self) -> None:
        """Renew it once. While the cluster does not answer, nobody else can take it."""
        try:
            found = self._read()
            other = str(((found or {}).get("spec") or {}).get("holderIdentity") or "")
            if found is not None and other == self._holder:
                other = self._write(found)
        except AgentError:
            return
        if other != self._holder and other:
            self._lost = other


def _parse(text: str, boot: str, version: str) -> Optional[float]:
    """When this version was first seen in this boot; None if it was not."""
    try:
        data = json.loads(text)
        same: Tuple[str, str] = (data["boot"], data["version"])
        return float(data["at"]) if same == (boot, version) else None
    except (ValueError, KeyError, TypeError):
        return None
