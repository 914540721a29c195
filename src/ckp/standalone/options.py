"""The options of a standalone installation, and the checks of them that don't depend on the host."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from typing import Union

from ckp.agent.config import DEFAULT_KEYRING
from ckp.agent.journal import STANDALONE, Member
from ckp.agent.system.prepare import HOST_JSON
from ckp.hostkit.errors import InvalidInput
from ckp.hostkit.locations import IMGPKG, STATE_DIR

Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]
POD_CIDR = "10.244.0.0/16"
SERVICE_CIDR = "10.96.0.0/12"
LONGEST_NAME = 63
NODE_NAMES = f"use lower-case letters, digits, - and ., at most {LONGEST_NAME} characters"
SMALLEST_POD_PREFIX = 24
"""kubeadm gives each node a /24 of the pod network, so it must be at least that large."""


@dataclass(frozen=True)
class Options:
    """A standalone installation. Either `bundle_folder` or `bundle_image` is set."""

    bundle_folder: str = ""
    bundle_image: str = ""
    registry_ca_file: str = ""
    keyring: str = DEFAULT_KEYRING
    imgpkg: str = IMGPKG
    pod_cidr: str = POD_CIDR
    service_cidr: str = SERVICE_CIDR
    advertise_address: str = ""
    node_name: str = ""
    cni: str = "cilium"
    registry: str = ""
    release: str = ""
    host_json: str = HOST_JSON
    state_dir: str = STATE_DIR

    def member(self, release: str) -> Member:
        """The journal's member for this installation: a second run continues the first one only with the same bundle and settings."""
        settings = {
            "pod_cidr": self.pod_cidr,
            "service_cidr": self.service_cidr,
            "advertise_address": self.advertise_address,
            "node_name": self.node_name,
            "cni": self.cni,
            "registry": self.registry,
        }
        return Member(STANDALONE, release, self.bundle_image or os.path.abspath(self.bundle_folder), settings=settings)


def network(text: str, what: str) -> Network:
    """Parse a CIDR. InvalidInput if it is malformed; `what` names it in the error."""
    try:
        found = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise InvalidInput(f"the {what} {text!r} is not a CIDR", resolution="write it like 10.244.0.0/16") from None
    if str(found) != text:
        raise InvalidInput(f"the {what} {text!r} has host bits set", resolution=f"did you mean {found}?")
    return found


def is_node_name(name: str) -> bool:
    """Whether a node can have this name: a DNS subdomain (RFC 1123), of at most the 63 characters of its label kubernetes.io/hostname."""
    return len(name) <= LONGEST_NAME and re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*", name) is not None


def default_node_name(os_name: str) -> str:
    """The node's name without --node-name: the OS' host name in lower case, as the kubelet itself makes it (so Worker1 is worker1). May not be a node name."""
    return os_name.strip().lower()


def check(options: Options) -> None:
    """Check the options, as far as that does not depend on the host.

    Raises:
        InvalidInput: for the first option that is invalid.
    """
    if bool(options.bundle_folder) == bool(options.bundle_image):
        raise InvalidInput("exactly one of --bundle (a folder) and --bundle-image (a reference by digest) is required")
    if options.bundle_folder and not os.path.isdir(options.bundle_folder):
        raise InvalidInput(f"the bundle folder {options.bundle_folder} does not exist", resolution="pull the bundle into it first, or use --bundle-image")
    if options.cni == "calico":
        raise InvalidInput("Calico, the release's default network, is not built in this version of CKP", resolution="use --cni cilium")
    if options.cni != "cilium":
        raise InvalidInput(f"the network plugin {options.cni!r} is not known", resolution="use --cni cilium")
    pods = network(options.pod_cidr, "pod CIDR")
    services = network(options.service_cidr, "service CIDR")
    for name, found in (("pod CIDR", pods), ("service CIDR", services)):
        if found.version != 4:
            raise InvalidInput(f"the {name} {found} is an IPv6 network: a standalone cluster has IPv4 networks", resolution=f"choose an IPv4 {name}")
    if pods.overlaps(services):
        raise InvalidInput(f"the pod CIDR {pods} and the service CIDR {services} overlap", resolution="choose networks without a common address")
    for name, found in (("pod CIDR", pods), ("service CIDR", services)):
        if found.is_loopback or found.is_multicast or found.is_link_local or found.is_unspecified:
            raise InvalidInput(f"the {name} {found} can't be routed: it is a loopback, multicast, link-local or unspecified range")
    if pods.prefixlen > SMALLEST_POD_PREFIX:
        raise InvalidInput(f"the pod CIDR {pods} is too small: a node takes a /{SMALLEST_POD_PREFIX} of it", resolution="use a /16, or at least a /24")
    if services.num_addresses < 16:
        raise InvalidInput(f"the service CIDR {services} is too small: the cluster's own services take the first ten addresses")
    if services.prefixlen < 12:
        raise InvalidInput(f"the service CIDR {services} is too large: the API server accepts at most a /12")
    if options.advertise_address:
        try:
            address = ipaddress.ip_address(options.advertise_address)
        except ValueError:
            raise InvalidInput(f"the advertise address {options.advertise_address!r} is not an IP address") from None
        if address.version != 4:
            raise InvalidInput(f"the advertise address {address} is an IPv6 address: a standalone cluster has IPv4 networks", resolution="use an IPv4 address")
    if options.node_name and not is_node_name(options.node_name):
        raise InvalidInput(f"{options.node_name!r} can't be a node's name", resolution=NODE_NAMES)
    if not os.path.isfile(options.keyring):
        raise InvalidInput(f"the keyring {options.keyring} with the trusted keys does not exist", resolution="set its path with --keyring")
    if options.registry_ca_file and not os.path.isfile(options.registry_ca_file):
        raise InvalidInput(f"the registry's CA {options.registry_ca_file} does not exist")
