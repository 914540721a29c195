"""The model of `site.yaml`: what a site is. Its reference, docs/reference/site.md, is made from the descriptions here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import Field, PrivateAttr

from ckp.rules.pod_network import room
from ckp.site.spec import addresses as rules_of_addresses
from ckp.site.spec import existing_cluster
from ckp.site.spec.findings import Finding, Place, absent, at, given, items, key_path
from ckp.site.spec.part import Part
from ckp.site.spec.types import (
    Address,
    Bucket,
    ClassName,
    Count,
    DnsName,
    Endpoint,
    FilePath,
    Fingerprint,
    HostPath,
    Interval,
    Label,
    Line,
    LoadBalancerClass,
    NameOrAddress,
    Network,
    NoProxy,
    Port,
    Prefix,
    ProxyUrl,
    Region,
    RegistryAddress,
    ReleaseName,
    RepositoryPrefix,
    SshHost,
    SystemName,
    UserName,
    newest_release,
)

API_VERSION: Literal["ckp.coredge.io/v1alpha1"] = "ckp.coredge.io/v1alpha1"
KIND: Literal["Site"] = "Site"
HOST_COUNTS = (1, 3, 5)
REGISTRY_PORT = 5000
LAST_PORT = 65535
PODS, SERVICES = IPv4Network("10.244.0.0/16"), IPv4Network("10.96.0.0/16")
NETWORKS = {"hosts": "hosts", "managementPods": "management pods", "managementServices": "management services"}
"""Key of a network of the site -> how it is called in an error."""


def twice(part: Any, name: str, what: str, key: str = "") -> Iterator[Finding]:
    """Items of a list, or values of their field `key`, that an earlier item has already."""
    seen: dict[Any, int] = {}
    for number, item in items(part, name):
        value = at(item, key) if key else item
        if value is None:
            continue
        if value in seen:
            place: Place = (name, number, key) if key else (name, number)
            before = key_path((name, seen[value]))
            yield Finding(place, f"{before} has the {what} {value} already", f"write another {what}" if key else "remove one of the two")
        seen.setdefault(value, number)


# -- management


class Ssh(Part):
    """How OpenSSH's own client reaches a host; what is not given here, it takes from its configuration. It asks for no password: take a key or an agent."""

    host: SshHost | None = Field(None, description="What `ssh` is called with. Default: the host's `name`.")
    user: UserName = Field("root", description="User to log in as. One other than root needs sudo without a password.")
    port: Port | None = Field(None, description="TCP port of the host's SSH server. Default: as ssh_config says, otherwise 22.")
    config_file: FilePath | None = Field(None, description="Configuration of the client (`ssh -F`). Default: the user's own.")
    identity_file: FilePath | None = Field(None, description="Private key to log in with (`ssh -i`). Default: as ssh_config says, and the agent's keys.")
    known_hosts_file: FilePath | None = Field(
        None, description="Host keys that are trusted. Default: the user's own known_hosts. An unknown host key is an error."
    )


class Host(Part):
    """A management host."""

    name: Label = Field(description="The host's name in the site; also its node's name. Unique. It stays as it is.")
    address: Address = Field(description="Its address in `addresses.hosts`, by which the other hosts reach it. Unique. It stays as it is.")
    ssh: Ssh | None = Field(None, description="How it is reached by SSH. Default: `ssh root@name`.")
    local: bool = Field(False, description="`true`: this is the machine that `ckp` runs on, and no SSH is used. For one host at most.")

    @property
    def connection(self) -> Ssh | None:
        """How it is reached, with `host` filled in; None for the machine that this runs on."""
        ssh = self.ssh or Ssh()
        return None if self.local else ssh.model_copy(update={"host": ssh.host or self.name})

    @classmethod
    def rules(cls, part: Any) -> Iterator[Finding]:
        """Not both ways."""
        if at(part, "local") and given(part, "ssh"):
            yield Finding(("local",), "ssh and local exclude each other", "remove `ssh`, or `local` if the host is another machine")


