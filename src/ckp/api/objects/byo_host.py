"""ByoHost: a person's machine, enrolled or about to be. The one reading of it, for controllers, hub and Compass."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field

from ckp.api.objects.base import ApiModel, Condition, Conditions, Labels, ObjectReference, Resource, Schema, Texts, Time, find_condition, lenient


class ByoHostSpec(ApiModel):
    """What is asked of a host."""

    machine_ref: Annotated[ObjectReference, Schema("The ByoMachine that holds this host; absent: it is free.")] = Field(default_factory=ObjectReference)
    cordoned: Annotated[bool, Schema("Not to be claimed.")] = False
    taints: Annotated[Texts, Schema("key=value:effect, for nodes of this host.")] = ()
    drain: Annotated[str, Schema("When a person asked for its node to be drained; empty: it is to take pods.")] = ""
    agent_version: Annotated[str, Schema("The version of the package ckp-agent that is to run on it; empty: whichever it has.")] = ""
    agent_confirm_seconds: Annotated[
        int, Schema("How long that version has to report before the host returns to the old one; 0: three minutes.", minimum=0)
    ] = 0
    revoked_serial: Annotated[str, Schema("The certificate with this serial may not be used any more, even while it is the host's newest.")] = ""
    bootstrap_secret: ObjectReference = Field(default_factory=ObjectReference)
    installation_secret: ObjectReference = Field(default_factory=ObjectReference)
    uninstallation_script: str = ""


class AgentStatus(ApiModel):
    """What is known of a host's agent."""

    preserve_unknown: ClassVar[bool] = True

    connected: bool = False
    hub: Annotated[str, Schema("The replica of the hub that holds its connection, by its Lease in ckp-hosts; absent: none does.")] = ""
    last_seen: Annotated[Time, Schema("When it was last heard of; while it is connected, up to five minutes old.")] = ""
    version: str = ""
    address: str = ""
    certificate_serial: Annotated[str, Schema("Of the client certificate that is valid now, in hex.")] = ""
    enrolled_serial: Annotated[str, Schema("Of the certificate that its last enrolment brought: an enrolment's ticket makes it valid once.")] = ""
    next_certificate_serial: Annotated[str, Schema("Of a renewed one that the host was given and has not used yet.")] = ""
    boot_ids: Annotated[Texts, Schema("The last boots that connected with the certificate bootIDsOf, oldest first.")] = Field(default=(), alias="bootIDs")
    boot_ids_of: str = Field(default="", alias="bootIDsOf")
    clock_offset_seconds: Annotated[float | None, lenient(lambda: None), Schema("How far the host's clock is ahead of the hub's; good to a second.")] = None


class HostFinding(ApiModel):
    """A finding of the host's own preflight (host_protocol.Finding)."""

    model_config = ConfigDict(alias_generator=None)

    problem: str = ""
    remediation: str = ""
    mend: str = ""
    """The remediation, from an agent that does not know the field of this name yet."""
    blocking: bool = False

    @property
    def advice(self) -> str:
        """What a person can do about it; "" if the agent knows nothing."""
        return self.remediation or self.mend


class Facts(ApiModel):
    """What the host reports of itself, in the protocol's own names (host_protocol.HostFacts). Nothing in it is trusted for identity."""

    model_config = ConfigDict(alias_generator=None)
    opaque: ClassVar[bool] = True

    hostname: str = ""
    machine_id: str = ""
    os_id: str = ""
    os_version: str = ""
    architecture: str = ""
    cpus: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0
    disk_free_bytes: int = 0
    default_address: str = ""
    addresses: Texts = ()
    findings: tuple[HostFinding, ...] = ()
    features: Texts = ()
    kubelet_flags: Texts = ()


def unreadable_facts() -> Facts:
    """What stands for facts that cannot be read: such a host is not claimed, and a person sees why."""
    problem, remediation = "what this host reports of itself cannot be read", "upgrade its agent (ckp host upgrade-agent), or restart it"
    return Facts(findings=(HostFinding(problem=problem, remediation=remediation, blocking=True),))


class ObservedUpgrade(ApiModel):
    """How far the host is with its node's upgrade (host_protocol.UpgradeReport)."""

    request: str = ""
    release: str = ""
    state: str = ""
    reason: str = ""
    message: str = ""
    restored: bool = False
    at: str = ""


class Observed(ApiModel):
    """What the agent last reported of its work (host_protocol.Report); the generation is that of the desired state it speaks of."""

    opaque: ClassVar[bool] = True

    generation: int | None = None
    phase: str = ""
    cluster: str = ""
    machine: str = ""
    release: str = ""
    reason: str = ""
    message: str = ""
    attempts: int = 0
    at: str = ""
    upgrade: Annotated[ObservedUpgrade, lenient(ObservedUpgrade)] = Field(default_factory=ObservedUpgrade)

    @property
    def cluster_name(self) -> str:
        """The cluster's name without its namespace."""
        return self.cluster.rpartition("/")[2]


class HostInfo(ApiModel):
    """The host's system, in the fields of upstream's BYOH provider."""

    osname: str = ""
    osimage: str = ""
    architecture: str = ""


class NetworkStatus(ApiModel):
    """One of the host's networks, in the fields of upstream's BYOH provider."""

    connected: bool = False
    ip_addrs: Texts = ()
    is_default: bool = False
    mac_addr: str = ""
    network_interface_name: str = ""


class NodeMarks(ApiModel):
    """The labels and taints that a node got from its host."""

    machine: str = ""
    labels: Labels = Field(default_factory=dict)
    taints: Texts = ()
    settled: bool = False


class FlapStatus(ApiModel):
    """How often the connection was lost lately."""

    count: int = 0
    last: Time = ""


class ByoHostStatus(ApiModel):
    """What is so. The hub and the controller write parts of it, by server-side apply."""

    preserve_unknown: ClassVar[bool] = True

    agent: AgentStatus = Field(default_factory=AgentStatus)
    facts: Annotated[Facts, lenient(unreadable_facts), Schema("What the host reports of itself.")] = Field(default_factory=Facts)
    hostinfo: HostInfo = Field(default_factory=HostInfo)
    network: tuple[NetworkStatus, ...] = ()
    machine_ref: ObjectReference = Field(default_factory=ObjectReference)
    drained_for: Annotated[str, Schema("The request (spec.drain) that its node was, or is being, drained for.")] = ""
    node_marks: Annotated[NodeMarks, Schema("The labels and taints that its node got from it; not settled: may have got.")] = Field(default_factory=NodeMarks)
    flaps: Annotated[FlapStatus, Schema("How often the connection was lost lately, and when last.")] = Field(default_factory=FlapStatus)
    observed: Annotated[Observed, lenient(Observed), Schema("What the agent reports: generation, phase, reason, message.")] = Field(default_factory=Observed)
    journal: Annotated[tuple[dict[str, Any], ...], lenient(tuple)] = ()
    conditions: Conditions = ()


class ByoHost(Resource):
    """The whole object."""

    spec: ByoHostSpec = Field(default_factory=ByoHostSpec)
    status: ByoHostStatus = Field(default_factory=ByoHostStatus)

    def condition(self, kind: str) -> Condition:
        """Its condition of this type; an empty one if it is absent."""
        return find_condition(self.status.conditions, kind)

    @property
    def claimed(self) -> bool:
        """Whether a machine of a cluster holds it."""
        return bool(self.spec.machine_ref)
