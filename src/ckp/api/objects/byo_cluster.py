"""ByoCluster: the infrastructure of a cluster on people's own hosts, of which there is nothing to make."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from ckp.api.objects.base import ApiModel, Conditions, ControlPlaneEndpoint, Endpoint, Resource, Schema, TemplateMeta


class ByoClusterSpec(ApiModel):
    """Fields of upstream's BYOH provider."""

    control_plane_endpoint: ControlPlaneEndpoint = Field(default_factory=Endpoint)
    bundle_lookup_base_registry: str = ""
    bundle_lookup_tag: str = ""


class ByoClusterStatus(ApiModel):
    """What Cluster API waits for."""

    ready: bool = False
    failure_domains: dict[str, Any] = Field(default_factory=dict)
    conditions: Conditions = ()


class ByoCluster(Resource):
    """The whole object."""

    spec: ByoClusterSpec = Field(default_factory=ByoClusterSpec)
    status: ByoClusterStatus = Field(default_factory=ByoClusterStatus)


class ByoClusterTemplateResource(ApiModel):
    """The cluster that a template describes."""

    metadata: TemplateMeta = Field(default_factory=TemplateMeta)
    spec: Annotated[ByoClusterSpec, Schema(required=True)] = Field(default_factory=ByoClusterSpec)


class ByoClusterTemplateSpec(ApiModel):
    """What a template holds."""

    template: Annotated[ByoClusterTemplateResource, Schema(required=True)] = Field(default_factory=ByoClusterTemplateResource)


class ByoClusterTemplate(Resource):
    """For Cluster API's ClusterClasses."""

    spec: ByoClusterTemplateSpec = Field(default_factory=ByoClusterTemplateSpec)