class Management(Part):
    """Where the management cluster runs: on hosts that CKP installs it on, or an existing cluster."""

    one_of = ("hosts", "kubeconfig")

    hosts: tuple[Host, ...] | None = Field(None, description="The hosts of a management cluster that CKP installs: one, three or five.")
    kubeconfig: FilePath | None = Field(
        None, description="Kubeconfig of an administrator of an existing, conformant cluster. CKP then installs its own layer only."
    )

    @classmethod
    def rules(cls, part: Any) -> Iterator[Finding]:
        """How many, and each only once."""
        hosts = at(part, "hosts")
        if hosts is not None and len(hosts) not in HOST_COUNTS:
            why = f"{len(hosts)} etcd members survive as few losses as {len(hosts) - 1}" if len(hosts) in (2, 4) else "etcd has 1, 3 or 5 members"
            yield Finding(("hosts",), f"there are {len(hosts)} hosts, and {why}", "write 1, 3 or 5 hosts")
        yield from twice(part, "hosts", "name", "name")
        yield from twice(part, "hosts", "address", "address")
        local = [number for number, host in items(part, "hosts") if at(host, "local")]
        for number in local[1:]:
            yield Finding(("hosts", number, "local"), f"hosts[{local[0]}] is this machine already", "reach the other hosts by `ssh`")


# -- addresses


class Pool(Part):
    """A range of free addresses in `addresses.hosts`. The hosts' Cilium answers ARP for those that are in use."""

    first: Address = Field(description="Its first address.")
    last: Address = Field(description="Its last address, which belongs to it.")

    def __contains__(self, address: IPv4Address) -> bool:
        return self.first <= address <= self.last


class LoadBalancers(Part):
    """How Services of type LoadBalancer get an address: Compass, the hub, and the API of each workload cluster."""

    one_of = ("cilium_pool", "class_name", "on_hosts")

    cilium_pool: Pool | None = Field(None, description="From a range, by Cilium.")
    class_name: LoadBalancerClass | None = Field(None, description="From a load balancer that the cluster has already: its spec.loadBalancerClass.")
    on_hosts: tuple[Address, ...] | None = Field(
        None, description="From addresses that management hosts have already. At least two: for Compass and for the hub."
    )

    @classmethod
    def rules(cls, part: Any) -> Iterator[Finding]:
        """Each only once."""
        fixed = at(part, "on_hosts")
        if fixed is not None and len(fixed) < 2:
            yield Finding(("onHosts",), "there are too few addresses", "write at least two: for Compass and for the hub")
        yield from (Finding(("onHosts", *finding.place[1:]), finding.what, finding.remedy) for finding in twice(part, "on_hosts", "address"))


class Api(Part):
    """How the management cluster's API is reached."""

    virtual_address: Address | None = Field(
        None, description="An address of `addresses.hosts` that no machine has; one of the management hosts answers to it. Needed with three and five hosts."
    )
    names: tuple[DnsName, ...] = Field((), description="DNS names by which clients reach it: each leads to its address. The first one is in kubeconfigs.")
    cert_sans: tuple[NameOrAddress, ...] = Field((), alias="certSANs", description="Further names and addresses in its certificate.")


class Service(Part):
    """How a service of CKP is reached."""

    address: Address = Field(description="Its address, which `addresses.loadBalancers` must be able to give.")
    names: tuple[DnsName, ...] = Field((), description="DNS names that lead to it, for its certificate.")


