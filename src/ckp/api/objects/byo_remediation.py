"""ByoRemediation: the report of a MachineHealthCheck that a Machine is not healthy (Cluster API's external remediation).

Contract: the health check makes one of the Machine's name from the template that it refers to, owned by the Machine, and deletes it when the Machine is
healthy again. What becomes of the Machine stands in `ByoCluster.status`.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ckp.api.objects.base import ApiModel, Resource, Schema, TemplateMeta


class ByoRemediationSpec(ApiModel):
    """Nothing is configured here: timeouts are the MachineHealthCheck's."""


class ByoRemediation(Resource):
    """The whole object."""

    spec: ByoRemediationSpec = Field(default_factory=ByoRemediationSpec)


class ByoRemediationTemplateResource(ApiModel):
    """The report that a template describes."""

    metadata: TemplateMeta = Field(default_factory=TemplateMeta)
    spec: ByoRemediationSpec = Field(default_factory=ByoRemediationSpec)


class ByoRemediationTemplateSpec(ApiModel):
    """What a template holds."""

    template: Annotated[ByoRemediationTemplateResource, Schema(required=True)] = Field(default_factory=ByoRemediationTemplateResource)


class ByoRemediationTemplate(Resource):
    """What a MachineHealthCheck's `remediationTemplate` refers to."""

    spec: ByoRemediationTemplateSpec = Field(default_factory=ByoRemediationTemplateSpec)
