"""Which releases clusters can be made of. Compass needs little of the catalog: their names, and what belongs to each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import structlog

from ckp.api import platform
from ckp.kits.errors import CkpError, NotFound

log = structlog.get_logger("compass.releases")


class Releases(Protocol):
    """The catalog, as far as Compass needs it."""

    def names(self) -> list[str]:
        """All releases, oldest first."""
        ...

    def get(self, name: str) -> Mapping[str, Any]:
        """One release: at least `cni`, a mapping of CNI name to its version. NotFound names the known ones."""
        ...

    def agents(self) -> list[str]:
        """Versions of the agent that hosts can be given, the newest last."""
        ...

    def host_addresses(self) -> Sequence[str]:
        """Addresses of the management hosts that clusters' APIs may have; none: a load balancer gives them."""
        ...


class ReleaseTable:
    """Releases from a mapping of name to `{"cni": {name: version}, ...}`."""

    def __init__(self, table: Mapping[str, Mapping[str, Any]], agents: Sequence[str] = (), host_addresses: Sequence[str] = ()) -> None:
        self._table = dict(table)
        self._agents = list(agents)
        self._host_addresses = tuple(host_addresses)

    def host_addresses(self) -> Sequence[str]:
        return self._host_addresses

    def agents(self) -> list[str]:
        return list(self._agents)

    def names(self) -> list[str]:
        return sorted(self._table, key=platform.release_order)

    def get(self, name: str) -> Mapping[str, Any]:
        try:
            return self._table[name]
        except KeyError:
            raise NotFound(f"version: {name!r} is not in the catalog", resolution=f"take one of: {', '.join(self.names()) or 'no release is known'}") from None


class ReleaseFile:
    """The releases that `ckp dist` has pushed, from their file (ckp.api.platform). Read again when it changes: a new release needs no restart."""

    def __init__(self, path: Path) -> None:
        """CkpError if it cannot be read now; later, an unreadable file leaves the releases that were read before."""
        self._path = path
        self._stamp = 0
        self._table = ReleaseTable({})
        self._load()

    def names(self) -> list[str]:
        return self._current().names()

    def get(self, name: str) -> Mapping[str, Any]:
        return self._current().get(name)

    def agents(self) -> list[str]:
        return self._current().agents()

    def host_addresses(self) -> Sequence[str]:
        return self._current().host_addresses()

    def _current(self) -> ReleaseTable:
        try:
            if self._path.stat().st_mtime_ns != self._stamp:
                self._load()
        except (CkpError, OSError) as error:
            log.warning("the releases cannot be reloaded", error=str(error))
        return self._table

    def _load(self) -> None:
        try:
            stamp = self._path.stat().st_mtime_ns
            known = platform.Releases.load(self._path)
        except (OSError, ValueError) as error:
            raise CkpError(f"the releases could not be read from {self._path}: {error}", resolution="mount the ConfigMap ckp-releases there") from None
        self._stamp = stamp
        self._table = ReleaseTable(
            {name: {"stamp": release.stamp, "cni": release.cni, "os": sorted(release.bundles)} for name, release in known.releases.items()},
            list(known.agents),
            known.load_balancer_addresses,
        )