class Addresses(Part):
    """The site's addresses. All are IPv4."""

    hosts: Network = Field(description="The network that management hosts have their addresses in.")
    load_balancers: LoadBalancers = Field(description="How Services of type LoadBalancer get an address.")
    api: Api = Field(Api(), description="The management cluster's API.")
    compass: Service = Field(description="Compass: REST, console and command line.")
    hub: Service = Field(description="The hub, which hosts' agents connect to.")
    management_pods: Network = Field(PODS, description="Network of the management cluster's pods; each host takes a /24 of it. It stays as it is.")
    management_services: Network = Field(SERVICES, description="Network of the management cluster's Services, from /28 to /12. It stays as it is.")

    @property
    def reserved(self) -> Mapping[str, IPv4Network]:
        """Networks that no workload cluster may use: what each is for -> network."""
        return {"hosts": self.hosts, "management pods": self.management_pods, "management services": self.management_services}

    @classmethod
    def rules(cls, part: Any) -> Iterator[Finding]:
        """Networks apart, and each address where it must be."""
        hosts, services = at(part, "hosts"), at(part, "management_services")
        networks = {"hosts": hosts, "managementPods": at(part, "management_pods"), "managementServices": services}
        yield from rules_of_addresses.overlaps(networks, NETWORKS)
        if services is not None:
            yield from (finding.below("managementServices") for finding in rules_of_addresses.service_network(services))
        first, last = (at(part, "load_balancers", "cilium_pool", end) for end in ("first", "last"))
        if first is not None and last is not None:
            yield from (finding.below("loadBalancers", "ciliumPool") for finding in rules_of_addresses.pool(first, last, hosts))
        compass, hub = at(part, "compass", "address"), at(part, "hub", "address")
        for finding in rules_of_addresses.services(compass, hub, first, last):
            yield Finding((*finding.place, "address"), finding.what, finding.remedy)
        if len(at(part, "load_balancers", "on_hosts") or ()) > 1:
            fixed = [address for _, address in items(part, "load_balancers", "on_hosts")]
            for key, address in (("compass", compass), ("hub", hub)):
                if address is not None and address not in fixed:
                    yield Finding((key, "address"), f"the address {address} is not one of loadBalancers.onHosts", "take one of them, or add it there")
            for number, address in items(part, "load_balancers", "on_hosts"):
                yield from (finding.below("loadBalancers", "onHosts", number) for finding in rules_of_addresses.host_address(address, hosts))
                if address == at(part, "api", "virtual_address"):
                    what = f"{address} is the virtual address of the management API, which moves between hosts"
                    yield Finding(("loadBalancers", "onHosts", number), what, "take an address that one host has")
        yield from cls._virtual_address(part, first, last, {"Compass": compass, "the hub": hub})

    @classmethod
    def _virtual_address(cls, part: Any, first: IPv4Address | None, last: IPv4Address | None, services: Mapping[str, Any]) -> Iterator[Finding]:
        virtual, place = at(part, "api", "virtual_address"), ("api", "virtualAddress")
        if virtual is None:
            return
        yield from (finding.below(*place) for finding in rules_of_addresses.host_address(virtual, at(part, "hosts")))
        if first is not None and last is not None and first <= virtual <= last:
            yield Finding(place, f"the address {virtual} is in the load balancers' range {first} to {last}", "take a free address outside of that range")
        else:
            for what, address in services.items():
                if virtual == address:
                    yield Finding(place, f"{what} has the address {virtual}", "take an address that nothing else has")


# -- registry, storage, database


class OwnRegistry(Part):
    """A registry that CKP runs on the management hosts."""

    name: DnsName = Field(description="The name that hosts and images know it by. It is in signed bundles, so it stays as it is.")
    port: Port = Field(REGISTRY_PORT, description="TCP port that everybody pulls from. The next one takes pushes, with a password. It stays as it is.")
    storage: HostPath = Field(
        PurePosixPath("/var/lib/ckp-registry"), description="Folder with its content; a release needs about 2 GiB. Applying moves none to another folder."
    )

    @property
    def push_port(self) -> int:
        """TCP port that takes pushes."""
        return self.port + 1

    @classmethod
    def rules(cls, part: Any) -> Iterator[Finding]:
        """There is a next port."""
        if at(part, "port") == LAST_PORT:
            yield Finding(("port",), f"{LAST_PORT} is the last port, and pushes need the one after it", "write another port, such as 5000")


class ExistingRegistry(Part):
    """A registry that is there already."""

    address: RegistryAddress = Field(description="Its address, as images name it. It is in signed bundles, so it stays as it is.")
    prefix: RepositoryPrefix | None = Field(
        None, description="What names of CKP's repositories begin with: `PREFIX/ckp/…`. It is in signed bundles, so it stays as it is. Default: nothing."
    )
    ca_file: FilePath | None = Field(None, description="CA of its certificate (PEM). Default: the CAs that hosts trust already.")
    credentials_file: FilePath | None = Field(
        None,
        description="User and password that this machine pushes with, in the format of docker's config.json, readable by its owner only. They leave it for "
        "the registry only. Default: none are needed.",
    )
    pull_credentials_file: FilePath | None = Field(
        None,
        description="User and password that hosts pull with, in the same format: all hosts get them, so let them be able to read only. The registry takes "
        "them by HTTP's Basic authentication, or gives tokens for them. Default: everybody may pull.",
    )


class Registry(Part):
    """The registry that hosts pull from."""

    one_of = ("own", "existing")

    own: OwnRegistry | None = Field(None, description="CKP's own.")
    existing: ExistingRegistry | None = Field(None, description="One that is there already.")


