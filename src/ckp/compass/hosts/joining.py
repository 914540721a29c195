"""How a machine is told where this site's hub is, and which CA to trust."""

from __future__ import annotations

import asyncio
from pathlib import Path

from ckp.api.compass.enrolment import HostJoinView
from ckp.compass.errors import Unavailable
from ckp.compass.identity import ProjectRef
from ckp.kits.errors import NotFound
from ckp.rules import joining


class Joining:
    """The use case of the line by which machines enrol.

    Args:
        hub: the hub's address or name, as hosts reach it; empty if this Compass was not told.
        ca: PEM file of the CA that the hub's certificate chains to.
    """

    def __init__(self, hub: str, ca: Path) -> None:
        self._hub = hub
        self._ca = ca

    async def get(self, project: ProjectRef, proxy: str, no_proxy: str) -> HostJoinView:
        """The line for machines of a project. It holds no secret: the key that it asks for is the project's pre-shared key.

        Args:
            proxy: `http://HOST:PORT` by which they reach the hub; empty for none.
            no_proxy: what they reach without it.

        Raises:
            InvalidInput: the proxy is not one.
            NotFound: this Compass does not know the hub's address.
            Unavailable: the CA can't be read.
        """
        if not self._hub:
            raise NotFound("this Compass does not know the hub's address", resolution="set COMPASS_HUB_ADDRESS, or enrol by hand as the guide says")
        through = joining.Proxy(proxy, no_proxy) if proxy else None
        try:
            pem = await asyncio.to_thread(self._ca.read_bytes)
        except OSError as error:
            raise Unavailable(f"the site's CA can't be read: {error.strerror}", resolution="try again; if it stays so, see Compass' log") from None
        return HostJoinView(
            hub=f"https://{self._hub}:{joining.ENROLMENT_PORT}",
            channel=f"wss://{self._hub}:{joining.CHANNEL_PORT}/v1/agent",
            ca=joining.anchor(pem).decode(),
            ca_sha256=joining.fingerprint(pem),
            command=joining.line(self._hub, pem, project.domain, project.project, through),
        )
