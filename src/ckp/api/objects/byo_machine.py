"""ByoMachine: the request of a Cluster API Machine for a host, and what became of it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ckp.api.objects.base import ApiModel, Condition, Conditions, Labels, ObjectReference, Resource, Schema, TemplateMeta, Texts, Time, find_condition
from ckp.api.objects.byo_host import HostInfo
from ckp.api.states import NodeUpgradeState


class SelectorRequirement(ApiModel):
    """meta/v1 LabelSelectorRequirement."""

    key: Annotated[str, Schema(required=True)] = ""
    operator: Annotated[str, Schema(required=True)] = ""
    values: Texts = ()


class Selector(ApiModel):
    """meta/v1 LabelSelector."""

    match_labels: Annotated[Labels, Schema("Labels that a host must carry, all of them.")] = Field(default_factory=dict)
    match_expressions: tuple[SelectorRequirement, ...] = ()


class Minimum(ApiModel):
    """The least size of a host."""

    cpus: Annotated[int, Schema("Processors.", minimum=0)] = 0
    memory_bytes: Annotated[int, Schema(format="int64", minimum=0)] = 0


class ByoMachineSpec(ApiModel):
    """What a machine asks of a host."""

    provider_id: Annotated[str, Schema("byoh://<namespace>/<host>/<machine>, once the host has joined.")] = Field(default="", alias="providerID")
    selector: Annotated[Selector, Schema("Which hosts may be claimed.")] = Field(default_factory=Selector)
    minimum: Annotated[Minimum, Schema("The least that a host must have.")] = Field(default_factory=Minimum)
    installer_ref: ObjectReference = Field(default_factory=ObjectReference)
    prepare_version: Annotated[str, Schema("A release (v1.35.1) whose bundle the node's host is to pull and verify beforehand; nothing else changes.")] = ""
    kubernetes_version: Annotated[
        str,
        Schema(
            "The release that the node is to be of. A newer one than it has upgrades it in place: drain, packages, kubelet. "
            "Empty: as Machine.spec.version says when it joins; a joined node stays as it is."
        ),
    ] = ""


class NodeUpgradeStatus(ApiModel):
    """How far the upgrade of a node in place is, or how the last one ended."""

    version: Annotated[str, Schema("The release that is being prepared or installed, or was last.")] = ""
    state: Annotated[str, Schema("Done and Failed are final until there is another request.", enum=[str(state) for state in NodeUpgradeState])] = ""
    reason: Annotated[str, Schema("CamelCase: why it failed, or waits.")] = ""
    message: Annotated[str, Schema("What is going on, or what failed and what to do about it.")] = ""
    started_at: Time = ""
    finished_at: Time = ""
    state_since: Annotated[Time, Schema("When it came into this state.")] = ""
    prepared_version: Annotated[str, Schema("The release whose bundle is on the host, verified.")] = ""
    request: Annotated[str, Schema("What the host knows this attempt by. A host makes each attempt once.")] = ""
    retry: Annotated[str, Schema("The annotation ckp.coredge.io/retry-upgrade as it was when this attempt began: another text makes another attempt.")] = ""


class HostRef(ApiModel):
    """The host that a machine holds."""

    name: str = ""


class MachineAddress(ApiModel):
    """Cluster API's MachineAddress."""

    type: str = ""
    address: str = ""


class ByoMachineStatus(ApiModel):
    """What became of it."""

    ready: bool = False
    host_ref: HostRef = Field(default_factory=HostRef)
    hostinfo: HostInfo = Field(default_factory=HostInfo)
    addresses: tuple[MachineAddress, ...] = ()
    node_ready_at: Annotated[Time, Schema("When its node was first seen to be Ready.")] = ""
    upgrade: NodeUpgradeStatus = Field(default_factory=NodeUpgradeStatus)
    failure_reason: Annotated[str, Schema("Set when it can't become good again and must be replaced (contract: terminal).")] = ""
    failure_message: Annotated[str, Schema("What happened, for people.")] = ""
    conditions: Conditions = ()


class ByoMachine(Resource):
    """The whole object."""

    spec: ByoMachineSpec = Field(default_factory=ByoMachineSpec)
    status: ByoMachineStatus = Field(default_factory=ByoMachineStatus)

    def condition(self, kind: str) -> Condition:
        """Its condition of this type; an empty one if it is absent."""
        return find_condition(self.status.conditions, kind)


class ByoMachineTemplateResource(ApiModel):
    """The machine that a template describes."""

    metadata: TemplateMeta = Field(default_factory=TemplateMeta)
    spec: Annotated[ByoMachineSpec, Schema(required=True)] = Field(default_factory=ByoMachineSpec)


class ByoMachineTemplateSpec(ApiModel):
    """What a template holds."""

    template: Annotated[ByoMachineTemplateResource, Schema(required=True)] = Field(default_factory=ByoMachineTemplateResource)


class ByoMachineTemplate(Resource):
    """Machines of a MachineDeployment are made from it."""

    spec: ByoMachineTemplateSpec = Field(default_factory=ByoMachineTemplateSpec)
