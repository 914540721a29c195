"""What a node takes over while it is one, without joining again: settings that its host or its platform may change at any time.

Level-triggered: each pass compares what is with what should be. What needs a restart of the kubelet is done only if two passes in a row want the same,
so that what lasts for seconds (a link that is down) restarts nothing. A restart that is due is journaled before the files change, so it is not forgotten.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Callable, Sequence

from ckp.agent.fetch.images import pull_image
from ckp.agent.journal import Journal
from ckp.agent.messages import Membership
from ckp.agent.node import join
from ckp.agent.system import facts, kubelet_flags, prepare, resolver, units
from ckp.hostkit.errors import AgentError
from ckp.hostkit.files import read_text
from ckp.hostkit.processes import have, run

KUBELET, CONTAINERD = "kubelet", "containerd"
RESTARTS = "restarts"
"""The journal's note of the services to restart."""
STALE_PODS = "stale_pods"
"""The journal's note that pods may have what old flags of the kubelet said: {"since": seconds since 1970, "of": [flags]}."""
NODE_UPDATE_SECONDS = 30.0
"""The kubelet has written its new address into its Node after this time (nodeStatusUpdateFrequency is 10 s)."""
PAUSE_SECONDS = 60.0
"""Time to pull the pause image, of less than a MiB."""
LASTING_SECONDS = 45.0
"""Only what is wanted for this long restarts the kubelet; there is a pass every minute."""
NODE_IP, NODE_NAME, RESOLV_CONF = "--node-ip", "--hostname-override", "--resolv-conf"
TAKEN_AT_START = (NODE_IP, RESOLV_CONF)
"""Flags for whose change the kubelet is restarted. Its name is not among them: a kubelet that has joined runs under that name."""


@dataclass(frozen=True)
class Settled:
    """What a pass did, for the journal; and what is not as it should be: the first of it, or something that failed (`failed`) before something that waits."""

    done: str = ""
    reason: str = ""
    message: str = ""
    failed: bool = False

    def and_then(self, other: Settled) -> Settled:
        """Both as one."""
        done = "; ".join(part for part in (self.done, other.done) if part)
        problem = other if other.reason and (not self.reason or (other.failed and not self.failed)) else self
        return Settled(done, problem.reason, problem.message, problem.failed)


