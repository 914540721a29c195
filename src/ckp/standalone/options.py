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
FIRST, CONTROL_PLANE, WORKER = "", "control-plane", "worker"
"""What a host is in its cluster. FIRST is the master that the cluster was made on."""
NODE_NAME = "node_name"
"""The journal's note of the node's name, from the moment that the kubelet has it."""
SMALLEST_POD_PREFIX = 24
"""kubeadm gives each node a /24 of the pod network, so it must be at least that large."""


@dataclass(frozen=True)
class Options:
    """A standalone installation, or a join to one. Either `bundle_folder` or `bundle_image` is set.

    Args:
        virtual_address: of the cluster's API servers, held by one of its masters; "" for the first host's own address.
        cert_sans: further names and addresses in the API servers' certificates.
        role: FIRST, CONTROL_PLANE or WORKER.
        endpoint, ca_hash: of the cluster that is joined (ckp.standalone.token); "" of the first host.
    """

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
    virtual_address: str = ""
    cert_sans: tuple[str, ...] = ()
    role: str = FIRST
    endpoint: str = ""
    ca_hash: str = ""

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
        later = {  # those that earlier versions did not have are left out where they are not used
            "virtual_address": self.virtual_address,
            "cert_sans": ",".join(sorted(set(self.cert_sans))),
            "role": self.role,
            "endpoint": self.endpoint,
            "ca_hash": self.ca_hash,
        }
        settings.update((name, value) for name, value in later.items() if value)
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
    _check_virtual_address(options, pods, services)
    for name in options.cert_sans:
        if not is_san(name):
            raise InvalidInput(f"{name!r} can't be in a certificate", resolution="--cert-san takes a DNS name or an IP address")
    if options.node_name and not is_node_name(options.node_name):
        raise InvalidInput(f"{options.node_name!r} can't be a node's name", resolution=NODE_NAMES)
    if not os.path.isfile(options.keyring):
        raise InvalidInput(f"the keyring {options.keyring} with the trusted keys does not exist", resolution="set its path with --keyring")
    if options.registry_ca_file and not os.path.isfile(options.registry_ca_file):
        raise InvalidInput(f"the registry's CA {options.registry_ca_file} does not exist")


def is_san(name: str) -> bool:
    """Whether a server's certificate can be for this: an IP address, or a DNS name, also `*.example.org`."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        label = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
        return len(name) <= 253 and re.fullmatch(rf"(\*\.)?{label}(\.{label})*", name.lower()) is not None and not re.fullmatch(r"[0-9.]+", name)
    return True


def _check_virtual_address(options: Options, pods: Network, services: Network) -> None:
    if not options.virtual_address:
        return
    try:
        address = ipaddress.IPv4Address(options.virtual_address)
    except ValueError:
        raise InvalidInput(f"the virtual address {options.virtual_address!r} is not an IPv4 address") from None
    if address.is_loopback or address.is_multicast or address.is_link_local or address.is_unspecified or address.is_reserved:
        raise InvalidInput(f"the virtual address {address} is not one of a host: it is loopback, multicast, link-local or reserved")
    if options.virtual_address == options.advertise_address:
        raise InvalidInput(
            f"the virtual address {address} is the advertise address as well", resolution="choose a free address of the same network: it moves between hosts"
        )
    for name, found in (("pod CIDR", pods), ("service CIDR", services)):
        if address in found:
            raise InvalidInput(f"the virtual address {address} is in the {name} {found}", resolution="choose a free address of the hosts' network")
