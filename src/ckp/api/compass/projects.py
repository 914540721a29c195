"""Of a project: its pre-shared key, and the log of what was changed."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from ckp.api.compass.base import Request, View


class KeyRequest(Request):
    """Limits of a new pre-shared key; without them it is valid until it is reset."""

    lifetime_seconds: int | None = Field(default=None, ge=60, le=366 * 24 * 3600, description="Seconds after which no machine can enrol with it.")
    max_uses: int | None = Field(default=None, ge=1, le=1_000_000, description="How many machines may enrol with it.")


class KeyView(View):
    """A project's pre-shared key."""

    created_at: datetime
    use_count: int = Field(description="How many machines have asked with it.")
    last_used_at: datetime | None = None
    expires_at: datetime | None = None
    max_uses: int | None = None
    key: str | None = Field(default=None, repr=False, description="The key itself, only in the answer that made it: Compass stores its hash.")
    message: str = ""


class AuditView(View):
    """A change or a sign-in, as the audit log holds it. What entries of older versions do not have is empty."""

    id: int
    at: datetime
    actor: str = Field(description="Who asked for it: a user, a service account, `admin` (the bootstrap token), `site`, `hub`, or `rule:<name>`.")
    credential: str = Field(default="", description="The kind of credential that the actor was recognised by.")
    action: str = Field(description="Subject and verb, such as `cluster.create`.")
    target: str = Field(description="The name of what was changed.")
    detail: dict[str, Any]
    domain: str = ""
    project: str = ""
    issuer: str = Field(default="", description="Who vouches for the actor's identity.")
    subject: str = Field(default="", description="The actor's identity, for the issuer.")
    source: str = Field(default="", description="The address that the request came from.")
    door: str = Field(default="", description="rest, cli (so the client says) or console.")
    result: str = Field(default="", description="Done, or the code of the error that it ended with.")


class AuditPage(View):
    """A part of the audit log."""

    items: list[AuditView]
    next_page_token: str = Field(default="", description="For the entries that are older; empty if there are none.")
