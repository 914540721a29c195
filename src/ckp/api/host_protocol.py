"""What the hub and a host's agent say to each other, protocol 1.

Enrolment is plain HTTPS (the agent knows the hub's CA; the hub does not know the agent yet):

    POST /v1/enrolments            EnrolmentRequest  -> 202 EnrolmentTicket
    GET  /v1/enrolments/{id}       Authorization: Bearer <ticket's token>  -> 200 EnrolmentStatus

The channel is a WebSocket over mutual TLS (`wss://hub:9443/v1/agent`), JSON text frames, one message a frame:

    agent -> hub   Hello, then Report after every change and every `report_seconds`
    hub -> agent   Desired, at once after Hello and after every change: always the whole desired state
    hub -> agent   RenewalDue, when a third or less of the certificate's life is left
    agent -> hub   Renewal, only after RenewalDue: a signing request for a new key
    hub -> agent   IssuedCertificate; the old certificate is good until the new one is first used

The agent is level-triggered: it compares the desired state with what its journal says it has done, and works towards it.
The agent ships its own copy of these shapes for system Python (ckp.agent.messages); a contract test holds the two together.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

PROTOCOL = 1
MAX_FRAME_BYTES = 1 << 20
"""Larger frames are refused by both sides; the connection is closed with 1009."""
MAX_FACTS_BYTES = 20_480
"""Largest facts that are accepted, at enrolment and on the channel. Up to 0.2.0 the limit was MAX_SENT_FACTS_BYTES: the rest is for what `Finding` adds."""
MAX_SENT_FACTS_BYTES = 16_384
"""Largest facts that an agent sends: a hub of 0.2.0 accepts no more."""
REPORT_SECONDS = 20.0
OFFLINE_SECONDS = 60.0
"""A host that was silent for this long counts as offline (AgentConnected=False)."""


class Message(BaseModel):
    """Unknown fields are ignored (a newer peer may send them), missing ones are an error."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


MAX_INT = (1 << 63) - 1
Int = Annotated[int, Field(ge=-MAX_INT, le=MAX_INT)]
"""What a Kubernetes object can hold: one number beyond it and no status of that host could be written."""
Count = Annotated[int, Field(ge=0, le=MAX_INT)]


class DiskFacts(Message):
    """A whole disk, not a partition."""

    name: str = Field(max_length=64)
    size_bytes: Count
    rotational: bool = False


class LinkFacts(Message):
    """A network link that leads somewhere, not one that a cluster's network made."""

    name: str = Field(max_length=64)
    mac: str = Field(default="", max_length=32)
    mtu: Int = 0
    speed_mbps: Int = 0  # 0: not known
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
    """What a host says about itself; nothing here is trusted for identity."""

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
    default_address: str = ""  # the address that the route to the hub leaves from
    cgroup: Literal["v1", "v2"] = "v2"
    swap: bool = False
    agent_version: str = ""
    disks: tuple[DiskFacts, ...] = ()
    links: tuple[LinkFacts, ...] = ()
    installed: tuple[str, ...] = ()  # "containerd 1.7.28-ckp": what of a node's packages is here already
    findings: tuple[Finding, ...] = ()
    clock: float = Field(default=0.0, ge=0, le=1e11)  # the host's time when it said this, seconds since 1970; 0: not said


class EnrolmentRequest(Message):
    """The first word of a host: the project's pre-shared key, its facts, and a CSR whose subject the server ignores."""

    protocol: int = PROTOCOL
    domain: str = "default"
    project: str = "default"
    psk: str = Field(min_length=16, max_length=256, repr=False)
    facts: HostFacts
    csr: str = Field(max_length=8192)


class EnrolmentTicket(Message):
    """Where to ask for the outcome, and the secret that lets only this agent ask."""

    request_id: str
    token: str = Field(repr=False)


class EnrolmentStatus(Message):
    """`approved` carries the client certificate, the CA that it and the hub's channel chain to, and the host's name."""

    state: Literal["pending", "approved", "rejected"]
    reason: str = ""
    host: str = ""
    certificate: str = ""
    ca: str = ""


class BundleRef(Message):
    """A bundle in a registry, by digest: the tag is for people."""

    image: str  # registry:port/path/byoh-bundle-debian_12_x86-64_k8s@sha256:...
    tag: str
    release: str  # v1.35.1
    registry_ca: str = ""


class JoinFile(Message):
    """A file of the bootstrap data (Cluster API's cloud-config `write_files`)."""

    path: str
    content: str = Field(repr=False)
    mode: str = "0600"


class Membership(Message):
    """All that a host needs to be a node of one cluster.

    Before the control plane is up there is no join data: `files` is empty, and the host does everything but join (phase Prepared).
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
    sandbox_image: str  # pause, from the same registry
    registry: str  # host:port that images come from
    images: tuple[str, ...] = ()  # what a node of this cluster will run at once: fetched before it joins
    registry_ca: str = ""
    node_labels: tuple[str, ...] = ()  # key=value, for the node as it registers
    node_taints: tuple[str, ...] = ()  # key=value:effect
    allow_downgrade: bool = False  # whether packages may become older than those that the host has


class AgentTarget(Message):
    """Which version of the agent is to run on a host, and what it returns to if that one does not report."""

    version: str = Field(max_length=128)  # of the package ckp-agent
    image: str = Field(max_length=512)  # registry:port/path/ckp-agent@sha256:..., holding ckp-agent.deb and ckp-agent.rpm
    fallback_image: str = Field(default="", max_length=512)  # the version that runs now, for a host that has no package of it
    registry_ca: str = ""
    confirm_seconds: float = 0.0  # 0: the agent's own default


class Desired(Message):
    """The whole desired state of one host. `membership: null` means: be free, undo whatever you were."""

    type: Literal["desired"] = "desired"
    generation: int
    host: str
    membership: Membership | None = None
    agent: AgentTarget | None = None
    report_seconds: float = REPORT_SECONDS


class RenewalDue(Message):
    """The host's certificate comes to its end: the agent is asked for a signing request. An agent that knows no renewal ignores this frame."""

    type: Literal["renewal-due"] = "renewal-due"


class IssuedCertificate(Message):
    """The answer to a Renewal: the certificate, and the CAs that it and the hub's own chain to."""

    type: Literal["certificate"] = "certificate"
    certificate: str = Field(max_length=16384)
    ca: str = Field(max_length=65536)


class Hello(Message):
    """The agent's first frame on the channel, and once more whenever its facts have changed."""

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
    """One thing that was done on the host."""

    at: str  # RFC 3339
    step: str
    outcome: Literal["started", "done", "failed"]
    seconds: float = 0.0
    message: str = ""


class Report(Message):
    """The observed state of one host: what it is, what it did, and why it is stuck if it is."""

    type: Literal["report"] = "report"
    generation: Int  # the desired generation that this speaks of
    phase: Phase
    cluster: str = ""
    machine: str = ""
    release: str = ""
    reason: str = ""  # CamelCase, for machines
    message: str = ""  # a sentence, for people
    attempts: Int = 0
    journal: tuple[JournalEntry, ...] = ()  # the last ones, oldest first


class Renewal(Message):
    """A signing request over a new key of this host; the hub ignores its subject. Never sent unasked, since an older hub would not know it."""

    type: Literal["renewal"] = "renewal"
    csr: str = Field(max_length=8192)


AgentMessage = Annotated[Hello | Report | Renewal, Field(discriminator="type")]
