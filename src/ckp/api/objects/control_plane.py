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


class ManagedControlPlaneSpec(ApiModel):
    """What is asked for."""

    version: Annotated[str, Schema("A release of the catalog, such as v1.35.1.", pattern=r"^v\d+\.\d+\.\d+$", required=True)] = ""
    replicas: Annotated[Int32, Schema("Of the API server, controller-manager and scheduler.", minimum=1, defaulted=True)] = 1
    control_plane_endpoint: ControlPlaneEndpoint = Field(default_factory=Endpoint)
    load_balancer: LoadBalancer = Field(default_factory=LoadBalancer)
    cert_sans: Annotated[Texts, Schema("Further DNS names and IPv4 addresses in the API server's certificate.")] = Field(default=(), alias="certSANs")
    etcd: EtcdSpec = Field(default_factory=EtcdSpec)
    addons: AddonsSpec = Field(default_factory=AddonsSpec)


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


class ManagedControlPlaneStatus(ApiModel):
    """What is so. `addons` and `steps` have a controller each, and `conditions` two more: WorkloadReady is written beside the control plane's own."""

    initialized: Annotated[bool, Schema("The API server has answered once (contract).")] = False
    ready: Annotated[bool, Schema("The API server answers (contract).")] = False
    external_managed_control_plane: Annotated[bool, Schema("There are no control plane Machines (contract).")] = False
    version: str = ""
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
