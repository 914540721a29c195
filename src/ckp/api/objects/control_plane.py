"""ManagedControlPlane: a workload cluster's hosted control plane, its addons, and the cluster's steps."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ckp.api.objects.base import (
    ApiModel,
    Condition,
    Conditions,
    ControlPlaneEndpoint,
    Endpoint,
    Int32,
    Resource,
    Schema,
    TemplateMeta,
    Texts,
    Time,
    find_condition,
)
from ckp.api.states import StepState

DEFAULT_CNI = "cilium"
NO_CNI = "none"


class LoadBalancer(ApiModel):
    """How the API server is reached from outside."""

    address: Annotated[str, Schema("The address to ask the load balancer for; empty: any.")] = ""


FIXED_ETCD = [
    {
        "rule": "(has(self.etcd) ? self.etcd.replicas : 1) == (has(oldSelf.etcd) ? oldSelf.etcd.replicas : 1)",
        "message": "the number of etcd's members can't be changed: a cluster keeps that with which it was made; make a new one with another number",
    },
    {
        "rule": "(has(self.etcd) ? self.etcd.size : '2Gi') == (has(oldSelf.etcd) ? oldSelf.etcd.size : '2Gi')",
        "message": "the size of etcd's volumes can't be changed here: enlarge the PersistentVolumeClaims data-<cluster>-etcd-<n>, and the quota follows",
    },
]
"""For the whole spec, since `etcd` may be absent, and then counts as its defaults."""


class EtcdSpec(ApiModel):
    """The cluster's own etcd."""

    replicas: Annotated[int, Schema(enum=[1, 3, 5], defaulted=True)] = 1
    size: Annotated[str, Schema("Of each member's volume.", defaulted=True)] = "2Gi"
    storage_class: Annotated[str, Schema("Empty: the default class.")] = ""


class AddonsSpec(ApiModel):
    """What is installed into the cluster."""

    cni: Annotated[str, Schema(enum=[DEFAULT_CNI, NO_CNI], defaulted=True)] = DEFAULT_CNI
    cni_version: str = ""


ONE_PLACE = [
    {
        "rule": "(has(self.claim) && self.claim != '') != (has(self.s3) && has(self.s3.endpoint) && self.s3.endpoint != '')",
        "message": "name one place for backups: s3 (a bucket) or claim (a volume)",
    },
]


class BackupBucket(ApiModel):
    """A bucket of an object store."""

    endpoint: Annotated[str, Schema("Such as https://s3.example.com.", pattern=r"^(https?://.+)?$")] = ""
    bucket: str = ""
    prefix: Annotated[str, Schema("What names of its objects begin with, without slashes at the ends.")] = ""
    region: Annotated[str, Schema("Empty: us-east-1.")] = ""
    secret: Annotated[str, Schema("A Secret of this namespace with `credentials`, as ~/.aws/credentials, and, if it is private, the store's CA `ca.crt`.")] = ""


class BackupSpec(ApiModel):
    """When the cluster's etcd, with its CAs, is backed up, and to where. Absent: not at all."""

    every: Annotated[str, Schema("Such as 6h; at least 5m.", pattern=r"^([0-9]+h)?([0-9]+m)?([0-9]+s)?$", defaulted=True)] = "24h"
    keep: Annotated[int, Schema("How many of the cluster's stay; older ones are deleted.", minimum=1, maximum=60, defaulted=True)] = 14
    s3: BackupBucket = Field(default_factory=BackupBucket)
    claim: Annotated[str, Schema("A PersistentVolumeClaim of this namespace, instead of a bucket.")] = ""

    @property
    def asked(self) -> bool:
        """Whether backups are asked for."""
        return bool(self.claim or self.s3.endpoint)


class UpgradeSpec(ApiModel):
    """How the control plane goes to another version. What is asked for here counts for a step that begins; `soak` also ends the soak of one."""

    soak: Annotated[
        bool,
        Schema(
            "The new release's programs behave as the minor before (--emulated-version) until this is false again, which commits the step."
            " Until then spec.version can be set back."
        ),
    ] = False
    commit_after: Annotated[
        str, Schema("Such as 24h: a step that has soaked so long is committed by itself; empty: it is not.", pattern=r"^([0-9]+h)?([0-9]+m)?([0-9]+s)?$")
    ] = ""