class EtcdStorage(Part):
    """What volumes of etcd are made of. Etcd waits for each write to be on the disk: take an SSD or NVMe."""

    one_of = ("path", "class_name")

    path: HostPath | None = Field(
        None, description="Folder on the management hosts: empty, or not there yet; for root only. CKP makes the StorageClass ckp-etcd for it."
    )
    class_name: ClassName | None = Field(None, description="A StorageClass that the management cluster has.")


class Storage(Part):
    """Where data lies."""

    etcd: EtcdStorage | None = Field(
        None,
        description="Volumes of the workload clusters' etcd; clusters that are there keep theirs. Default: the management cluster's default StorageClass.",
    )


class Sqlite(Part):
    """SQLite on a volume: for a Compass with one replica. It has no settings: write `sqlite: {}`."""


class Postgresql(Part):
    """A PostgreSQL server, 15 or newer, that is there already."""

    url_file: FilePath = Field(
        description="File with its URL on one line, `postgresql://user:password@host:5432/database`, readable by its owner only. "
        "`?sslmode=` takes disable, require (the default without `caFile`), verify-ca or verify-full (the default with it)."
    )
    ca_file: FilePath | None = Field(None, description="CA (PEM) that its certificate has to chain to. Default: the connection is encrypted, and not verified.")


class Database(Part):
    """Where Compass keeps users, tokens, requests and its audit log. A site keeps the one that it was made with."""

    one_of = ("sqlite", "postgresql")

    sqlite: Sqlite | None = Field(None, description="SQLite on a volume: Compass has one replica.")
    postgresql: Postgresql | None = Field(None, description="PostgreSQL: Compass has two replicas.")


# -- network, trust, backup


class Proxy(Part):
    """The proxy for connections that leave the site. One with a user and a password is not supported: let it admit the hosts by their addresses."""

    http: ProxyUrl | None = Field(None, description="Proxy for http.")
    https: ProxyUrl | None = Field(None, description="Proxy for https.")
    no_proxy: tuple[NoProxy, ...] = Field(
        (), description="What is reached directly, beyond the site's own networks and names. A domain covers what is below it."
    )

    @classmethod
    def rules(cls, part: Any) -> Iterator[Finding]:
        """At least one."""
        if not given(part, "http") and not given(part, "https"):
            yield Finding((), "http and https are missing", "write at least one of them, or remove `proxy`")


class NetworkSettings(Part):
    """What hosts, pulls and pods need to know of the network."""

    proxy: Proxy | None = Field(None, description="The proxy for connections that leave the site. Default: none.")
    dns: tuple[Address, ...] = Field((), description="Nameservers. Default: those that each host has.")
    time_servers: tuple[NameOrAddress, ...] = Field((), description="NTP servers. Default: those that each host has.")
    ca_files: tuple[FilePath, ...] = Field((), description="Private CAs (PEM) to trust beside the system's.")

    @classmethod
    def rules(cls, part: Any) -> Iterator[Finding]:
        """Each only once."""
        yield from twice(part, "dns", "nameserver")
        for finding in twice(part, "time_servers", "time server"):
            yield Finding(("timeServers", *finding.place[1:]), finding.what, finding.remedy)


class Trust(Part):
    """Which keys may have signed what is installed."""

    keyring_file: FilePath | None = Field(None, description="OpenPGP keyring with the trusted keys (`ckp keys export`). Default: this machine's own.")
    fingerprints: tuple[Fingerprint, ...] = Field((), description="Keys of the keyring that are trusted. Default: all of them.")

    @classmethod
    def rules(cls, part: Any) -> Iterator[Finding]:
        """Each only once."""
        yield from twice(part, "fingerprints", "fingerprint")


class S3(Part):
    """A bucket of an object store with Amazon's S3 API."""

    endpoint: Endpoint = Field(description="URL of the store.")
    region: Region = Field("us-east-1", description="Its region, as requests are signed for it.")
    bucket: Bucket = Field(description="The bucket, which exists already.")
    prefix: Prefix | None = Field(None, description="What names of objects begin with. Default: nothing.")
    credentials_file: FilePath = Field(description="Access key and secret key, in the format of ~/.aws/credentials.")
    ca_file: FilePath | None = Field(None, description="CA of its certificate (PEM). Default: the CAs that the system trusts, and those of `network.caFiles`.")


