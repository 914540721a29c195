"""What stands against the upgrade of a cluster, by facts read before: each finding says what, where, what to do, and whether it may be accepted. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from ckp.api.platform import Options
from ckp.rules.upgrade_options import Used, refused, unknown
from ckp.rules.upgrades import Path, Version, kubelet_skew

ENDING = timedelta(days=30)
"""A certificate that ends sooner is named."""
BUNDLE_SPACE = 2 * 600 << 20
"""Bytes that a host needs for a usual bundle: its blobs, and what is unpacked from them (agent: upgrade_steps.USUAL_BUNDLE)."""
PACKAGES_SPACE = 256 << 20
"""Bytes that stay free while packages are replaced (agent: upgrade_steps.SPARE). The agent itself measures what they take."""
TROUBLE = ("disk-pressure", "memory-pressure", "pid-pressure", "network-unavailable")
"""Taints `node.kubernetes.io/…` that the node lifecycle controller puts on a node that is Ready (pkg/controller/nodelifecycle, v1.35.1)."""
DEPRECATED_METRIC = "apiserver_requested_deprecated_apis"
"""The API server's gauge: 1 for each deprecated API that was asked for since it started (KEP-1693)."""
_SAMPLE = re.compile(rf"^{DEPRECATED_METRIC}{{(.*)}} (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


class Check(StrEnum):
    """Names of findings: wire names, by which they are accepted."""

    NO_WAY = "NoWay"
    RELEASE_MISSING = "ReleaseMissing"
    BUNDLE_MISSING = "BundleMissing"
    OTHER_UPGRADE = "OtherUpgrade"
    NOT_REACHED = "ClusterNotReached"
    CONTROL_PLANE = "ControlPlaneNotReady"
    ETCD = "EtcdNotHealthy"
    ETCD_SPACE = "EtcdSpace"
    SKEW = "VersionSkew"
    UNKNOWN = "UnknownNames"
    NODE = "NodeNotReady"
    HOST = "HostOffline"
    AGENT = "AgentTooOld"
    SPACE = "HostSpace"
    CORDON = "NodeCordoned"
    TAINT = "NodeTainted"
    ADDON = "AddonNotInRelease"
    BUDGET = "DisruptionBudget"
    WEBHOOK = "Webhook"
    REMOVED_API = "RemovedAPI"
    GATE = "FeatureGate"
    FLAG = "RemovedFlag"
    OPTIONS = "OptionsNotKnown"
    BACKUP = "BackupNotFresh"
    CERTIFICATE = "CertificateEnding"


ACCEPTABLE = frozenset(
    {
        Check.SPACE,
        Check.CORDON,
        Check.TAINT,
        Check.BUDGET,
        Check.WEBHOOK,
        Check.REMOVED_API,
        Check.OPTIONS,
        Check.BACKUP,
        Check.CERTIFICATE,
    }
)
"""What a person may know better. The others would break the cluster, or leave it half-way."""


@dataclass(frozen=True)
class Finding:
    """What stands against an upgrade."""

    name: Check
    where: str
    message: str
    remedy: str

    @property
    def acceptable(self) -> bool:
        """Whether a person may accept it."""
        return self.name in ACCEPTABLE


@dataclass(frozen=True)
class NodeFacts:
    """A node that is to be upgraded.

    Attributes:
        kubelet: its version; "" while it is not known.
        system: the host's system, as bundles are named by it: `debian-12`.
        ready: whether its node is Ready.
        online: whether its host's agent is connected.
        old_agent: the version of its host's agent, where that can't upgrade a node; "" if it can.
        free: bytes that its host reports to be free; None while it has not.
        prepared: whether the host has pulled and unpacked what it will install.
        cordoned: whether it takes no new pods, and not because of an upgrade.
        taints: those that Kubernetes itself put on it because something is wrong.
    """

    name: str
    pool: str
    kubelet: str
    system: str
    ready: bool
    online: bool
    old_agent: str = ""
    free: int | None = None
    prepared: bool = False
    cordoned: bool = False
    taints: Sequence[str] = ()


@dataclass(frozen=True)
class DeprecatedApi:
    """An API that was asked for and goes away."""

    name: str
    removed_in: Version


@dataclass(frozen=True)
class Facts:
    """What was read of a cluster.

    Attributes:
        path: of the control plane.
        releases: the systems that each installed release has a bundle for.
        plane: why the control plane is not ready; "" if it is.
        etcd: why etcd is not healthy.
        etcd_space: how much of its space is used, where that is too much or etcd takes no writes.
        addons: addons of the cluster that a release on the way does not have, with that release.
        unseen: why the workload cluster can't be asked; "" if it could. What is in it is not judged then.
        left: nodes that are not upgraded; they must go with the new API server as they are.
        unknown: pools and nodes that are asked for and are not there.
        budgets: of each PodDisruptionBudget that allows no disruption now: its name, and its pods.
        webhooks: of each that is asked fail-closed and has no backend: `Kind/name`, and its Service.
        deprecated: APIs that were asked for.
        backup: why the newest backup is not fresh; "" if it is, or none are asked for.
        certificates: the end of each certificate of the cluster.
        options: what programs of the installed releases take, by release.
        control_plane: what the control plane's programs are started with.
        kubelets: what the nodes' kubelets are started with.
        unseen_options: of nodes whose kubelet does not say it: the node, and why.
        other: the upgrade of the same cluster that goes on; "" if none does.
    """

    current: str
    wanted: str
    path: Path
    releases: Mapping[str, Collection[str]]
    nodes: Sequence[NodeFacts] = ()
    plane: str = ""
    etcd: str = ""
    etcd_space: str = ""
    addons: Sequence[tuple[str, str]] = ()
    unseen: str = ""
    left: Sequence[NodeFacts] = ()
    unknown: Sequence[str] = ()
    budgets: Sequence[tuple[str, str]] = ()
    webhooks: Sequence[tuple[str, str]] = ()
    deprecated: Sequence[DeprecatedApi] = ()
    backup: str = ""
    certificates: Mapping[str, datetime] = field(default_factory=dict)
    options: Mapping[str, Options] = field(default_factory=dict)
    control_plane: Sequence[Used] = ()
    kubelets: Sequence[Used] = ()
    unseen_options: Sequence[tuple[str, str]] = ()
    other: str = ""


def check(facts: Facts, now: datetime) -> list[Finding]:
    """All findings, those first that may not be accepted."""
    found = [*_way(facts), *_state(facts), *_nodes(facts), *_options(facts), *_workload(facts, now)]
    return sorted(found, key=lambda finding: finding.acceptable)


def holding(findings: Sequence[Finding], accepted: Collection[str]) -> list[Finding]:
    """Those that hold an upgrade up."""
    return [finding for finding in findings if not (finding.acceptable and finding.name in accepted)]


def deprecated_apis(metrics: str) -> list[DeprecatedApi]:
    """From the API server's metrics (text format). What has no release in which it goes away is left out."""
    found = set()
    for labels, value in _SAMPLE.findall(metrics):
        of = dict(_LABEL.findall(labels))
        match = re.fullmatch(r"(\d+)\.(\d+)", of.get("removed_release", ""))
        if match and float(value) > 0:
            group = ".".join(part for part in (of.get("resource", ""), of.get("version", ""), of.get("group", "")) if part)
            found.add((f"{group}{'/' + of['subresource'] if of.get('subresource') else ''}", Version(int(match[1]), int(match[2]), 0)))
    return [DeprecatedApi(name, version) for name, version in sorted(found)]


def _way(facts: Facts) -> Iterator[Finding]:
    if facts.other:
        yield Finding(Check.OTHER_UPGRADE, facts.other, f"the upgrade {facts.other} of the same cluster goes on", "wait for it, or abort it")
    if facts.path.refusal:
        yield Finding(Check.NO_WAY, facts.wanted, facts.path.refusal, "choose another version")
    for missing in facts.path.missing:
        what = f"no release of {missing} is installed" if missing.count(".") == 1 else f"the release {missing} is not installed"
        yield Finding(Check.RELEASE_MISSING, missing, f"{what}, and the control plane has to go through it", "add it to the site: ckp site release add")
    if facts.unknown:
        message = f"{', '.join(facts.unknown)}: asked for, and no pool or node of the cluster"
        yield Finding(Check.UNKNOWN, facts.unknown[0], message, "name pools and nodes that there are, or none for all")
    systems = {node.system: node.name for node in facts.nodes if Version.parse(node.kubelet or facts.current) < Version.parse(facts.wanted)}
    for system, node in sorted(systems.items()):
        if facts.wanted in facts.releases and system not in facts.releases[facts.wanted]:
            message = f"{facts.wanted} has no bundle for {system or 'an unknown system'}, which {node} runs"
            yield Finding(Check.BUNDLE_MISSING, node, message, "publish the release with a bundle for it, or leave these nodes out (pools, nodes)")


def _state(facts: Facts) -> Iterator[Finding]:
    if facts.plane:
        yield Finding(Check.CONTROL_PLANE, "control plane", facts.plane, "see: ckp cluster describe; an upgrade begins from a control plane that is ready")
    if facts.etcd:
        yield Finding(Check.ETCD, "etcd", facts.etcd, "an upgrade restarts etcd's members and the API servers: make etcd whole first")
    if facts.etcd_space:
        yield Finding(Check.ETCD_SPACE, "etcd", facts.etcd_space, "an upgrade writes to etcd: delete what is not needed, or enlarge its volumes first")
    for addon, release in facts.addons:
        yield Finding(Check.ADDON, addon, f"the cluster has the addon {addon}, and the release {release} does not", "take another release, or publish it again")
    if facts.unseen:
        yield Finding(Check.NOT_REACHED, "API server", f"what is in the cluster can't be seen: {facts.unseen}", "the API server must answer")
    if facts.backup:
        yield Finding(Check.BACKUP, "backup", facts.backup, "see why: ckp cluster backups; or make one: ckp cluster backup")


def _nodes(facts: Facts) -> Iterator[Finding]:
    for node in facts.nodes:
        if node.kubelet and (skew := kubelet_skew(node.kubelet, facts.current)):
            yield Finding(Check.SKEW, node.name, skew, "bring it to a version that goes with the control plane first")
        if not node.online:
            yield Finding(
                Check.HOST, node.name, "its host is offline, so nothing can be installed on it", "bring the host back, or leave it out (pools, nodes)"
            )
        if node.old_agent:
            message = f"its host's agent {node.old_agent} can't upgrade a node"
            yield Finding(Check.AGENT, node.name, message, f"upgrade it first: ckp host upgrade-agent {node.name}")
        if not node.ready:
            message = "its node is not Ready, so it could not be told whether the upgrade is to blame"
            yield Finding(Check.NODE, node.name, message, "repair the node, or leave it out (pools, nodes)")
        needed = PACKAGES_SPACE + (0 if node.prepared else BUNDLE_SPACE)
        if node.free is not None and node.free < needed and Version.parse(node.kubelet or facts.current) < Version.parse(facts.wanted):
            message = f"{node.free >> 20} MiB are free on its host's /var/lib, and up to {needed >> 20} MiB are needed for the bundle and its packages"
            yield Finding(Check.SPACE, node.name, message, "free some space there; an accepted one is measured again by the host before it pulls")
        if node.cordoned:
            message = "it is cordoned, and stays so after its upgrade: pods of the other nodes can't move to it"
            yield Finding(Check.CORDON, node.name, message, "uncordon it: kubectl uncordon, or ckp host uncordon")
        if node.taints:
            message = f"Kubernetes has tainted it ({', '.join(node.taints)}): pods of the other nodes can't move to it"
            yield Finding(Check.TAINT, node.name, message, "see: kubectl describe node")
    for node in facts.left:
        if node.kubelet and (skew := kubelet_skew(node.kubelet, facts.wanted)):
            yield Finding(Check.SKEW, node.name, f"it is left out, and {skew}", "upgrade it with the others")


def _options(facts: Facts) -> Iterator[Finding]:
    """Feature gates and flags with which programs of the new releases do not start. A node goes to the last release in one step (rules/upgrades.stages)."""
    every = [(used, facts.path.steps) for used in facts.control_plane] + [(used, (facts.wanted,)) for used in facts.kubelets]
    for used, steps in every:
        for found in refused(used, steps, facts.options):
            yield Finding(Check.GATE if found.is_gate else Check.FLAG, found.where, found.message, found.remedy)
    if missing := [name for name in unknown(facts.path.steps or (facts.wanted,), facts.options) if name in facts.releases]:
        told = ", ".join(sorted({f"{used.where} ({', '.join(sorted(used.gates))})" for used, _ in every if used.gates}))
        if told:
            message = f"which feature gates {', '.join(missing)} takes is not known, and some are set: {told}"
            yield Finding(Check.OPTIONS, missing[0], message, "publish the release again with this version of CKP (ckp site apply), or look it up yourself")
    for node, why in facts.unseen_options:
        message = f"which feature gates its kubelet is started with can't be seen: {why}"
        yield Finding(Check.OPTIONS, node, message, "see: kubectl get --raw /api/v1/nodes/NODE/proxy/configz")


def _workload(facts: Facts, now: datetime) -> Iterator[Finding]:
    if facts.nodes:  # who drains nothing is held up by no budget
        for name, pods in facts.budgets:
            message = f"the PodDisruptionBudget allows no disruption now ({pods}), and a drain would wait for it"
            yield Finding(Check.BUDGET, name, message, "more replicas, or healthy ones; an accepted one is waited for, up to the drain's timeout")
    for name, service in facts.webhooks:
        message = f"it is asked fail-closed, and its Service {service} has no endpoint that is ready: pods may not come back after a drain"
        yield Finding(Check.WEBHOOK, name, message, "start its backend, or delete the configuration")
    reached = Version.parse(facts.wanted)
    for api in facts.deprecated:
        if (api.removed_in.major, api.removed_in.minor) <= (reached.major, reached.minor):
            message = f"it was asked for since the API server started, and {api.removed_in.line} does not have it"
            yield Finding(
                Check.REMOVED_API, api.name, message, "find who asks for it (audit annotation k8s.io/deprecated), and move that to the version after it"
            )
    for name, end in sorted(facts.certificates.items()):
        if end - now < ENDING:
            message = f"it {'ended' if end <= now else 'ends'} at {end:%Y-%m-%d %H:%M} UTC"
            yield Finding(Check.CERTIFICATE, name, message, "cert-manager renews it: see why it has not (kubectl describe certificate)")