class ManagedControlPlaneSpec(ApiModel):
    """What is asked for."""

    version: Annotated[str, Schema("A release of the catalog, such as v1.35.1.", pattern=r"^v\d+\.\d+\.\d+$", required=True)] = ""
    replicas: Annotated[Int32, Schema("Of the API server, controller-manager and scheduler.", minimum=1, defaulted=True)] = 1
    control_plane_endpoint: ControlPlaneEndpoint = Field(default_factory=Endpoint)
    load_balancer: LoadBalancer = Field(default_factory=LoadBalancer)
    cert_sans: Annotated[Texts, Schema("Further DNS names and IPv4 addresses in the API server's certificate.")] = Field(default=(), alias="certSANs")
    etcd: EtcdSpec = Field(default_factory=EtcdSpec)
    addons: AddonsSpec = Field(default_factory=AddonsSpec)
    backup: Annotated[BackupSpec, Schema(x_kubernetes_validations=ONE_PLACE)] = Field(default_factory=BackupSpec)
    upgrade: UpgradeSpec = Field(default_factory=UpgradeSpec)


class AddonStatus(ApiModel):
    """One addon of the cluster."""

    name: Annotated[str, Schema(required=True)] = ""
    version: str = ""
    state: str = ""
    message: str = ""


class StepStatus(ApiModel):
    """One of the cluster's fourteen steps."""

    number: Annotated[int, Schema(required=True)] = 0
    phase: Annotated[str, Schema(required=True)] = ""
    name: Annotated[str, Schema(required=True)] = ""
    title: Annotated[str, Schema(required=True)] = ""
    state: Annotated[str, Schema(required=True, enum=[state.value for state in StepState])] = ""
    started_at: Time = ""
    finished_at: Time = ""
    message: str = ""


class EtcdStatus(ApiModel):
    """What was last seen of the cluster's etcd; not kept to the minute."""

    cluster_id: Annotated[str, Schema("etcd's own id of its cluster, in hexadecimal digits.")] = ""
    revision: Annotated[int, Schema("The highest revision that was seen.", format="int64")] = 0
    database_bytes: Annotated[int, Schema("Of the largest member.", format="int64")] = 0
    in_use_bytes: Annotated[int, Schema("Of the same, what holds something.", format="int64")] = 0
    quota_bytes: Annotated[int, Schema("What the database may take.", format="int64")] = 0


class BackupEntry(ApiModel):
    """A backup that was proved and is kept. What is not known of one that was found there is 0 or empty."""

    id: Annotated[str, Schema("When it was begun: 20260131T040500Z.", required=True)] = ""
    size_bytes: Annotated[int, Schema(format="int64")] = 0
    revision: Annotated[int, Schema("Of its etcd.", format="int64")] = 0
    version: Annotated[str, Schema("Of the cluster's Kubernetes then.")] = ""
    finished_at: Time = ""


class BackupStatus(ApiModel):
    """Backups of the cluster."""

    handled: Annotated[str, Schema("The last request of a person that was taken up.")] = ""
    running: Annotated[str, Schema("The id of the one that is being made.")] = ""
    kept: Annotated[tuple[BackupEntry, ...], Schema("Those that are there, the oldest first.")] = ()
    failed: Annotated[str, Schema("The id of the last one, if it failed.")] = ""
    failures: Annotated[int, Schema("How many have failed since the newest that is there.")] = 0
    message: Annotated[str, Schema("Why it failed.")] = ""


class RestoreStatus(ApiModel):
    """The last restore in place."""

    id: Annotated[str, Schema("As it was asked for: backup and time.")] = ""
    backup: str = ""
    phase: str = ""
    held: Annotated[bool, Schema("The cluster's data is in the making, so its API server must not run.")] = False
    started_at: Time = ""
    finished_at: Time = ""
    message: str = ""


class ControlPlaneUpgrade(ApiModel):
    """The last step of the control plane to another version. It is put down before anything is changed."""

    from_version: Annotated[str, Schema("What all of the control plane was of before.")] = Field(default="", alias="from")
    version: str = ""
    started_at: Time = ""
    finished_at: Annotated[Time, Schema("When all of the control plane was of the version; absent while the step goes on.")] = ""
    emulated: Annotated[str, Schema("The minor as which its programs behave until it is committed, such as v1.34; absent where none does, or no longer.")] = ""
    soaking_since: Annotated[Time, Schema("When all of the programs that soak were of the version, and ready.")] = ""
    committed_at: Annotated[Time, Schema("When the soak was ended: from then on it does not go back.")] = ""
    rolled_back: Annotated[str, Schema("Of a step back: the version that was not committed.")] = ""

    @property
    def under_way(self) -> bool:
        """Whether it was begun and is not finished."""
        return bool(self.version) and not self.finished_at

    @property
    def goes_back(self) -> bool:
        """Whether it undoes a step that was not committed."""
        return self.under_way and bool(self.rolled_back)

    @property
    def uncommitted(self) -> bool:
        """Whether it can still be rolled back."""
        return self.under_way and bool(self.emulated)


