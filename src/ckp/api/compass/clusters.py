"""Clusters."""

from __future__ import annotations

from datetime import datetime

from pydantic import ConfigDict, Field

from ckp.api.compass.base import Request, View, is_none
from ckp.api.compass.conditions import ConditionView


class ControlPlaneRequest(Request):
    """Of a new cluster's control plane."""

    replicas: int = Field(default=1, description="API servers. Only 1 is supported: etcd is not replicated yet.")


class ClusterRequest(Request):
    """A new cluster."""

    name: str
    version: str = Field(description="The release, such as v1.35.1.")
    cni: str = Field(default="cilium", description="Network plugin, or none.")
    host_group: str = Field(description="The group that its workers are taken from.")
    workers: int
    pod_cidr: str = Field(validation_alias="podCIDR", serialization_alias="podCIDR")
    service_cidr: str = Field(validation_alias="serviceCIDR", serialization_alias="serviceCIDR")
    control_plane: ControlPlaneRequest = ControlPlaneRequest()
    address: str = Field(default="", description="IPv4 address of its API server; empty: one from the pool.")


class ScaleRequest(Request):
    """A new number of workers."""

    workers: int


class MachineView(View):
    """A worker."""

    name: str
    phase: str
    host: str
    node: str
    version: str
    ready: bool
    message: str


class StepView(View):
    """One step of a cluster's creation."""

    model_config = ConfigDict(extra="allow")

    number: int = 0
    phase: str = ""
    name: str = ""
    title: str = ""
    state: str = Field(default="", description="Pending, Running, Done, Skipped or Failed.")
    message: str = ""
    started_at: datetime | None = Field(default=None, exclude_if=is_none)
    finished_at: datetime | None = Field(default=None, exclude_if=is_none)

    @property
    def seconds(self) -> float | None:
        """How long it took; None while it is not finished."""
        if self.started_at is None or self.finished_at is None:
            return None
        return max(0.0, (self.finished_at - self.started_at).total_seconds())


class ClusterView(View):
    """A cluster."""

    name: str
    phase: str = Field(description="Pending, Provisioning, Provisioned, Ready, Failed or Deleting.")
    ready: bool
    failed: bool = Field(description="Failed for good: waiting does not help.")
    message: str = Field(description="Why it is not ready.")
    version: str
    cni: str
    cni_version: str
    host_group: str
    workers: int
    workers_ready: int
    pod_cidr: str = Field(validation_alias="podCIDR", serialization_alias="podCIDR")
    service_cidr: str = Field(validation_alias="serviceCIDR", serialization_alias="serviceCIDR")
    control_plane_replicas: int
    control_plane_ready: bool
    endpoint: str = Field(description="URL of its API server; empty while it has none.")
    created_at: datetime
    requested_at: datetime
    steps: list[StepView]
    conditions: list[ConditionView]
    machines: list[MachineView]


class DeletionView(View):
    """The answer to a deletion, which goes on after it."""

    status: str = "deleting"
