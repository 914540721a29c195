"""Enrolling a site's workers: agent package, pre-shared key, request, approval, host group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ckp.clients.compass import Session
from ckp.kits.errors import CkpError, Conflict
from ckp.kits.retry import wait_until
from ckp.rules.joining import SUDO
from ckp.site.install import Site
from ckp.site.inventory import SiteHost

CONNECT_TIMEOUT = 180.0
JOIN_TIMEOUT = 420.0
"""Seconds for the line on one machine: downloads, the package manager, and a minute in which the hub gets the request."""


@dataclass
class Enrolment:
    """Brings the site's workers into the session's project; what is done already is left alone."""

    site: Site
    session: Session

    def run(self) -> None:
        """Agents, approvals, group.

        Raises:
            TimedOut: requests do not arrive, or agents do not connect; the ends of their journals are in the details.
        """
        waiting = [host for host in self.site.worker_hosts if not self._identified(host)]
        for host in self.site.worker_hosts:
            if host in waiting:
                self.site.configure_host(host)
            else:
                self.site.install_agent(host)
        if waiting:
            line, key = self.line(), self.key()
            for host in waiting:
                self._join(host, line, key)
            self._approve(waiting)
        names = self._connected()
        self._group(names)

    def _identified(self, host: SiteHost) -> bool:
        return host.run(["test", "-s", "/var/lib/ckp-agent/cert.pem"], timeout=10, check=False).code == 0

    def key(self) -> str:
        """The project's pre-shared key. Compass shows it once, so a lost one is replaced; hosts that are enrolled need none."""
        answer: dict[str, Any] = self.session.get("/host-psk")
        return str(answer.get("key") or self.session.call("POST", "/host-psk/reset")["key"])

    def line(self) -> str:
        """The line by which machines enrol in the project, for root; it asks for the key."""
        return str(self.session.get("/host-join")["command"]).removeprefix(SUDO)

    def _join(self, host: SiteHost, line: str, key: str) -> None:
        """As a person does it on the machine, who has the line and the key."""
        host.run(["sh", "-c", line], timeout=JOIN_TIMEOUT, stdin=f"{key}\n", what="joining")
        self.site.say(f"{host.name}: agent verified, installed and started")

    def _approve(self, hosts: Sequence[SiteHost]) -> None:
        """Only requests of the site's own hosts: their machine-id is compared with what each host itself has."""
        ours = {host.run(["cat", "/etc/machine-id"], timeout=10).stdout.strip(): host.name for host in hosts}
        approved: set[str] = set()

        def all_in() -> bool:
            for request in self.session.get("/host-requests", state="pending")["items"]:
                if request["machineId"] in ours:
                    self.session.call("POST", f"/host-requests/{request['id']}/approve")
                    self.site.say(f"{ours[request['machineId']]}: request approved")
            approved.update(item["machineId"] for item in self.session.get("/host-requests", state="approved")["items"])
            return set(ours) <= approved

        wait_until(all_in, what="the workers' requests arrive", timeout=CONNECT_TIMEOUT, every=1, reason=lambda: self._journals(hosts))

    def _connected(self) -> list[str]:
        addresses = {host.address for host in self.site.worker_hosts}
        found: dict[str, str] = {}

        def all_connected() -> bool:
            """Connected, and either in a cluster already or reported clean: before its first report a host cannot be claimed."""
            hosts = [item for item in self.session.get("/hosts")["items"] if item["address"] in addresses]
            found.clear()
            found.update({item["name"]: item["address"] for item in hosts if item["connected"] and (item["free"] or item["cluster"])})
            return set(found.values()) >= addresses

        wait_until(
            all_connected,
            what="the workers' agents connect",
            timeout=CONNECT_TIMEOUT,
            every=1,
            reason=lambda: self._journals(self.site.worker_hosts),
            resolution=f"look at an agent: {self.site.inventory.shell.format(host=self.site.worker_hosts[0].name)} ckp-agent status",
        )
        for name, address in sorted(found.items()):
            self.site.say(f"{name} ({address}): connected over mTLS")
        return sorted(found)

    def _journals(self, hosts: Sequence[SiteHost]) -> str:
        lines = []
        for host in hosts:
            tail = host.run(["journalctl", "-u", "ckp-agent", "-n", "5", "--no-pager", "-o", "cat"], timeout=20, check=False).stdout
            lines += [f"{host.name}: {line}" for line in tail.splitlines()]
        return "\n".join(lines)

    def ensure_group(self) -> None:
        """The site's host group, made if it is not there."""
        group = self.site.inventory.group
        try:
            self.session.call("POST", "/host-groups", body={"name": group.name, "description": group.description})
        except Conflict:
            pass  # made by an earlier run

    def _group(self, names: list[str]) -> None:
        group = self.site.inventory.group
        self.ensure_group()
        members = set(self.session.get(f"/host-groups/{group.name}")["hosts"])
        if missing := [name for name in names if name not in members]:
            self.session.call("POST", f"/host-groups/{group.name}/members", body={"hosts": missing})
        if not names:
            raise CkpError("there are no workers to put into the host group")
