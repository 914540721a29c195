"""ByoCluster: the infrastructure of a cluster on people's own hosts, of which there is nothing to make."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from ckp.api.objects.base import ApiModel, Conditions, ControlPlaneEndpoint, Endpoint, Int32, Resource, Schema, TemplateMeta, Time
from ckp.kits.clock import parse_duration


class ByoClusterSpec(ApiModel):
    """Fields of upstream's BYOH provider."""

    control_plane_endpoint: ControlPlaneEndpoint = Field(default_factory=Endpoint)
    bundle_lookup_base_registry: str = ""
    bundle_lookup_tag: str = ""
    image_fetch_timeout: Annotated[
        str,
        Schema(
            "How long a new worker may fetch the images that every node runs before it joins without the rest, such as 15m; empty: CKP's default.",
            pattern=r"^([0-9]+h)?([0-9]+m)?([0-9]+s)?$",
        ),
    ] = ""

    @property
    def image_fetch_seconds(self) -> int:
        """`image_fetch_timeout` in seconds; 0: not set."""
        return parse_duration(self.image_fetch_timeout or "0")


class Replacement(ApiModel):
    """A worker that was replaced because it was not healthy."""

    machine: str = ""
    uid: Annotated[str, Schema("Of the Machine.")] = ""
    host: str = ""
    cause: Annotated[str, Schema("Startup, Unhealthy or Lost; replacements are counted by it.")] = ""
    reason: Annotated[str, Schema("What was wrong with it, for people.")] = ""
    at: Time = ""
    number: Annotated[Int32, Schema("Its place among the replacements by this cause within 24 hours; the first is 1.")] = 0
    settled: Annotated[bool, Schema("Its node had been well for long, so that it is no failed attempt, and does not count.")] = False


class UnhealthyWorker(ApiModel):
    """A worker that is not healthy now, and what becomes of it."""

    machine: str = ""
    host: str = ""
    action: Annotated[str, Schema("Replacing, Waiting or Held.")] = ""
    reason: str = ""
    message: str = ""
    held_at: Annotated[Time, Schema("Since when it is left for a person.")] = ""


class ByoClusterStatus(ApiModel):
    """What Cluster API waits for, and what became of unhealthy workers."""

    ready: bool = False
    failure_domains: dict[str, Any] = Field(default_factory=dict)
    conditions: Conditions = ()
    replacements: Annotated[tuple[Replacement, ...], Schema("The last ones, oldest first.")] = ()
    unhealthy: Annotated[tuple[UnhealthyWorker, ...], Schema("Workers that are not healthy now.")] = ()


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
