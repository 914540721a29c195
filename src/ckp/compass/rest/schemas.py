"""Bodies of requests and answers. JSON is camelCase; unknown fields of a request are refused, so a misspelt one is not silently dropped."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

T = TypeVar("T", bound="Answer")


class Body(BaseModel):
    """A request."""

    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True, validate_by_alias=True, extra="forbid", str_strip_whitespace=True)


class Answer(BaseModel):
    """An answer, from the attributes of what a service returned."""

    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True, validate_by_alias=True, from_attributes=True)


class Items(BaseModel, Generic[T]):
    """A list."""

    items: list[T]


class EventAnswer(Answer):
    """Something that became of an object."""

    at: datetime
    type: str
    reason: str
    message: str


class KeyAnswer(Answer):
    """A pre-shared key; `key` only where it was just made."""

    created_at: datetime
    use_count: int
    last_used_at: datetime | None
    expires_at: datetime | None
    max_uses: int | None
    key: str | None = None
    message: str = ""


class KeyBody(Body):
    """How long a new key holds, and for how many machines; both without an end if not said."""

    lifetime_seconds: int | None = Field(default=None, ge=60, le=366 * 24 * 3600)
    max_uses: int | None = Field(default=None, ge=1, le=1_000_000)


class ApproveBody(Body):
    """What a machine that looks like a host is, and the groups that the new host is in."""

    duplicate: Literal["", "replace", "separate"] = ""
    groups: list[str] = Field(default=[], max_length=100)


class RejectBody(Body):
    """Why a machine is turned away."""

    reason: str = Field(default="", max_length=500)


class BulkBody(Body):
    """Many decisions at once."""

    ids: list[str] = Field(min_length=1, max_length=1000)
    action: Literal["approve", "reject"]
    reason: str = Field(default="", max_length=500)


class HostRequestAnswer(Answer):
    """A machine that asks to become a host."""

    id: str
    state: str
    reason: str
    host: str
    machine_id: str
    source: str
    facts: dict[str, Any]
    key_digest: str
    duplicate_of: str
    duplicate_why: str
    created_at: datetime
    decided_at: datetime | None
    decided_by: str


class BulkAnswer(BaseModel):
    """What became of each; `ok` only if all went well."""

    ok: bool
    results: dict[str, dict[str, Any]]


class CriteriaBody(Body):
    """What a machine must be for a rule; what is empty does not matter."""

    hostnames: list[Annotated[str, Field(min_length=1, max_length=253)]] = Field(default=[], max_length=100)
    networks: list[Annotated[str, Field(max_length=50)]] = Field(default=[], max_length=100)
    systems: list[Annotated[str, Field(min_length=1, max_length=63)]] = Field(default=[], max_length=100)
    min_cpus: int = Field(default=0, ge=0)
    min_memory_bytes: int = Field(default=0, ge=0)


class RuleBody(Body):
    """A new approval rule."""

    name: str
    criteria: CriteriaBody
    groups: list[str] = Field(default=[], max_length=100)


class CriteriaAnswer(Answer):
    """What a rule asks for."""

    hostnames: list[str]
    networks: list[str]
    systems: list[str]
    min_cpus: int
    min_memory_bytes: int


class RuleAnswer(Answer):
    """An approval rule."""

    name: str
    criteria: CriteriaAnswer
    groups: list[str]
    approved: int
    created_at: datetime
    created_by: str


class HostChange(Body):
    """What can change of a host; what is left out stays."""

    cordoned: bool | None = None
    drained: bool | None = None
    labels: dict[str, str | None] | None = Field(default=None, max_length=100)
    taints: list[Annotated[str, Field(max_length=400)]] | None = Field(default=None, max_length=50)


class AgentBody(Body):
    """Which version of the agent is to run; empty: whichever does."""

    version: str = Field(max_length=128)
    confirm_seconds: int = Field(default=0, ge=0, le=3600)


class LeaveBody(Body):
    """How a host leaves its cluster."""

    shrink: bool = False
    force: bool = False


class HostAnswer(Answer):
    """A host."""

    name: str
    state: str
    connected: bool
    cordoned: bool
    free: bool
    groups: list[str]
    labels: dict[str, str]
    taints: list[str]
    cluster: str
    machine: str
    address: str
    os: str
    agent_version: str
    agent_wanted: str
    last_seen: datetime | None
    clock_offset_seconds: float | None
    created_at: datetime
    phase: str
    creation: str
    release: str
    reason: str
    message: str
    facts: dict[str, Any]
    conditions: list[dict[str, Any]]
    journal: list[dict[str, Any]]


class GroupBody(Body):
    """A new host group."""

    name: str
    description: str = Field(default="", max_length=1000)


class GroupChange(Body):
    """What can change of a group."""

    description: str = Field(max_length=1000)


class MembersBody(Body):
    """Hosts to add or remove."""

    hosts: list[str] = Field(min_length=1, max_length=1000)


class GroupAnswer(Answer):
    """A host group."""

    name: str
    description: str
    created_at: datetime
    hosts: list[str]
    free: int
    clusters: list[str]


class ControlPlaneBody(Body):
    """Of a new cluster's control plane."""

    replicas: int = 1


class ClusterBody(Body):
    """A new cluster."""

    name: str
    version: str
    cni: str = "cilium"
    host_group: str
    workers: int
    pod_cidr: str = Field(alias="podCIDR")
    service_cidr: str = Field(alias="serviceCIDR")
    control_plane: ControlPlaneBody = ControlPlaneBody()
    address: str = ""


class ScaleBody(Body):
    """A new number of workers."""

    workers: int


class MachineAnswer(Answer):
    """A worker."""

    name: str
    phase: str
    host: str
    node: str
    version: str
    ready: bool
    message: str


class ClusterAnswer(Answer):
    """A cluster."""

    name: str
    phase: str
    ready: bool
    failed: bool
    message: str
    version: str
    cni: str
    cni_version: str
    host_group: str
    workers: int
    workers_ready: int
    pod_cidr: str = Field(serialization_alias="podCIDR")
    service_cidr: str = Field(serialization_alias="serviceCIDR")
    control_plane_replicas: int
    control_plane_ready: bool
    endpoint: str
    created_at: datetime
    requested_at: datetime
    steps: list[dict[str, Any]]
    conditions: list[dict[str, Any]]
    machines: list[MachineAnswer]


class AuditAnswer(Answer):
    """A change."""

    id: int
    at: datetime
    actor: str
    action: str
    target: str
    detail: dict[str, Any]
