"""Hosts and host groups."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import Field

from ckp.api.compass.base import Request, View
from ckp.api.compass.conditions import ConditionView
from ckp.api.compass.facts import Facts
from ckp.api.host_protocol import JournalEntry


class HostView(View):
    """A host: what it is, what it does, and what its agent last reported."""

    name: str
    state: str = Field(description="Free, Cordoned, Offline, Deleting, Claimed, or the phase that its agent is in.")
    connected: bool
    cordoned: bool
    free: bool = Field(description="Whether a cluster could claim it now.")
    groups: list[str]
    labels: dict[str, str]
    taints: list[str] = Field(description="Taints of its nodes, as key=value:effect.")
    cluster: str
    machine: str
    address: str
    os: str
    agent_version: str
    agent_wanted: str = Field(description="The version of the agent that it was asked to run; empty: any.")
    last_seen: datetime | None = Field(default=None, description="While the host is connected, up to five minutes old.")
    clock_offset_seconds: float | None = Field(default=None, description="How far its clock is ahead of the hub's.")
    created_at: datetime
    phase: str
    creation: str = Field(description="Create Pending, Create Completed or Create Failed for a host that a cluster has claimed; else empty.")
    release: str
    reason: str
    message: str
    facts: Facts
    conditions: list[ConditionView]
    journal: list[JournalEntry] = Field(description="What the agent did on the host, oldest first.")


class EventView(View):
    """Something that happened to an object."""

    at: datetime
    type: str
    reason: str
    message: str


class HostChange(Request):
    """What can be changed of a host; what is left out stays."""

    cordoned: bool | None = Field(default=None, description="Whether clusters are kept from claiming it.")
    drained: bool | None = Field(default=None, description="Whether pods are evicted from its node and kept away.")
    labels: dict[str, str | None] | None = Field(default=None, max_length=100, description="Labels to set; null removes one.")
    taints: list[Annotated[str, Field(max_length=400)]] | None = Field(default=None, max_length=50)
    """All taints of its nodes, as key=value:effect."""


class AgentRequest(Request):
    """Which version of the agent a host is to run."""

    version: str = Field(max_length=128, description="Empty: any; the request is withdrawn.")
    confirm_seconds: int = Field(
        default=0,
        ge=0,
        le=3600,
        description="Seconds until the host returns to the old version without a report; 0: the agent's default.",
    )


class LeaveRequest(Request):
    """How a host leaves its cluster."""

    shrink: bool = Field(default=False, description="Make the cluster smaller by one, instead of replacing the host.")
    force: bool = Field(default=False, description="Do not wait for the drain and the clean-up.")


class GroupRequest(Request):
    """A new host group."""

    name: str
    description: str = Field(default="", max_length=1000)


class GroupChange(Request):
    """What can be changed of a host group."""

    description: str = Field(max_length=1000)


class MembersRequest(Request):
    """Hosts to add to a group or to remove from it."""

    hosts: list[str] = Field(min_length=1, max_length=1000)


class GroupView(View):
    """A host group with its members."""

    name: str
    description: str
    created_at: datetime
    hosts: list[str]
    free: int = Field(description="How many of its hosts a cluster could claim now.")
    clusters: list[str] = Field(description="Clusters that take their workers from it.")
