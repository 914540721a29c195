"""Upgrades of clusters: requests and views."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field, model_validator

from ckp.api.compass.base import Request, View, is_none
from ckp.api.compass.clusters import DAY, MINUTE, Seconds


class UpgradeRequest(Request):
    """To which version a cluster is upgraded, and how."""

    version: str = Field(pattern=r"^v\d+\.\d+\.\d+$", examples=["v1.35.1"], description="A release, such as v1.35.1.")
    dry_run: bool = Field(default=False, description="Only check, and show the way and the nodes; nothing of the cluster is changed.")
    accept: list[str] = Field(default=[], description="Names of findings that do not hold it up, of those that may be accepted.")
    pools: list[str] = Field(default=[], description="Pools (MachineDeployments) whose nodes are upgraded, in this order; empty: all.")
    nodes: list[str] = Field(default=[], description="Nodes that are upgraded, in this order; empty: all.")
    at_once: int = Field(default=1, ge=1, le=1000, description="How many nodes are upgraded at the same time.")
    after_first: int = Field(default=0, ge=0, description="Stop once so many nodes are done, until it is resumed; 0: do not.")
    host_timeout: Seconds = Field(
        default=60 * MINUTE,
        ge=MINUTE,
        le=7 * DAY,
        description="How long a host is waited for that is offline, or can't upgrade its node; then the upgrade fails, and the node stays as it is.",
    )
    soak: bool = Field(default=False, description="Each step of the control plane runs the new programs as the minor before until it is committed.")
    commit_after: Seconds | None = Field(default=None, ge=60, le=30 * DAY, description="A step that has soaked so long is committed by itself.")

    @model_validator(mode="after")
    def _only_what_soaks(self) -> UpgradeRequest:
        if self.commit_after is not None and not self.soak:
            raise ValueError("commitAfter counts from the beginning of a soak: ask for soak as well")
        return self


class FindingView(View):
    """What a check has found."""

    name: str = Field(description="By which it is accepted.")
    where: str = ""
    message: str = ""
    remedy: str = Field(default="", description="What a person can do about it.")
    acceptable: bool = False
    accepted: bool = False


class UpgradedView(View):
    """The control plane's step, or a node's."""

    name: str = Field(default="", description="The node; empty for the control plane.")
    pool: str = ""
    before: str = Field(default="", validation_alias="from", serialization_alias="from", description="A node's version before.")
    version: str = Field(default="", description="What it is brought to.")
    state: str = ""
    message: str = ""
    started_at: datetime | None = Field(default=None, exclude_if=is_none)
    finished_at: datetime | None = Field(default=None, exclude_if=is_none)
    waiting_since: datetime | None = Field(default=None, exclude_if=is_none, description="Since when its host is waited for, because it can do nothing.")
    waiting_until: datetime | None = Field(default=None, exclude_if=is_none, description="When that ends, and the upgrade with it.")


class UpgradeView(View):
    """An upgrade of a cluster."""

    id: str
    version: str
    dry_run: bool = False
    phase: str = Field(
        default="", description="Checking, Blocked, Preparing, ControlPlane, Nodes, Soaking, Paused, Failed, Aborted, RolledBack, Planned or Done."
    )
    message: str = Field(default="", description="What it waits for, or why it ended, and how to go on.")
    over: bool = Field(default=False, description="Whether nothing more happens.")
    before: str = Field(default="", validation_alias="from", serialization_alias="from", description="The control plane's version at its beginning.")
    path: list[str] = Field(default=[], description="The releases that the control plane goes through.")
    findings: list[FindingView] = []
    control_plane: UpgradedView = UpgradedView()
    soak: bool = Field(default=False, description="Whether each step of the control plane stops before it is committed.")
    commit_after: Seconds | None = Field(default=None, exclude_if=is_none)
    way_back: str = Field(default="", description="How the control plane could go back now, and what that costs.")
    nodes: list[UpgradedView] = []
    started_at: datetime | None = Field(default=None, exclude_if=is_none)
    finished_at: datetime | None = Field(default=None, exclude_if=is_none)
