"""ClusterUpgrade: one upgrade of a whole workload cluster, from its checks to its last node. It happens in place: no Machine is replaced."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ckp.api.objects.base import ApiModel, Conditions, Int32, Resource, Schema, Texts, Time
from ckp.api.platform import release_order
from ckp.api.states import UpgradePhase
from ckp.kits.clock import parse_duration

HOST_TIMEOUT = "1h"
"""How long a host that can do nothing is waited for."""

FIXED_AIM = [
    {
        "rule": (
            "self.clusterName == oldSelf.clusterName && self.version == oldSelf.version"
            " && (has(self.dryRun) && self.dryRun) == (has(oldSelf.dryRun) && oldSelf.dryRun)"
        ),
        "message": "clusterName, version and dryRun of an upgrade can't be changed: abort it, and make another one",
    },
]
OVER = (UpgradePhase.DONE, UpgradePhase.FAILED, UpgradePhase.ABORTED, UpgradePhase.ROLLED_BACK, UpgradePhase.PLANNED)
"""Phases in which nothing more happens. Whoever goes on makes another object: what is done already is found to be done."""


class ClusterUpgradeSpec(ApiModel):
    """What is asked for."""

    cluster_name: Annotated[str, Schema("The Cluster, in the same namespace.", required=True)] = ""
    version: Annotated[str, Schema("A release of the catalog, such as v1.35.1.", pattern=r"^v\d+\.\d+\.\d+$", required=True)] = ""
    dry_run: Annotated[bool, Schema("Only check, and tell the way and the nodes; nothing is changed.")] = False
    pause: Annotated[bool, Schema("Begin nothing further: what has begun (a node, a step of the control plane) is finished.")] = False
    abort: Annotated[bool, Schema("End it: as with pause, and for good. What is upgraded stays so.")] = False
    accept: Annotated[Texts, Schema("Names of findings that do not hold it up, of those that may be accepted.")] = ()
    pools: Annotated[Texts, Schema("The MachineDeployments whose nodes are upgraded, in this order; empty: all, by their names.")] = ()
    nodes: Annotated[Texts, Schema("The nodes that are upgraded, in this order; empty: all. The versions of pools are then left as they are.")] = ()
    at_once: Annotated[Int32, Schema("How many nodes are upgraded at the same time.", minimum=1, defaulted=True)] = 1
    after_first: Annotated[Int32, Schema("Stop once so many nodes are done, until this is 0 again; 0: do not stop.", minimum=0)] = 0
    host_timeout: Annotated[
        str,
        Schema(
            "How long a host is waited for that is offline, or can't upgrade its node; then the upgrade fails, and its node stays as it is.",
            pattern=r"^([0-9]+h)?([0-9]+m)?([0-9]+s)?$",
        ),
    ] = HOST_TIMEOUT
    soak: Annotated[bool, Schema("Each step of the control plane stops before it is committed, until commit or rollback says how it goes on.")] = False
    commit_after: Annotated[
        str, Schema("Such as 24h: a step that has soaked so long is committed by itself; empty: it is not.", pattern=r"^([0-9]+h)?([0-9]+m)?([0-9]+s)?$")
    ] = ""
    commit: Annotated[str, Schema("Commit the control plane's steps up to this version, such as v1.34.3.", pattern=r"^(v\d+\.\d+\.\d+)?$")] = ""
    rollback: Annotated[bool, Schema("Undo the step that was not committed, and end; where there is none, only end.")] = False

    @property
    def host_timeout_seconds(self) -> int:
        """`host_timeout` in seconds; its default where it is empty."""
        return parse_duration(self.host_timeout or HOST_TIMEOUT)

    def soaks(self, version: str) -> bool:
        """Whether the control plane's step to this version waits for a commit that was not given yet."""
        return self.soak and not (self.commit and release_order(version) <= release_order(self.commit))


class UpgradeFinding(ApiModel):
    """What a check has found."""

    name: Annotated[str, Schema("By which it is accepted.", required=True)] = ""
    where: str = ""
    message: str = ""
    remedy: str = ""
    acceptable: Annotated[bool, Schema("Whether spec.accept may pass it.")] = False
    accepted: bool = False


class UpgradedPart(ApiModel):
    """The control plane's way."""

    version: Annotated[str, Schema("The step that is, or was last, asked for.")] = ""
    state: str = ""
    message: str = ""
    started_at: Time = ""
    finished_at: Time = ""


class UpgradedNode(ApiModel):
    """One node's way."""

    name: Annotated[str, Schema(required=True)] = ""
    pool: str = ""
    from_version: str = Field(default="", alias="from")
    to: str = ""
    state: str = ""
    message: str = ""
    started_at: Time = ""
    finished_at: Time = ""
    waiting_since: Annotated[Time, Schema("Since when its host is waited for, because it can do nothing; absent: it is not.")] = ""
    waiting_until: Annotated[Time, Schema("When that ends, and the upgrade with it.")] = ""


class ClusterUpgradeStatus(ApiModel):
    """What became of it."""

    phase: Annotated[str, Schema(enum=[phase.value for phase in UpgradePhase])] = ""
    message: Annotated[str, Schema("What it waits for, or why it ended; and how to go on.")] = ""
    started_at: Time = ""
    finished_at: Time = ""
    from_version: Annotated[str, Schema("The control plane's version at its beginning.")] = Field(default="", alias="from")
    path: Annotated[Texts, Schema("The releases that the control plane goes through.")] = ()
    findings: tuple[UpgradeFinding, ...] = ()
    backup_requested_at: Annotated[Time, Schema("When the upgrade has asked for a backup; absent: it did not have to.")] = ""
    control_plane: UpgradedPart = Field(default_factory=UpgradedPart)
    nodes: tuple[UpgradedNode, ...] = ()
    conditions: Conditions = ()


class ClusterUpgrade(Resource):
    """The whole object."""

    spec: Annotated[ClusterUpgradeSpec, Schema(required=True, x_kubernetes_validations=FIXED_AIM)] = Field(default_factory=ClusterUpgradeSpec)
    status: ClusterUpgradeStatus = Field(default_factory=ClusterUpgradeStatus)

    @property
    def over(self) -> bool:
        """Whether nothing more happens."""
        return self.status.phase in OVER
