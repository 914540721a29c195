"""Bodies of requests and answers. JSON is camelCase; unknown fields of a request are refused, so a misspelt one is not silently dropped."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

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


class KeyAnswer(Answer):
    """A pre-shared key; `key` only where it was just made."""

    created_at: datetime
    use_count: int
    last_used_at: datetime | None
    key: str | None = None
    message: str = ""


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
    created_at: datetime
    decided_at: datetime | None
    decided_by: str


class BulkAnswer(BaseModel):
    """What became of each; `ok` only if all went well."""

    ok: bool
    results: dict[str, dict[str, Any]]


class HostAnswer(Answer):
    """A host."""

    name: str
    state: str
    connected: bool
    cordoned: bool
    free: bool
    groups: list[str]
    cluster: str
    machine: str
    address: str
    os: str
    agent_version: str
    last_seen: datetime | None
    created_at: datetime
    phase: str
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
