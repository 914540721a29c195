"""The protocol between the hub and the agents, version 1.

Enrolment is plain HTTPS (the agent knows the hub's CA; the hub does not know the agent yet):

    POST /v1/enrolments            EnrolmentRequest  -> 202 EnrolmentTicket
    GET  /v1/enrolments/{id}       Authorization: Bearer <the ticket's token>  -> 200 EnrolmentStatus

The channel is a WebSocket over mutual TLS (`wss://hub:9443/v1/agent`), JSON in text frames, one message per frame:

    agent -> hub   Hello, then a Report after every change and every `report_seconds`
    hub -> agent   Desired, immediately after Hello and after every change: always the complete desired state
    hub -> agent   RenewalDue, when at most a third of the certificate's lifetime is left
    agent -> hub   Renewal, only after RenewalDue: a CSR for a new key
    hub -> agent   IssuedCertificate; the old certificate stays valid until the first use of the new one

The agent is level-triggered: it compares the desired state with its journal, and reconciles the difference.
The agent has its own copy of these messages for system Python (ckp.agent.messages); a contract test keeps the two equal.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

PROTOCOL = 1
MAX_FRAME_BYTES = 1 << 20
"""Both sides reject larger frames, and close the connection with 1009."""
MAX_FACTS_BYTES = 20_480
"""Largest facts that are accepted, at enrolment and on the channel. Up to 0.2.0 the limit was MAX_SENT_FACTS_BYTES: the rest is for what `Finding` adds."""
MAX_SENT_FACTS_BYTES = 16_384
"""Largest facts that an agent sends: the limit of a hub of 0.2.0."""
REPORT_SECONDS = 20.0
OFFLINE_SECONDS = 60.0
"""A host from which nothing was received for this long is offline (AgentConnected=False)."""


class Message(BaseModel):
    """Unknown fields are ignored, since a newer peer may send them; missing required ones are an error."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


MAX_INT = (1 << 63) - 1
Int = Annotated[int, Field(ge=-MAX_INT, le=MAX_INT)]
"""The integers of a Kubernetes object: with a larger one in it, the host's status could not be written."""
Count = Annotated[int, Field(ge=0, le=MAX_INT)]


UPGRADE_NODE = "upgrade-node"
"""The feature of an agent that knows `Membership.upgrade`. One without it ignores the field, and reports nothing about it."""
FEATURES = (UPGRADE_NODE,)


class DiskFacts(Message):
    """A whole disk, not a partition."""

    name: str = Field(max_length=64)
    size_bytes: Count
    rotational: bool = False


class LinkFacts(Message):
    """A network link to the outside of the host, not one that a cluster's network plugin made."""

    name: str = Field(max_length=64)
    mac: str = Field(default="", max_length=32)
    mtu: Int = 0
    speed_mbps: Int = 0  # 0: unknown
    up: bool = False


