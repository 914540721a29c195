"""K8sInstallerConfig: of upstream's BYOH provider, kept so that people's manifests go on working. Hosts of CKP need none."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ckp.api.objects.base import ApiModel, Conditions, ObjectReference, Resource, Schema, TemplateMeta


class K8sInstallerConfigSpec(ApiModel):
    """Which bundle installs Kubernetes."""

    bundle_repo: str = ""
    bundle_type: str = ""


class K8sInstallerConfigStatus(ApiModel):
    """Where its script is."""

    ready: bool = False
    installation_secret: ObjectReference = Field(default_factory=ObjectReference)
    conditions: Conditions = ()


class K8sInstallerConfig(Resource):
    """The whole object."""

    spec: K8sInstallerConfigSpec = Field(default_factory=K8sInstallerConfigSpec)
    status: K8sInstallerConfigStatus = Field(default_factory=K8sInstallerConfigStatus)


class K8sInstallerConfigTemplateResource(ApiModel):
    """The configuration that a template describes."""

    metadata: TemplateMeta = Field(default_factory=TemplateMeta)
    spec: Annotated[K8sInstallerConfigSpec, Schema(required=True)] = Field(default_factory=K8sInstallerConfigSpec)


class K8sInstallerConfigTemplateSpec(ApiModel):
    """What a template holds."""

    template: Annotated[K8sInstallerConfigTemplateResource, Schema(required=True)] = Field(default_factory=K8sInstallerConfigTemplateResource)


class K8sInstallerConfigTemplate(Resource):
    """Configurations of a MachineDeployment are made from it."""

    spec: K8sInstallerConfigTemplateSpec = Field(default_factory=K8sInstallerConfigTemplateSpec)