class Settings:
    """Keeps the settings of one node up to date. `apply` is one pass."""

    def __init__(self, journal: Journal, hub_host: str, *, clock: Callable[[], float] = time.time) -> None:
        self.journal = journal
        self.hub_host = hub_host
        self.clock = clock
        self._wanted: dict[str, str] = {}  # the flags that the last pass wanted and did not set yet
        self._wanted_since = 0.0

    def apply(self, membership: Membership) -> Settled:
        """One pass. Idempotent. What can't be set holds up nothing else, and is tried again in the next pass."""
        parts = (self._restart, self._stop_stale_pods, self._system, self._registry, self._kubelet, self._sandbox_image, self._restart)
        settled = Settled()
        for part in parts:
            try:
                found = part(membership)
            except AgentError as error:
                found = Settled("", error.reason, error.sentence(), failed=True)
            settled = settled.and_then(found)
        return settled

    # -- the operating system ----------------------------------------------------------------------------------------

    def _system(self, _membership: Membership) -> Settled:
        """Forwarding, which another file of sysctls may turn off at the host's next start; and the umask of services, also on nodes of earlier agents."""
        done = [f"sysctl: {name}" for name in prepare.keep_sysctls(self.journal)]
        return Settled("; ".join([*done, *(["systemd: drop-ins for this node's services"] if units.write(self.journal) else [])]))

    # -- images ------------------------------------------------------------------------------------------------------

    def _registry(self, membership: Membership) -> Settled:
        """What containerd knows of the registry. An address that is no longer used stays as well: images of running pods may come from there."""
        changed = prepare.registry_access(self.journal, membership.registry, membership.registry_ca)
        done = Settled(f"containerd: address and CA of the registry {membership.registry}") if changed else Settled()
        config = read_text(prepare.CONTAINERD_CONFIG)
        wanted = prepare.with_registry_login(config, prepare.registry_host(membership.registry)) if config else config
        if wanted == config:
            return done
        self._plan_restart(CONTAINERD)
        self.journal.replace_file(prepare.CONTAINERD_CONFIG, wanted, mode=prepare.mode_of(wanted))
        return done.and_then(Settled(f"containerd: login of the registry {membership.registry}"))

    def _sandbox_image(self, membership: Membership) -> Settled:
        """The pause image, without which no pod starts: it is pulled before containerd is told of it."""
        config = read_text(prepare.CONTAINERD_CONFIG)
        wanted = prepare.with_sandbox_image(config, membership.sandbox_image)
        if wanted == config:
            return Settled()
        pull_image(membership.sandbox_image, PAUSE_SECONDS)
        self._plan_restart(CONTAINERD)
        self.journal.replace_file(prepare.CONTAINERD_CONFIG, wanted, mode=prepare.mode_of(wanted))
        return Settled(f"containerd: pause image {membership.sandbox_image}")

    # -- the kubelet's flags -----------------------------------------------------------------------------------------

    def _kubelet(self, membership: Membership) -> Settled:
        path = kubelet_flags.file()
        text = read_text(path)
        now = kubelet_flags.flags(text)
        node_ip = self._node_ip(now.get(NODE_IP, ""))
        given = "resolvConf" in prepare.overrides().get("kubelet", {})
        wanted = {NODE_NAME: membership.node_name, NODE_IP: node_ip, RESOLV_CONF: resolver.wanted(now.get(RESOLV_CONF, ""), given)}
        differs = [f"{flag}={value}" + (f" (was {now[flag]})" if flag in now else "") for flag, value in wanted.items() if now.get(flag, "") != value]
        takes_restart = any(now.get(flag, "") != wanted.get(flag, "") for flag in TAKEN_AT_START)
        if takes_restart and not self._lasts(wanted):
            return Settled("", "SettingsChanging", f"the kubelet is restarted with {', '.join(differs)}, if that is still so in a minute")
        self._wanted = {}
        done = Settled()
        if wanted[RESOLV_CONF] == resolver.OWN and resolver.write(self.journal, node_ip.partition(",")[0]):
            done = Settled(f"{resolver.OWN}: name servers for pods")
        if not differs:
            return done
        if takes_restart:
            self._plan_restart(KUBELET)
            self.journal.note(STALE_PODS, {"since": self.clock(), "of": [flag for flag in TAKEN_AT_START if now.get(flag, "") != wanted[flag]]})
        self.journal.replace_file(path, kubelet_flags.changed(text, wanted))
        return done.and_then(Settled(f"kubelet: {', '.join(differs)}"))

    def _lasts(self, wanted: dict[str, str]) -> bool:
        """Whether an earlier pass, at least LASTING_SECONDS ago, wanted the same."""
        if self._wanted != wanted:
            self._wanted, self._wanted_since = wanted, self.clock()
        return abs(self.clock() - self._wanted_since) >= LASTING_SECONDS

    def _node_ip(self, current: str) -> str:
        """The node's address. A person may have given it a second one, of IPv6: both are kept as long as the first is."""
        first = current.partition(",")[0]
        address = facts.default_address(self.hub_host, first)
        return current if address == first else address

    # -- restarts ----------------------------------------------------------------------------------------------------

    def _plan_restart(self, service: str) -> None:
        self.journal.note(RESTARTS, sorted({*self.journal.notes.get(RESTARTS, []), service}))

    def _restart(self, _membership: Membership) -> Settled:
        """Restart what is noted. Containers keep running. Raises AgentError."""
        services: list[str] = self.journal.notes.get(RESTARTS, [])
        for service in services:
            if service == CONTAINERD:
                prepare.start_containerd()
            else:
                run(
                    ["systemctl", "restart", "kubelet"],
                    timeout=120,
                    what="restarting the kubelet",
                    resolution="journalctl -u kubelet",
                    reason="KubeletUnhealthy",
                )
        if services:
            self.journal.note(RESTARTS, [])
        return Settled(f"restarted {', '.join(services)}" if services else "")

    def _stop_stale_pods(self, _membership: Membership) -> Settled:
        """After a change of the kubelet's flags: stop the pods that have what the old ones said. The kubelet starts them again at once. Raises AgentError.

        Pods in the host's network have the node's address from their start (status.hostIP), and Cilium does not follow a Node's address while it runs.
        A pod's name servers are those of its start as well, whatever becomes of its containers: CoreDNS would go on failing.
        """
        noted = self.journal.notes.get(STALE_PODS)
        if not noted or abs(self.clock() - noted["since"]) < NODE_UPDATE_SECONDS or join.kubelet_health():
            return Settled()
        stale = stale_pods(noted["of"])
        if stale:
            run([*_crictl(), "stopp", *stale], timeout=180, what="stopping pods that have old settings", reason="PodsNotStopped")
        self.journal.note(STALE_PODS, None)
        return Settled(f"{len(stale)} pods start again, which had the old {' and '.join(noted['of'])}" if stale else "")


def _crictl() -> list[str]:
    return ["crictl", f"--runtime-endpoint={prepare.CONTAINERD_SOCKET}", "--timeout=30s"]


def stale_pods(flags: Sequence[str]) -> list[str]:
    """The IDs of the running pods that keep what the kubelet's old flags said. Raises AgentError."""
    if not have("crictl"):
        return []
    found = []
    for pod in run([*_crictl(), "pods", "-q", "--state=ready"], timeout=60).stdout.split():
        answer = run([*_crictl(), "inspectp", "-o=json", pod], timeout=60, check=False)
        if answer.code != 0:
            continue  # it ended meanwhile
        try:
            data = json.loads(answer.stdout)
            in_hosts_network = data["status"]["linux"]["namespaces"]["options"].get("network") in ("NODE", 2)
            names = (data["info"]["config"].get("dns_config") or {}).get("servers") or []
        except (ValueError, KeyError, TypeError):
            raise AgentError(f"crictl's answer about the pod {pod} can't be read", reason="PodsNotStopped") from None
        if in_hosts_network:
            stale = NODE_IP in flags
        else:
            stale = RESOLV_CONF in flags and resolver.unreachable(names)
        if stale:
            found.append(pod)
    return found
