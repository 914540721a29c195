"""Clusters."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema

from ckp.api.compass.base import Request, View, is_none
from ckp.api.compass.conditions import ConditionView
from ckp.api.errors import ErrorDetail
from ckp.kits.clock import exact_duration, parse_duration

MINUTE, DAY = 60, 86400


def _seconds(value: Any) -> Any:
    return parse_duration(value) if isinstance(value, str) else value


Seconds = Annotated[
    int, BeforeValidator(_seconds), PlainSerializer(exact_duration, return_type=str, when_used="json"), WithJsonSchema({"type": "string", "example": "10m"})
]
"""A number of seconds; in JSON a duration such as `90s`, `10m` or `1h30m`."""


class Timeouts(Request):
    """How long a cluster waits for what may not come. The one table of them, with the defaults; each is stored in the object where it acts."""

    drain: Seconds = Field(
        default=10 * MINUTE,
        ge=1,
        le=DAY,
        description="How long pods may take to leave a node, with their grace periods and disruption budgets; then it leaves all the same.",
    )
    volume_detach: Seconds = Field(default=5 * MINUTE, ge=1, le=DAY, description="How long the volumes of a drained node may take to be detached.")
    node_deletion: Seconds = Field(default=2 * MINUTE, ge=1, le=DAY, description="How long the API server may take to delete the Node of a host that has left.")
    image_fetch: Seconds = Field(
        default=15 * MINUTE,
        ge=1,
        le=DAY,
        description="How long a new worker may fetch the images that every node runs before it joins without the rest. It is a part of its start-up.",
    )
    node_startup: Seconds = Field(default=30 * MINUTE, ge=30, le=DAY, description="How long a new worker may take to become a node before it is replaced.")
    node_unhealthy: Seconds = Field(default=5 * MINUTE, ge=30, le=DAY, description="How long a node may be not Ready before it is replaced.")


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
    cert_sans: list[str] = Field(
        default=[],
        validation_alias="certSANs",
        serialization_alias="certSANs",
        description="Further DNS names and IPv4 addresses in its API server's certificate.",
    )
    timeouts: Timeouts = Timeouts()


class BackupSettings(Request):
    """When a cluster is backed up, and to where: a bucket, or a volume. What is left out stays."""

    every: Seconds | None = Field(default=None, ge=5 * MINUTE, le=31 * DAY, description="How often.")
    keep: int | None = Field(default=None, ge=1, le=60, description="How many backups stay.")
    endpoint: str | None = Field(default=None, pattern=r"^https?://[^\s]+$", description="Of the object store, such as https://s3.example.com.")
    bucket: str | None = Field(default=None, min_length=1, description="The bucket.")
    prefix: str | None = Field(default=None, description="What names of its objects begin with.")
    region: str | None = Field(default=None, description="The bucket's region; empty: us-east-1.")
    secret: str | None = Field(default=None, min_length=1, description="The Secret of the project's namespace with the access key to the bucket.")
    claim: str | None = Field(default=None, min_length=1, description="A PersistentVolumeClaim of the project's namespace, instead of a bucket.")
    off: bool = Field(default=False, description="End backups by schedule; those that are there stay.")


class RestoreRequest(Request):
    """Which backup a cluster is put back to."""

    backup: str = Field(description="Its id, such as 20260131T040500Z.")


class ClusterChange(Request):
    """What is changed of a cluster; what is left out stays."""

    workers: int | None = Field(default=None, description="A new number of workers.")
    timeouts: Timeouts | None = Field(default=None, description="Those that are given are changed, also for the workers that are there.")
    cert_sans: list[str] | None = Field(
        default=None,
        validation_alias="certSANs",
        serialization_alias="certSANs",
        description="All further names and addresses in its API server's certificate, in place of those before; the certificate is issued again.",
    )
    backup: BackupSettings | None = Field(default=None, description="When it is backed up, and to where.")


class BackupView(View):
    """A backup of a cluster."""

    id: str = Field(description="When it was begun: 20260131T040500Z.")
    made_at: datetime | None = Field(default=None, exclude_if=is_none, description="The same, as a time.")
    result: str = Field(description="Proved (restored on trial, and read back), Running or Failed.")
    size_bytes: int = Field(default=0, description="Of its file; 0 if not known.")
    revision: int = Field(default=0, description="Of its etcd; 0 if not known.")
    version: str = Field(default="", description="Of the cluster's Kubernetes then; empty if not known.")
    message: str = Field(default="", description="Why it failed.")


class RestoreView(View):
    """The last restore of a cluster."""

    backup: str = ""
    phase: str = Field(default="", description="Requested, Checking, Stopping, Placing, Starting, Done or Failed; empty: there was none.")
    message: str = ""
    finished_at: datetime | None = Field(default=None, exclude_if=is_none)


class BackupsView(View):
    """Backups of a cluster."""

    schedule: str = Field(default="", description="How often one is made; empty: not at all.")
    keep: int = Field(default=0, description="How many stay.")
    place: str = Field(default="", description="Where they are.")
    fresh: str = Field(
        default="Unknown", description="True, False or Unknown: whether the newest is as new as the schedule asks for, and none has failed since."
    )
    message: str = Field(default="", description="Why it is not.")
    pending: bool = Field(default=False, description="One that was asked for is not begun yet, or is being made.")
    items: list[BackupView] = Field(default=[], description="The newest first.")
    restore: RestoreView = RestoreView()


class CheckView(View):
    """What would become of a request for a cluster, were it made now."""

    ok: bool = Field(description="Whether it would be taken.")
    refusals: list[ErrorDetail] = Field(description="All that speaks against it, each as `POST /clusters` would answer it.")


class MachineView(View):
    """A worker."""

    name: str
    phase: str
    host: str
    node: str
    version: str
    ready: bool = Field(description="Seen to be ready.")
    ready_status: str = Field(default="", description="True, False, or Unknown: it was a node when the cluster's API server could last be asked.")
    message: str


class StepView(View):
    """One step of a cluster's creation."""

    model_config = ConfigDict(extra="allow")

    number: int = 0
    phase: str = ""
    name: str = ""
    title: str = ""
    state: str = Field(default="", description="Pending, Running, Done, Skipped, Failed, or Unknown: it can't be seen now.")
    message: str = ""
    started_at: datetime | None = Field(default=None, exclude_if=is_none)
    finished_at: datetime | None = Field(default=None, exclude_if=is_none)

    @property
    def seconds(self) -> float | None:
        """How long it took; None while it is not finished."""
        if self.started_at is None or self.finished_at is None:
            return None
        return max(0.0, (self.finished_at - self.started_at).total_seconds())


