"""Who calls Compass, and for which project."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from ckp.api import names
from ckp.kits.errors import InvalidInput
from ckp.rules.roles import Grant

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")

Credential = Literal["admin-token", "service-account", "approval-rule", "password", "api-token", ""]
Door = Literal["", "rest", "cli", "console"]

LOCAL = "compass"
"""The issuer of people and service accounts that Compass itself has."""


@dataclass(frozen=True)
class Caller:
    """Who makes a request, and by which credential.

    Args:
        name: as the audit log shows it: `ann`, `ann@acme`, `acme/web/ci` for a service account, `admin` for the bootstrap token, `hub`, `site`,
            or `rule:<name>` for an approval rule that acts for people.
        credential: how the caller was recognised; empty if it was not.
        issuer, subject: the identity; empty of those that are no person and no service account.
        grants: the caller's roles now.
        source: the address that the request came from.
        door: through which it came; that it is the command line, the client itself says.
    """

    name: str
    credential: Credential
    issuer: str = ""
    subject: str = ""
    grants: tuple[Grant, ...] = ()
    source: str = ""
    door: Door = ""


@dataclass(frozen=True)
class Scope:
    """A part of the platform, by well-formed names: all of it if both are empty, a domain if the project is."""

    domain: str = ""
    project: str = ""

    @classmethod
    def of(cls, domain: str, project: str = "") -> Scope:
        """Check the names; InvalidInput as of ProjectRef."""
        if project:
            ProjectRef.of(domain, project)
        elif domain:
            check_domain(domain)
        return cls(domain, project)

    def __str__(self) -> str:
        return f"project {self.domain}/{self.project}" if self.project else f"domain {self.domain}" if self.domain else "the platform"


PLATFORM = Scope()


@dataclass(frozen=True)
class ProjectRef:
    """One project of one domain, by well-formed names."""

    domain: str
    project: str

    @classmethod
    def of(cls, domain: str, project: str) -> ProjectRef:
        """Check the names.

        A domain has no hyphen: else `ckp-<domain>-<project>` would be the same namespace for a-b/c and a/b-c, and two tenants would share it.

        Raises:
            InvalidInput: a name is not a label of at most 28 characters, or the domain holds a hyphen.
        """
        check_label("domain", domain, limit=28)
        check_label("project", project, limit=28)
        check_domain(domain)
        return cls(domain, project)

    def __str__(self) -> str:
        return f"{self.domain}/{self.project}"

    @property
    def namespace(self) -> str:
        """Where its hosts and clusters are."""
        return names.tenant_namespace(self.domain, self.project)

    @property
    def labels(self) -> dict[str, str]:
        """What its namespace and objects are labelled with."""
        return {names.DOMAIN_LABEL: self.domain, names.PROJECT_LABEL: self.project}


def check_domain(domain: str) -> str:
    """`domain` if a domain can be called so.

    Raises:
        InvalidInput: it is not a label of at most 28 characters, or holds a hyphen.
    """
    check_label("domain", domain, limit=28)
    if "-" in domain:
        raise InvalidInput(f"domain: {domain!r} holds a hyphen", resolution="name domains with letters and digits only")
    return domain


def check_label(field: str, value: str, *, limit: int = 63) -> str:
    """`value` if it is a DNS label of at most `limit` characters (RFC 1123), as Kubernetes wants for names.

    Raises:
        InvalidInput: it is not; names `field`.
    """
    if not _LABEL.fullmatch(value) or len(value) > limit:
        raise InvalidInput(
            f"{field}: {value!r} is not a valid name",
            resolution=f"use at most {limit} lower-case letters, digits and hyphens, beginning and ending with a letter or a digit",
        )
    return value
