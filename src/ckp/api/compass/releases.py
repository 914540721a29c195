"""What Compass offers: releases of Kubernetes and versions of the agent."""

from __future__ import annotations

from pydantic import Field

from ckp.api.compass.base import View


class ReleaseView(View):
    """A release that clusters can be made of."""

    name: str = Field(description="Such as v1.35.1.")
    stamp: str = Field(default="", description="Which build of it.")
    cni: dict[str, str] = Field(default={}, description="Network plugins that are offered with it, with their versions.")
    os: list[str] = Field(default=[], description="Operating systems of hosts that it can be installed on, such as debian-12.")


class AgentVersions(View):
    """Versions of the agent that hosts can be given, the newest last."""

    versions: list[str]