class TimeoutsView(View):
    """As they are set, with their units. `none`: it waits without end. Empty: not known, as of a cluster whose objects do not exist yet."""

    drain: str = ""
    volume_detach: str = ""
    node_deletion: str = ""
    image_fetch: str = ""
    node_startup: str = ""
    node_unhealthy: str = ""


class ReplacementView(View):
    """A worker that was replaced because it was not healthy."""

    machine: str = ""
    host: str = ""
    cause: str = Field(default="", description="Startup, Unhealthy or Lost.")
    reason: str = ""
    at: datetime
    number: int = Field(default=1, description="Its place among the replacements by this cause within 24 hours; the first is 1.")


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
    workers_ready: int = Field(description="Seen to be ready.")
    workers_unknown: int = Field(default=0, description="Of which it can't be seen whether they are ready, since the cluster's API server can't be asked.")
    pod_cidr: str = Field(validation_alias="podCIDR", serialization_alias="podCIDR")
    service_cidr: str = Field(validation_alias="serviceCIDR", serialization_alias="serviceCIDR")
    control_plane_replicas: int
    control_plane_ready: bool
    endpoint: str = Field(description="URL of its API server; empty while it has none.")
    cert_sans: list[str] = Field(
        default=[],
        validation_alias="certSANs",
        serialization_alias="certSANs",
        description="Further names and addresses that its API server's certificate is to have; it is issued with them once CertificatesAvailable is True.",
    )
    created_at: datetime
    requested_at: datetime
    steps: list[StepView]
    conditions: list[ConditionView]
    machines: list[MachineView]
    timeouts: TimeoutsView = TimeoutsView()
    replacements: list[ReplacementView] = Field(default=[], description="Workers that were replaced because they were not healthy, the last ones.")
    left_behind: list[str] = Field(default=[], description="While it is being deleted: the volumes that it leaves in other systems.")


class DeletionView(View):
    """The answer to a deletion, which goes on after it."""

    status: str = "deleting"
