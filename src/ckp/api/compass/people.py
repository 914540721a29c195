"""People and rights: domains and projects, users, roles, service accounts, sessions."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from ckp.api.compass.base import Request, View
from ckp.api.compass.roles import Role

DAY = 24 * 3600
LONGEST_PASSWORD = 256


class DomainRequest(Request):
    """A new domain."""

    name: str = Field(description="Lower-case letters and digits, at most 28.")
    display_name: str = Field(default="", max_length=200, description="What people call it.")


class ProjectRequest(Request):
    """A new project of a domain."""

    name: str = Field(description="Lower-case letters, digits and hyphens, at most 28.")
    display_name: str = Field(default="", max_length=200, description="What people call it.")


class DisplayNameChange(Request):
    """Another name for people. The name in addresses stays."""

    display_name: str = Field(max_length=200)


class DomainView(View):
    """A domain."""

    name: str
    display_name: str
    projects: int = Field(description="How many of its projects the caller may see.")
    created_at: datetime | None = Field(default=None, description="Nothing for the domain that every platform has, until it is renamed.")
    created_by: str


class ProjectView(View):
    """A project."""

    domain: str
    name: str
    display_name: str
    created_at: datetime | None = Field(default=None, description="Nothing for the project that every platform has, until it is renamed.")
    created_by: str


class UserRequest(Request):
    """A new local user."""

    name: str = Field(description="Lower-case letters, digits and hyphens. People of a domain sign in as NAME@DOMAIN.")
    password: str = Field(max_length=LONGEST_PASSWORD, repr=False)
    display_name: str = Field(default="", max_length=200)


class UserChange(Request):
    """What is changed of a user; what is left out stays."""

    display_name: str | None = Field(default=None, max_length=200)
    disabled: bool | None = Field(default=None, description="Who is disabled can't sign in; their sessions end at once.")


class PasswordRequest(Request):
    """A new password for somebody."""

    password: str = Field(max_length=LONGEST_PASSWORD, repr=False)


class OwnPasswordRequest(Request):
    """A new password for oneself."""

    current: str = Field(max_length=LONGEST_PASSWORD, repr=False)
    password: str = Field(max_length=LONGEST_PASSWORD, repr=False)


class UserView(View):
    """A user."""

    name: str = Field(description="As they sign in: NAME, or NAME@DOMAIN.")
    display_name: str
    issuer: str = Field(description="Who vouches for the identity; `compass` for local users.")
    subject: str = Field(description="The identity, for the issuer.")
    disabled: bool
    created_at: datetime
    created_by: str
    password_changed_at: datetime


class RoleRequest(Request):
    """A role for a user, or for a service account."""

    role: Role
    user: str = Field(default="", description="As they sign in.")
    service_account: str = Field(default="", description="DOMAIN/PROJECT/NAME.")


class RoleView(View):
    """A role that somebody has in a part of the platform."""

    id: int
    role: str
    user: str = Field(description="Empty if it is a service account's.")
    service_account: str = Field(description="Empty if it is a user's.")
    domain: str = Field(description="Empty: it holds for the whole platform.")
    project: str = Field(description="Empty: it holds for the whole domain.")
    created_at: datetime
    created_by: str


class ServiceAccountRequest(Request):
    """A new service account of a project."""

    name: str
    description: str = Field(default="", max_length=500)


class ServiceAccountView(View):
    """A service account."""

    name: str
    full_name: str = Field(description="DOMAIN/PROJECT/NAME.")
    description: str
    tokens: int = Field(description="How many of its tokens are valid.")
    created_at: datetime
    created_by: str


class TokenRequest(Request):
    """A new token of a service account."""

    lifetime_seconds: int = Field(default=90 * DAY, ge=60, le=366 * DAY)
    description: str = Field(default="", max_length=500, description="What it is for.")


class TokenView(View):
    """A token."""

    id: str
    description: str
    created_at: datetime
    created_by: str
    expires_at: datetime
    last_used_at: datetime | None = None
    token: str | None = Field(default=None, repr=False, description="The token itself, only in the answer that made it: Compass stores its hash.")


class SignInRequest(Request):
    """Who signs in, and by what."""

    name: str = Field(max_length=200, description="NAME, or NAME@DOMAIN.")
    password: str = Field(max_length=LONGEST_PASSWORD, repr=False)


class SignInView(View):
    """A session for programs that act for a person, such as the `ckp` command."""

    token: str = Field(repr=False)
    name: str
    expires_at: datetime


class GrantView(View):
    """A role of the caller."""

    role: str
    domain: str
    project: str


class CallerView(View):
    """Who the caller is."""

    name: str
    credential: str = Field(description="How they were recognised.")
    issuer: str
    subject: str
    roles: list[GrantView]