class BackupTarget(Part):
    """Where backups are kept."""

    one_of = ("path", "s3")

    path: HostPath | None = Field(None, description="Folder, on a file system that survives the hosts.")
    s3: S3 | None = Field(None, description="A bucket.")


class Backup(Part):
    """Backups of the whole site."""

    to: BackupTarget = Field(description="Where they are kept.")
    every: Interval | None = Field(
        None,
        description="How old the newest one may become, from 5m to 744h: the management hosts and `ckp site backup --if-due` make one if it is older, "
        "and `ckp site status` says when it is late. Default: no time is due.",
    )
    by_hosts: bool = Field(
        True,
        description="`false`: management hosts make none by themselves, and `ckp site backup --if-due` is run elsewhere. They need gpg, and reach the bucket.",
    )
    keep: Count = Field(7, description="How many are kept there; older ones are deleted when another one was made.")
    encrypt_for: tuple[FilePath, ...] = Field(
        description="OpenPGP certificates (public keys) whose owners can read the backups. At least one: a backup holds private keys."
    )

    @classmethod
    def rules(cls, part: Any) -> Iterator[Finding]:
        """At least one reader."""
        if at(part, "encrypt_for") == ():
            yield Finding(("encryptFor",), "it names nobody", "write the path of at least one OpenPGP certificate: a backup holds private keys")


# -- releases


class ReleasesFrom(Part):
    """A registry that releases were published to (`ckp dist publish`), for this site's registry. They are verified by the keys that the site trusts."""

    registry: RegistryAddress = Field(description="Its address.")
    ca_file: FilePath | None = Field(None, description="CA of its certificate (PEM). Default: the CAs that this machine trusts.")
    credentials_file: FilePath | None = Field(
        None, description="User and password that this machine pulls with, in the format of docker's config.json, readable by its owner only."
    )


# -- workers, and the whole


class Group(Part):
    """A host group of Compass."""

    name: Label = Field(description="Its name.")
    description: Line = Field("Workers of this site", description="What it is for, on one line.")


class Workers(Part):
    """Hosts for workload clusters."""

    group: Group | None = Field(None, description="The group that hosts are put into when they enrol. Default: none.")
    systems: tuple[SystemName, ...] = Field(
        (), description="Operating systems that they run, beside that of the management hosts: the site has host bundles for them. Default: no others."
    )

    @classmethod
    def rules(cls, part: Any) -> Iterator[Finding]:
        """Each only once."""
        yield from twice(part, "systems", "operating system")


class Metadata(Part):
    """How the site is called."""

    name: Label = Field(description="The site's name. Choose one that differs from those of your other sites: it is in names of backups and contexts.")


@dataclass(frozen=True)
class Origin:
    """The file that a site was read from. It is no part of what the site is: all origins are equal."""

    file: Path | None = field(default=None, compare=False)
    lines: Mapping[Place, int] = field(default_factory=dict, compare=False)


class SiteSpec(Part):
    """A site: the whole of `site.yaml`."""

    api_version: Literal["ckp.coredge.io/v1alpha1"] = Field(description="Version of this format.")
    kind: Literal["Site"] = Field(description="What the file describes.")
    metadata: Metadata = Field(description="How the site is called.")
    management: Management = Field(description="Where the management cluster runs.")
    addresses: Addresses = Field(description="The site's addresses.")
    registry: Registry = Field(description="The registry that hosts pull from.")
    storage: Storage = Field(Storage(), description="Where data lies.")
    database: Database = Field(Database(sqlite=Sqlite()), description="Where Compass keeps its data. Default: SQLite.")
    releases: tuple[ReleaseName, ...] = Field(
        default_factory=lambda: (newest_release(),),
        description="Releases that the site offers (`ckp release list`), side by side. A new management cluster gets the newest of them, and keeps it. "
        "Default: the newest supported one.",
    )
    releases_from: ReleasesFrom | None = Field(
        None,
        description="Where releases come from that no file holds, but for that of the management cluster. Default: they are built on this machine.",
    )
    network: NetworkSettings = Field(NetworkSettings(), description="What hosts, pulls and pods need to know of the network.")
    trust: Trust = Field(Trust(), description="Which keys may have signed what is installed.")
    backup: Backup | None = Field(None, description="Backups of the whole site. Default: none are made.")
    workers: Workers | None = Field(None, description="Hosts for workload clusters. Default: they are put into no group.")
    host_settings: Mapping[str, Any] = Field(
        {}, description="Each host's own settings (`host.json`), over the release's. A cluster keeps those that it was made with."
    )
    addon_values: Mapping[str, Mapping[str, Any]] = Field({}, description="Chart -> its Helm values, over the release's.")

    _origin: Origin = PrivateAttr(default_factory=Origin)

    @property
    def file(self) -> Path | None:
        """The file that it was read from; None if it was made in another way."""
        return self._origin.file

    def line(self, *place: str | int) -> int:
        """The line (from 1) of a value: of its key, or of what it is in if it is not in the file itself; 0 without a file.

        Args:
            place: keys as they are in the file, and positions in lists, such as `"management", "hosts", 0`.
        """
        while place and place not in self._origin.lines:
            place = place[:-1]
        return self._origin.lines.get(place, 0)

    @classmethod
    def rules(cls, part: Any) -> Iterator[Finding]:
        """What parts have to do with each other."""
        yield from _hosts_and_addresses(part)
        releases = at(part, "releases")
        if releases == ():
            yield Finding(("releases",), "there is no release", "name at least one (`ckp release list`), or remove the key for the newest")
        yield from twice(part, "releases", "release")


