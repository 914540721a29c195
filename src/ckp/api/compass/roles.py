"""Roles: what somebody is in a part of the platform, and the least that each feature asks for."""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    """What somebody is, in the part of the platform that the role is bound to (ckp.rules.roles)."""

    PLATFORM_ADMINISTRATOR = "platform-administrator"
    DOMAIN_ADMINISTRATOR = "domain-administrator"
    PROJECT_ADMINISTRATOR = "project-administrator"
    USER = "user"
    """Makes, changes and deletes clusters, on hosts that administrators bring."""
    AUDITOR = "auditor"
    """Reads all that it is given, and changes nothing."""


class Least(StrEnum):
    """The least that somebody must be to use a feature."""

    NOBODY = "nobody"
    """It needs no sign-in."""
    SIGNED_IN = "signed in"
    """It is about the caller's own things, or shows to each what they may see."""
    VIEWER = "any role"
    AUDITOR = "auditor"
    """Or an administrator; not a user."""
    USER = "user"
    PROJECT_ADMINISTRATOR = "project administrator"
    DOMAIN_ADMINISTRATOR = "domain administrator"
    PLATFORM_ADMINISTRATOR = "platform administrator"