ONE_MINOR = [
    {
        "rule": (
            "!has(self.spec) || !has(oldSelf.spec) || self.spec.version == oldSelf.spec.version"
            " || !has(self.status) || !has(self.status.version) || self.status.version == ''"
            " || (self.spec.version.split('.')[0] == self.status.version.split('.')[0]"
            " && int(self.spec.version.split('.')[1]) - int(self.status.version.split('.')[1]) in [0, 1])"
        ),
        "message": "a control plane goes up one minor version at a time and never back: see status.version, and `ckp cluster upgrade` for the whole way",
    },
    {
        "rule": (
            "!has(self.spec) || !has(oldSelf.spec) || self.spec.version == oldSelf.spec.version"
            " || !has(self.status) || !has(self.status.upgrade) || !has(self.status.upgrade.version) || has(self.status.upgrade.finishedAt)"
            " || (has(self.status.upgrade.emulated) && self.status.upgrade.emulated != '')"
            " || self.spec.version.split('.')[1] == self.status.upgrade.version.split('.')[1]"
        ),
        "message": "a step to another minor goes on and is finished first (status.upgrade); it is rolled back only before it is committed (spec.upgrade)",
    },
]
"""For the whole object, since it compares what is asked for with what runs; only where the version is changed, so that no stored object becomes invalid.
The controller refuses what is left (a lower patch version, a release that is not installed) by the condition Upgraded."""


class ManagedControlPlaneStatus(ApiModel):
    """What is so. `addons` and `steps` have a controller each, and `conditions` two more: WorkloadReady is written beside the control plane's own."""

    initialized: Annotated[bool, Schema("The API server has answered once (contract).")] = False
    ready: Annotated[bool, Schema("The API server answers (contract).")] = False
    external_managed_control_plane: Annotated[bool, Schema("There are no control plane Machines (contract).")] = False
    version: Annotated[str, Schema("Of what all of the control plane is: API servers, controllers, and what kubeadm's phases wrote.")] = ""
    replicas: Int32 = 0
    ready_replicas: Int32 = 0
    updated_replicas: Int32 = 0
    unavailable_replicas: Int32 = 0
    selector: str = ""
    failure_reason: str = ""
    failure_message: str = ""
    addons: Annotated[tuple[AddonStatus, ...], Schema(x_kubernetes_list_type="map", x_kubernetes_list_map_keys=["name"])] = ()
    steps: tuple[StepStatus, ...] = ()
    conditions: Conditions = ()
    etcd: EtcdStatus = Field(default_factory=EtcdStatus)
    backup: BackupStatus = Field(default_factory=BackupStatus)
    restore: RestoreStatus = Field(default_factory=RestoreStatus)
    upgrade: ControlPlaneUpgrade = Field(default_factory=ControlPlaneUpgrade)

    def addon(self, name: str) -> AddonStatus:
        """The addon of this name; an empty one if nothing is known of it."""
        return next((addon for addon in self.addons if addon.name == name), AddonStatus())


class ManagedControlPlane(Resource):
    """The whole object."""

    spec: Annotated[ManagedControlPlaneSpec, Schema(x_kubernetes_validations=FIXED_ETCD)] = Field(default_factory=ManagedControlPlaneSpec)
    status: ManagedControlPlaneStatus = Field(default_factory=ManagedControlPlaneStatus)

    def condition(self, kind: str) -> Condition:
        """Its condition of this type; an empty one if it is absent."""
        return find_condition(self.status.conditions, kind)

    @property
    def running_version(self) -> str:
        """The release that its parts are of, or are being brought to; what is asked for may be refused, or wait."""
        return self.status.upgrade.version if self.status.upgrade.under_way else self.status.version or self.spec.version


class ManagedControlPlaneTemplateResource(ApiModel):
    """The control plane that a template describes."""

    metadata: TemplateMeta = Field(default_factory=TemplateMeta)
    spec: Annotated[ManagedControlPlaneSpec, Schema(required=True)] = Field(default_factory=ManagedControlPlaneSpec)


class ManagedControlPlaneTemplateSpec(ApiModel):
    """What a template holds."""

    template: Annotated[ManagedControlPlaneTemplateResource, Schema(required=True)] = Field(default_factory=ManagedControlPlaneTemplateResource)


class ManagedControlPlaneTemplate(Resource):
    """For Cluster API's ClusterClasses."""

    spec: ManagedControlPlaneTemplateSpec = Field(default_factory=ManagedControlPlaneTemplateSpec)
