"""A `site.yaml` to begin with: what was answered, and comments that say what else there is."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from textwrap import indent

from ckp.site.spec.model import API_VERSION, KIND, REGISTRY_PORT
from ckp.site.spec.yamltree import dump_text

POOL_SIZE = 50
"""Addresses that are suggested for load balancers."""
REGISTRY_DOMAIN = "internal"
"""Top-level domain that nobody else can have. A management host that does not resolve the name gets it in its /etc/hosts."""


@dataclass(frozen=True)
class Answers:
    """What a file can't be written without.

    Args:
        name: the site's.
        hosts: name and address of each management host.
        user: whom SSH logs in as, on all of them.
        network: that the hosts have their addresses in.
        pool: first and last address for load balancers.
        release: that the site offers.
        virtual_address: of the API of several hosts; None with one host.
    """

    name: str
    hosts: tuple[tuple[str, IPv4Address], ...]
    user: str
    network: IPv4Network
    pool: tuple[IPv4Address, IPv4Address]
    release: str
    virtual_address: IPv4Address | None = None


def suggest_network(address: IPv4Address) -> IPv4Network:
    """The /24 around an address, as most networks are."""
    return IPv4Network((address, 24), strict=False)


def suggest_pool(network: IPv4Network, taken: set[IPv4Address]) -> tuple[IPv4Address, IPv4Address] | None:
    """The highest range of up to POOL_SIZE addresses, and of two at least, in which no host has one; None if there is none."""
    end = int(network.broadcast_address) - 1
    first = int(network.network_address) + 1
    for address in sorted((int(item) for item in taken if item in network), reverse=True):
        if end - address >= 2:
            break
        end = min(end, address - 1)
    below = max((int(item) for item in taken if item in network and int(item) <= end), default=first - 1)
    start = max(first, below + 1, end - POOL_SIZE + 1)
    return (IPv4Address(start), IPv4Address(end)) if end - start >= 1 else None


def suggest_virtual_address(network: IPv4Network, pool: tuple[IPv4Address, IPv4Address], taken: set[IPv4Address]) -> IPv4Address | None:
    """The highest address below the load balancers' range that no host has; None if there is none."""
    lowest = int(network.network_address) + 1
    for number in range(int(pool[0]) - 1, max(lowest, int(pool[0]) - 1 - len(taken)) - 1, -1):
        if IPv4Address(number) not in taken:
            return IPv4Address(number)
    return None


def render(answers: Answers) -> str:
    """The file. Lines that begin with `#` and no space are settings with what they may look like; without the `#` they are valid."""
    first, last = answers.pool
    hub = first + 1
    return f"""\
# A site of CKP. `ckp site reference` prints every key; unknown keys are errors.
# Lines with # and no space after it are settings that you may want: remove the # and change them.
# No secret belongs into this file: keys that end with File name a file that holds it. Relative paths are relative to this file.
apiVersion: {API_VERSION}
kind: {KIND}
metadata:
  name: {dump_text(answers.name)}

# The hosts of the management cluster: one, three or five. OpenSSH's own client reaches them, with your configuration, agent and known_hosts.
# A user other than root needs sudo without a password. A host that is this machine has `local: true` instead of `ssh`.
management:
  hosts:
{indent("".join(_host(name, address, answers.user) for name, address in answers.hosts), "    ")}
addresses:
  # The network that the hosts have their addresses in.
  hosts: {answers.network}
  # Free addresses of that network, for Compass, the hub and the API of each workload cluster.
  loadBalancers:
    ciliumPool:
      first: {first}
      last: {last}
{_api(answers.virtual_address)}\
  # The first two addresses of the range. Names that lead to them may be added, for their certificates.
  compass:
    address: {first}
    #names: [compass.example.com]
  hub:
    address: {hub}
    #names: [hub.example.com]
  # Networks inside the management cluster. Change them if your site uses these addresses already.
  #managementPods: 10.244.0.0/16
  #managementServices: 10.96.0.0/16

# CKP's own registry, on the management hosts. Signed bundles name it, so its name stays as it is. Workers have to resolve it.
registry:
  own:
    name: {dump_text(f"registry.{answers.name}.{REGISTRY_DOMAIN}")}
    #port: {REGISTRY_PORT}
    #storage: /var/lib/ckp-registry

# The volumes of etcd: an SSD or NVMe.
#storage:
#  etcd:
#    path: /var/lib/ckp-etcd

# Where Compass keeps users, tokens and its audit log: SQLite, or a PostgreSQL server that you have (`postgresql: {{urlFile: postgresql-url}}`).
database:
  sqlite: {{}}

# The Kubernetes releases that the site offers (`ckp release list`).
releases:
  - {dump_text(answers.release)}

# How hosts, image pulls and pods reach what is outside.
#network:
#  proxy:
#    http: http://proxy.example.com:3128
#    https: http://proxy.example.com:3128
#    noProxy: [.example.com]
#  dns: [192.0.2.53]
#  timeServers: [ntp.example.com]
#  caFiles: [private-ca.pem]

# Whose packages are trusted. Without it: this machine's own keyring.
#trust:
#  keyringFile: trusted.gpg

# Backups of the whole site, encrypted for the owners of these OpenPGP certificates. They may lie in a bucket as well (`s3` instead of `path`).
#backup:
#  to:
#    path: /mnt/backup
#  every: 24h
#  keep: 7
#  encryptFor: [operator.pgp]

# The group that hosts are put into when they enrol, and what they run beside the management hosts' system.
#workers:
#  group:
#    name: workers
#  systems: [ubuntu-24.04]
"""


def _host(name: str, address: IPv4Address, user: str) -> str:
    return f"- name: {dump_text(name)}\n  address: {address}\n  ssh:\n    user: {dump_text(user)}\n"


def _api(virtual: IPv4Address | None) -> str:
    if virtual is None:
        return ""
    return f"  # A free address of that network, outside of the range; one of the hosts answers to it.\n  api:\n    virtualAddress: {virtual}\n"