class Finding(Message):
    """What preflight found on a host, and its remediation. A free host with a `blocking` finding is not claimed.

    0.2.0 calls the remediation `mend`. For one release both names are written, and either is read.
    """

    problem: str = Field(max_length=500)
    remediation: str = Field(default="", max_length=500)
    blocking: bool = True
    mend: str = Field(default="", max_length=500)  # deprecated: what 0.2.0 reads

    @model_validator(mode="before")
    @classmethod
    def _fill_both_names(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        text = data.get("remediation") or data.get("mend") or ""
        return {**data, "remediation": text, "mend": text}


class HostFacts(Message):
    """What a host reports about itself; never used to identify it."""

    hostname: str = Field(max_length=253)
    machine_id: str = Field(pattern=r"^[0-9a-f]{32}$")
    os_id: str  # /etc/os-release ID: ubuntu, debian, rhel
    os_version: str  # VERSION_ID: 22.04, 24.04, 12, 9.4
    kernel: str
    architecture: str  # amd64
    cpus: int = Field(ge=1, le=1 << 20)
    memory_bytes: Count
    disk_bytes: Count
    disk_free_bytes: Count
    addresses: tuple[str, ...] = ()
    default_address: str = ""  # the source address of packets to the hub
    cgroup: Literal["v1", "v2"] = "v2"
    swap: bool = False
    agent_version: str = ""
    disks: tuple[DiskFacts, ...] = ()
    links: tuple[LinkFacts, ...] = ()
    installed: tuple[str, ...] = ()  # "containerd 1.7.28-ckp": packages of a node that are installed already
    findings: tuple[Finding, ...] = ()
    clock: float = Field(default=0.0, ge=0, le=1e11)  # the host's time when it sent this, in seconds since 1970; 0: not sent
    features: tuple[Annotated[str, Field(max_length=64)], ...] = Field(default=(), max_length=32)  # what this agent can do beyond 0.3.0: FEATURES
    kubelet_flags: tuple[Annotated[str, Field(max_length=64)], ...] = Field(default=(), max_length=100)  # names in KUBELET_EXTRA_ARGS of a node


class EnrolmentRequest(Message):
    """A host's first request: the project's pre-shared key, its facts, and a CSR whose subject the server ignores."""

    protocol: int = PROTOCOL
    domain: str = "default"
    project: str = "default"
    psk: str = Field(min_length=16, max_length=256, repr=False)
    facts: HostFacts
    csr: str = Field(max_length=8192)


class EnrolmentTicket(Message):
    """Where to ask for the outcome, and the token that only this agent has."""

    request_id: str
    token: str = Field(repr=False)


class EnrolmentStatus(Message):
    """`approved` has the client certificate, the CA of it and of the hub's channel, and the host's name."""

    state: Literal["pending", "approved", "rejected"]
    reason: str = ""
    host: str = ""
    certificate: str = ""
    ca: str = ""


class BundleRef(Message):
    """A bundle in a registry, by digest; the tag is only for display."""

    image: str  # registry:port/path/byoh-bundle-debian_12_x86-64_k8s@sha256:...
    tag: str
    release: str  # v1.35.1
    registry_ca: str = ""


class JoinFile(Message):
    """A file of the bootstrap data (Cluster API's cloud-config `write_files`)."""

    path: str
    content: str = Field(repr=False)
    mode: str = "0600"


class NodeUpgrade(Message):
    """Another release for a host that is a node already.

    prepare   pull its bundle, verify it, and judge the space for it; the node stays as it is
    install   prepare, then replace the packages in place, run `kubeadm upgrade node`, and restart the kubelet; or put the old release back

    The host does this once for each `request`: a failure is final until there is a request with another id. It takes the release of the membership for
    the one to put back. When the upgrade is done, the membership itself is given the new release, and has no upgrade any longer.
    """

    request: str = Field(min_length=1, max_length=128)
    release: str = Field(max_length=63)  # v1.35.1
    bundle: BundleRef
    phase: Literal["prepare", "install"]


class Membership(Message):
    """Everything that a host needs to be a node of one cluster.

    Before the control plane is ready there is no join data: `files` is empty, and the host does every step before the join (phase Prepared).
    """

    cluster: str  # namespace/name
    machine: str  # name of the Cluster API Machine
    node_name: str
    provider_id: str
    release: str  # v1.35.1
    bundle: BundleRef
    files: tuple[JoinFile, ...] = ()
    join_config: str = ""  # path of the kubeadm JoinConfiguration among `files`
    pre_commands: tuple[str, ...] = ()  # KubeadmConfig preKubeadmCommands
    post_commands: tuple[str, ...] = ()
    sandbox_image: str  # the pause image, from the same registry
    registry: str  # host:port that images come from
    images: tuple[str, ...] = ()  # images that every node of this cluster runs: pulled before it joins
    registry_ca: str = ""
    node_labels: tuple[str, ...] = ()  # key=value, set when the node registers
    node_taints: tuple[str, ...] = ()  # key=value:effect
    allow_downgrade: bool = False  # whether installed packages may be replaced by older ones
    image_fetch_seconds: float = 0.0  # how long `images` are fetched before the join goes on without the rest; 0: the agent's default
    upgrade: NodeUpgrade | None = None  # only for an agent with the feature UPGRADE_NODE


class AgentTarget(Message):
    """The version of the agent that is to run on a host, and the one to return to if it does not report."""

    version: str = Field(max_length=128)  # of the package ckp-agent
    image: str = Field(max_length=512)  # registry:port/path/ckp-agent@sha256:..., holding ckp-agent.deb and ckp-agent.rpm
    fallback_image: str = Field(default="", max_length=512)  # the running version, for a host that has no package of it
    registry_ca: str = ""
    confirm_seconds: float = 0.0  # 0: the agent's default


class RegistryLogin(Message):
    """How a host pulls from the registry, where that asks for a password: with a user who may read only."""

    registry: str  # host:port
    basic: str = Field(repr=False)  # base64 of user:password, as of HTTP's Basic authentication (RFC 7617)


class Desired(Message):
    """The complete desired state of one host. `membership: null` means a free host: reset it if it is a member."""

    type: Literal["desired"] = "desired"
    generation: int
    host: str
    membership: Membership | None = None
    agent: AgentTarget | None = None
    report_seconds: float = REPORT_SECONDS
    registry_login: RegistryLogin | None = None


class RenewalDue(Message):
    """The host's certificate expires soon: the hub asks the agent for a CSR. An agent without support for renewal ignores this frame."""

    type: Literal["renewal-due"] = "renewal-due"


class IssuedCertificate(Message):
    """The answer to a Renewal: the certificate, and the CAs of it and of the hub's certificate."""

    type: Literal["certificate"] = "certificate"
    certificate: str = Field(max_length=16384)
    ca: str = Field(max_length=65536)


class Hello(Message):
    """The agent's first frame on the channel, sent again whenever its facts have changed."""

    type: Literal["hello"] = "hello"
    protocol: int = PROTOCOL
    boot_id: str
    facts: HostFacts


Phase = Literal[
    "Free",
    "Preflight",
    "Pulling",
    "Verifying",
    "Preparing",
    "Installing",
    "Fetching",
    "Prepared",
    "Joining",
    "Checking",
    "Joined",
    "Resetting",
    "Failed",
]


class JournalEntry(Message):
    """One event of a step on the host."""

    at: str  # RFC 3339
    step: str
    outcome: Literal["started", "done", "failed"]
    seconds: float = 0.0
    message: str = ""


UpgradeState = Literal["Preparing", "Prepared", "Installing", "Checking", "RollingBack", "Done", "Failed"]


class UpgradeReport(Message):
    """How far a NodeUpgrade is. Done and Failed are final for this request."""

    request: str = Field(max_length=128)
    release: str = Field(max_length=63)
    state: UpgradeState
    reason: str = ""  # CamelCase; of what failed last, also while it is tried again
    message: str = ""
    restored: bool = False  # of Failed: nothing was changed, or the host is wholly of its old release again
    at: str = ""  # RFC 3339: when it came into this state, by the host's clock


class Report(Message):
    """The observed state of one host: its phase, its journal, and why it does not progress, if so."""

    type: Literal["report"] = "report"
    generation: Int  # the generation of the desired state that this refers to
    phase: Phase
    cluster: str = ""
    machine: str = ""
    release: str = ""
    reason: str = ""  # CamelCase, for machines
    message: str = ""  # a sentence, for people
    attempts: Int = 0
    journal: tuple[JournalEntry, ...] = ()  # the newest entries, oldest first
    upgrade: UpgradeReport | None = None


class Renewal(Message):
    """A CSR for a new key of this host; the hub ignores its subject. Sent only after RenewalDue, since an older hub does not know this frame."""

    type: Literal["renewal"] = "renewal"
    csr: str = Field(max_length=8192)


AgentMessage = Annotated[Hello | Report | Renewal, Field(discriminator="type")]
