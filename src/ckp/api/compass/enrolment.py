"""How machines become hosts: their requests, people's decisions, and the rules that decide for them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from ckp.api.compass.base import Request, View
from ckp.api.compass.facts import Facts
from ckp.api.errors import ErrorBody

Duplicate = Literal["", "replace", "separate"]


class HostRequestView(View):
    """A machine that asks to become a host."""

    id: str
    state: str = Field(description="pending, approved, rejected, or replaced by a later request of the same host.")
    reason: str = Field(description="Why it was rejected or replaced.")
    host: str = Field(description="Name of the host that it became.")
    machine_id: str
    source: str = Field(description="The address that it asked from, as the hub saw it.")
    facts: Facts
    key_digest: str = Field(description="SHA-256 over the machine's public key, in hex.")
    duplicate_of: str = Field(description="Name of the host that the machine looks like.")
    duplicate_why: str = Field(description="What the two have in common: machine-id or key.")
    created_at: datetime
    decided_at: datetime | None = None
    decided_by: str


class HostJoinView(View):
    """How machines reach this site's hub, and the line that makes one of them ask to become a host."""

    hub: str = Field(description="URL of enrolment, `https://HUB:8443`.")
    channel: str = Field(description="URL of the agents' channel, `wss://HUB:9443/v1/agent`.")
    ca: str = Field(description="PEM of the CA that the hub's certificate chains to.")
    ca_sha256: str = Field(description="SHA-256 of `ca`, in hexadecimal: what the line compares.")
    command: str = Field(description="The line, for a POSIX shell. It asks for the project's pre-shared key, or takes it from standard input.")


class ApproveRequest(Request):
    """How a machine becomes a host."""

    duplicate: Duplicate = Field(default="", description="For one that looks like a host: `replace` takes that host's place, `separate` is another host.")
    groups: list[str] = Field(default=[], max_length=100, description="Host groups that the new host is put into.")


class RejectRequest(Request):
    """Why a machine is rejected."""

    reason: str = Field(default="", max_length=500, description="The machine's agent shows it.")


class BulkRequest(Request):
    """One decision about many host requests."""

    ids: list[str] = Field(min_length=1, max_length=1000)
    action: Literal["approve", "reject"]
    reason: str = Field(default="", max_length=500)


class Decision(View):
    """What became of one request of many."""

    state: str
    host: str


class BulkAnswer(View):
    """What became of each request, by its id."""

    ok: bool = Field(description="Whether all were decided.")
    results: dict[str, Decision | ErrorBody]


class CriteriaRequest(Request):
    """What a machine must be for a rule to approve it; what is empty does not matter."""

    hostnames: list[Annotated[str, Field(min_length=1, max_length=253)]] = Field(default=[], max_length=100)
    """Patterns of its name, with * and ?; any of them."""
    networks: list[Annotated[str, Field(max_length=50)]] = Field(default=[], max_length=100)
    """Networks that it asks from, as the hub sees it; any of them."""
    systems: list[Annotated[str, Field(min_length=1, max_length=63)]] = Field(default=[], max_length=100)
    """Operating systems such as debian-12; any of them."""
    min_cpus: int = Field(default=0, ge=0)
    min_memory_bytes: int = Field(default=0, ge=0)


class RuleRequest(Request):
    """A new approval rule."""

    name: str
    criteria: CriteriaRequest
    groups: list[str] = Field(default=[], max_length=100, description="Host groups that a host approved by it is put into.")


class CriteriaView(View):
    """What a rule asks for."""

    hostnames: list[str]
    networks: list[str]
    systems: list[str]
    min_cpus: int
    min_memory_bytes: int


class RuleView(View):
    """A rule that approves machines without a person's decision."""

    name: str
    criteria: CriteriaView
    groups: list[str]
    approved: int = Field(description="How many machines it has approved.")
    created_at: datetime
    created_by: str
