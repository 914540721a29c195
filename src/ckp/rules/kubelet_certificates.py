"""Which requests of kubelets for serving certificates are approved. Pure.

The form is the signer's own rule (kubernetes.io/kubelet-serving; pkg/apis/certificates/helpers.go at v1.35.1), which the signer checks as well. Whose names
and addresses these are, nobody but an approver checks: who has a certificate for an address can answer for the kubelet there.
"""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.x509.oid import NameOID

SIGNER = "kubernetes.io/kubelet-serving"
NODES = "system:nodes"
USER_PREFIX = "system:node:"
USAGES = ({"digital signature", "server auth"}, {"digital signature", "key encipherment", "server auth"})
ADDRESS_TYPES = (x509.DNSName, x509.IPAddress)

Request = Mapping[str, Any]
"""A CertificateSigningRequest object."""


@dataclass(frozen=True)
class Member:
    """A host of the cluster, by the name of its node."""

    name: str
    addresses: frozenset[str]
    online: bool = True
    """Whether its addresses are known: those of a host that is offline may be another's by now."""


def is_pending(request: Request) -> bool:
    """Whether it is a kubelet's for a serving certificate, and nobody has decided on it yet."""
    status = request.get("status") or {}
    return request["spec"].get("signerName") == SIGNER and not status.get("certificate") and not status.get("conditions")


def node_of(request: Request) -> str:
    """The name of the node that asks, by its client certificate; '' if it is no node."""
    spec = request["spec"]
    user = str(spec.get("username") or "")
    return user.removeprefix(USER_PREFIX) if user.startswith(USER_PREFIX) and NODES in (spec.get("groups") or []) else ""


def objection(request: Request, members: Mapping[str, Member]) -> str:
    """Why a pending request is not approved; '' if it is.

    Args:
        members: the cluster's hosts by the names of their nodes.
    """
    node = node_of(request)
    if not node:
        return f"{request['spec'].get('username')} is no node"
    if node not in members:
        return f"no host of this cluster is called {node}"
    if not members[node].online:
        return f"host {node} is offline, so which addresses it has is not known"
    if set(request["spec"].get("usages") or []) not in USAGES:
        return "its usages are not those of a server"
    try:
        asked = x509.load_pem_x509_csr(base64.b64decode(request["spec"]["request"]))
        names = asked.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (KeyError, ValueError):
        return "it cannot be read"
    except x509.ExtensionNotFound:
        return "it has no name and no address"
    if not asked.is_signature_valid:
        return "it is not signed by its own key"
    subject = sorted((attribute.oid.dotted_string, attribute.value) for attribute in asked.subject)
    wanted = sorted([(NameOID.COMMON_NAME.dotted_string, USER_PREFIX + node), (NameOID.ORGANIZATION_NAME.dotted_string, NODES)])
    if subject != wanted:
        return f"its subject is {asked.subject.rfc4514_string()}, not that of {USER_PREFIX}{node}"
    if not all(isinstance(item, ADDRESS_TYPES) for item in names):
        return "it has names that are neither DNS names nor addresses"
    return _foreign(members[node], names, members)


def _foreign(member: Member, names: x509.SubjectAlternativeName, members: Mapping[str, Member]) -> str:
    addresses = [str(item) for item in names.get_values_for_type(x509.IPAddress)]
    others = [name for name in names.get_values_for_type(x509.DNSName) if name != member.name]
    unknown = [item for item in addresses if item not in member.addresses]
    if others or unknown:
        return f"host {member.name} does not have {', '.join([*others, *unknown])}"
    for other in members.values():
        if other.name != member.name and other.online and (shared := other.addresses.intersection(addresses)):
            return f"host {other.name} says that it has {', '.join(sorted(shared))} as well: of two hosts with one address none is believed"
    return ""


def normal(address: str) -> str:
    """An address as it is compared; '' if it is none."""
    try:
        return str(ipaddress.ip_address(address))
    except ValueError:
        return ""
