"""Who may do what where. A role is bound to the platform, to a domain or to a project, and holds for all that is below."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ckp.api.compass.roles import Least, Role

PLATFORM, DOMAIN, PROJECT = "platform", "domain", "project"

SCOPES: dict[Role, tuple[str, ...]] = {
    Role.PLATFORM_ADMINISTRATOR: (PLATFORM,),
    Role.DOMAIN_ADMINISTRATOR: (DOMAIN,),
    Role.PROJECT_ADMINISTRATOR: (PROJECT,),
    Role.USER: (PROJECT,),
    Role.AUDITOR: (PLATFORM, DOMAIN, PROJECT),
}
"""What each role can be bound to."""

_ADMINISTRATORS = (Role.PROJECT_ADMINISTRATOR, Role.DOMAIN_ADMINISTRATOR, Role.PLATFORM_ADMINISTRATOR)
_ENOUGH: dict[Least, frozenset[Role]] = {
    Least.AUDITOR: frozenset((Role.AUDITOR, *_ADMINISTRATORS)),
    Least.USER: frozenset((Role.USER, *_ADMINISTRATORS)),
    Least.PROJECT_ADMINISTRATOR: frozenset(_ADMINISTRATORS),
    Least.DOMAIN_ADMINISTRATOR: frozenset(_ADMINISTRATORS[1:]),
    Least.PLATFORM_ADMINISTRATOR: frozenset(_ADMINISTRATORS[2:]),
}
CHANGING = frozenset((Least.USER, Least.PROJECT_ADMINISTRATOR, Least.DOMAIN_ADMINISTRATOR, Least.PLATFORM_ADMINISTRATOR))
"""What a feature asks for that changes something, or hands out a secret."""


@dataclass(frozen=True)
class Grant:
    """A role in a part of the platform: all of it if both names are empty, a domain if the project is."""

    role: Role
    domain: str = ""
    project: str = ""

    def covers(self, domain: str, project: str) -> bool:
        """Whether it holds there."""
        return not self.domain or (self.domain == domain and self.project in ("", project))


def scope_of(domain: str, project: str) -> str:
    """What kind of part of the platform two names are."""
    return PROJECT if project else DOMAIN if domain else PLATFORM


def allows(grants: Iterable[Grant], least: Least, domain: str = "", project: str = "") -> bool:
    """Whether somebody with these roles may use a feature that asks for `least` there. Whoever has roles is signed in; who has one in a project may
    see that its domain is there."""
    if least in (Least.NOBODY, Least.SIGNED_IN):
        return True
    if least is Least.VIEWER:
        return knows(grants, domain, project)
    return any(grant.role in _ENOUGH[least] and grant.covers(domain, project) for grant in grants)


def knows(grants: Iterable[Grant], domain: str, project: str = "") -> bool:
    """Whether somebody may know that the domain, or the project, is there: they have a role in it, above it, or in a project of the domain."""
    return any(grant.covers(domain, project) or (grant.domain == domain and not project) for grant in grants)