def _hosts_and_addresses(part: Any) -> Iterator[Finding]:
    network, hosts = at(part, "addresses", "hosts"), at(part, "management", "hosts")
    virtual, place = at(part, "addresses", "api", "virtual_address"), ("addresses", "api", "virtualAddress")
    first, last = (at(part, "addresses", "load_balancers", "cilium_pool", end) for end in ("first", "last"))
    for number, host in items(part, "management", "hosts"):
        address = at(host, "address")
        if address is None:
            continue
        yield from (finding.below("management", "hosts", number, "address") for finding in rules_of_addresses.host_address(address, network))
        if first is not None and last is not None and first <= address <= last:
            what = f"the address {address} is in the load balancers' range {first} to {last}"
            yield Finding(("management", "hosts", number, "address"), what, "shorten the range so that it has free addresses only")
        of_services = {key: at(part, "addresses", key, "address") for key in ("compass", "hub")}
        for other, shared in items(part, "addresses", "load_balancers", "on_hosts"):
            if shared == address and shared not in of_services.values():
                what = f"management.hosts[{number}] has the address {shared}, whose port 6443 is the management API's: workload clusters' APIs need it"
                remedy = "take a further address of a host, or let Compass or the hub have this one"
                yield Finding(("addresses", "loadBalancers", "onHosts", other), what, remedy)
        for key, given_address in of_services.items() if given(at(part, "addresses", "load_balancers"), "class_name") else ():
            if given_address == address:
                what = f"management.hosts[{number}] has the address {address}, which a load balancer can't give"
                yield Finding(("addresses", key, "address"), what, "write an address that the load balancer gives")
        if address == virtual:
            yield Finding(place, f"management.hosts[{number}] has the address {virtual}", "take an address that no machine has")
    if hosts is not None and len(hosts) > 1 and len(hosts) in HOST_COUNTS and absent(part, "addresses", "api", "virtual_address"):
        what = f"virtualAddress is missing, and there are {len(hosts)} management hosts"
        yield Finding(("addresses", "api"), what, f"write a free address of {network or 'addresses.hosts'} that no machine has")
    if virtual is not None and at(part, "management", "kubeconfig") is not None:
        yield Finding(place, "an existing cluster has its own address", "remove the key")
    if at(part, "management", "kubeconfig") is not None and absent(part, "management", "hosts"):
        yield from existing_cluster.rules(part)
    folder = at(part, "storage", "etcd", "path")
    content = at(part, "registry", "own", "storage")
    if folder is not None and content is not None and (folder == content or folder in content.parents or content in folder.parents):
        yield Finding(("storage", "etcd", "path"), f"{folder} and the registry's folder {content} are within each other", "write a path of its own")
    pods = at(part, "addresses", "management_pods")
    if pods is not None and room(pods) < (count := max(1, len(hosts or ()))):
        what = f"the pods' network {pods} has room for {room(pods)} hosts, and there are {count}"
        yield Finding(("addresses", "managementPods"), what, "each host takes a /24: write a larger one, such as 10.244.0.0/16")
