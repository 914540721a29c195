"""`site.yaml`: what each rule says of a file that breaks it, with the line and what to write instead."""

from __future__ import annotations

import re
from datetime import timedelta
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path, PurePosixPath

import pytest
from pydantic import ValidationError

from ckp.kits.errors import InvalidInput
from ckp.site.spec import reference, template
from ckp.site.spec.model import SiteSpec
from ckp.site.spec.part import Part, key_of
from ckp.site.spec.read import InvalidSite, parse_site, read_site
from ckp.site.spec.reference import EXAMPLE
from ckp.site.spec.template import Answers
from ckp.site.spec.types import catalog_releases, newest_release

FILE = Path("/srv/site/site.yaml")
ONE = """\
apiVersion: ckp.coredge.io/v1alpha1
kind: Site
metadata:
  name: rack-7
management:
  hosts:
    - {name: node-1, address: 192.0.2.11}
addresses:
  hosts: 192.0.2.0/24
  loadBalancers:
    ciliumPool: {first: 192.0.2.100, last: 192.0.2.119}
  compass: {address: 192.0.2.100}
  hub: {address: 192.0.2.101}
registry:
  own: {name: registry.rack-7.internal}
"""
SECOND, THIRD = "    - {name: node-2, address: 192.0.2.12}\n", "    - {name: node-3, address: 192.0.2.13}\n"
API = "  api: {virtualAddress: 192.0.2.10}\n"


def site(text: str = ONE) -> SiteSpec:
    return parse_site(text.encode(), FILE)


def errors(text: str) -> list[str]:
    """What is found, as `line:column: key: what; remedy`."""
    with pytest.raises(InvalidSite) as caught:
        site(text)
    return [line.removeprefix(f"{FILE}:") for line in caught.value.details.splitlines()]


def changed(old: str, new: str, text: str = ONE) -> str:
    """The file with one piece of it replaced."""
    assert text.count(old) == 1, old
    return text.replace(old, new)


def three(text: str = ONE) -> str:
    """With three hosts, and the address that they need."""
    return changed("  loadBalancers:", f"{API}  loadBalancers:", changed("192.0.2.11}\n", f"192.0.2.11}}\n{SECOND}{THIRD}", text))


def test_the_smallest_file_has_defaults_for_all_else() -> None:
    spec = site()
    assert spec.management.hosts is not None
    connection = spec.management.hosts[0].connection
    assert connection is not None and (connection.host, connection.user, connection.port) == ("node-1", "root", None)
    assert (spec.addresses.management_pods, spec.addresses.management_services) == (IPv4Network("10.244.0.0/16"), IPv4Network("10.96.0.0/16"))
    assert spec.registry.own is not None and (spec.registry.own.port, spec.registry.own.storage) == (5000, PurePosixPath("/var/lib/ckp-registry"))
    assert spec.database.sqlite is not None and spec.releases == (newest_release(),) and spec.backup is None and spec.workers is None


def test_everything_that_a_file_may_have_is_read() -> None:
    spec = site(
        three()
        .replace("{name: node-1, address: 192.0.2.11}", "{name: node-1, address: 192.0.2.11, local: true}")
        .replace(
            "{name: node-2, address: 192.0.2.12}",
            "{name: node-2, address: 192.0.2.12, ssh: {host: n2, user: admin, port: 2222, identityFile: keys/id, configFile: /c}}",
        )
        + """\
storage: {etcd: {path: /data/etcd}}
database: {postgresql: {urlFile: pg}}
releases: [v1.34.3, v1.35.1]
network:
  proxy: {http: http://proxy.example:3128, noProxy: [.example, 192.0.2.0/24, 192.0.2.1]}
  dns: [192.0.2.53]
  timeServers: [ntp.example]
  caFiles: [../ca.pem]
trust: {keyringFile: trusted.gpg, fingerprints: [0123 4567 89ab cdef 0123  4567 89ab cdef 0123 4567]}
backup:
  to: {s3: {endpoint: "https://s3.example:9000", bucket: backups, prefix: a/b, credentialsFile: s3, caFile: ca}}
  every: 1h30m
  keep: 3
  encryptFor: [me.pgp]
workers: {group: {name: all, description: Everything}}
hostSettings: {kubelet: {maxPods: 50, evictionHard: {memory.available: 100Mi}}}
addonValues: {cilium: {mtu: 9000, debug: true, list: [1, a, 0.5, null]}}
"""
    )
    one, two, _ = spec.management.hosts or ()
    assert one.connection is None
    assert two.connection is not None and (two.connection.host, two.connection.user, two.connection.port) == ("n2", "admin", 2222)
    assert (two.connection.identity_file, two.connection.config_file) == (Path("/srv/site/keys/id"), Path("/c"))
    assert spec.network.ca_files == (Path("/srv/site/../ca.pem"),) and spec.network.dns == (IPv4Address("192.0.2.53"),)
    assert spec.trust.fingerprints == ("0123456789ABCDEF" * 2 + "01234567",)
    assert spec.backup is not None and (spec.backup.every, spec.backup.keep) == (timedelta(minutes=90), 3)
    assert spec.host_settings == {"kubelet": {"maxPods": 50, "evictionHard": {"memory.available": "100Mi"}}}
    assert spec.addon_values == {"cilium": {"mtu": 9000, "debug": True, "list": [1, "a", 0.5, None]}}


RULES: list[tuple[str, str, str]] = [
    # -- keys
    ("kind: Site\n", "kind: Sight\n", "2:7: kind: 'Sight' is not valid here; write `Site`"),
    ("kind: Site\n", "", "1:1: kind is missing; write `kind`: What the file describes"),
    ("ckp.coredge.io/v1alpha1", "ckp.coredge.io/v2", "1:13: apiVersion: 'ckp.coredge.io/v2' is not valid here; write `ckp.coredge.io/v1alpha1`"),
    ("  own: {name:", "  own: {port: 65535, name:", "15:15: registry.own.port: 65535 is the last port, and pushes need the one after it; write another port"),
    ("  own: {name:", "  own: {nam:", "15:9: registry.own: there is no key 'nam' here; write `name`, or remove it"),
    ("registry:\n", "xyz: 1\nregistry:\n", "14:1: there is no key 'xyz' here; write one of apiVersion, kind, metadata, management, addresses, registry"),
    ("  name: rack-7\n", "  name: rack-7\n  name: b\n", "5:3: metadata: line 4 has the key 'name' already; keep one of the two"),
    ("  name: rack-7\n", "  name:\n", "4:3: metadata.name: it has no value; write a value (name (RFC 1123 label)), or remove the key"),
    ("  name: rack-7\n", "  name: [a]\n", "4:9: metadata.name: this is a list; write one value: name (RFC 1123 label)"),
    ("metadata:\n  name: rack-7\n", "metadata: rack-7\n", "3:11: metadata: this is a single value, and must be a mapping; write keys below it: name"),
    ("metadata:\n  name: rack-7\n", "metadata:\n", "3:1: metadata: name is missing; write `name`: The site's name."),
    ("metadata:\n", "? [a]\n: b\nmetadata:\n", "3:3: a list can't be a key; write a name followed by a colon"),
    ("metadata:\n", "<<: {a: b}\nmetadata:\n", "3:1: a merge key can't be a key; write a name followed by a colon"),
    # -- management
    ("name: node-1", "name: Node_1", "7:14: management.hosts[0].name: 'Node_1' is not a name; write 1 to 63 lower-case letters"),
    (
        "192.0.2.11}\n",
        f"192.0.2.11}}\n{SECOND}",
        "6:3: management.hosts: there are 2 hosts, and 2 etcd members survive as few losses as 1; write 1, 3 or 5",
    ),
    (
        "    - {name: node-1, address: 192.0.2.11}\n",
        "    []\n",
        "6:3: management.hosts: there are 0 hosts, and etcd has 1, 3 or 5 members; write 1, 3 or 5 hosts",
    ),
    (
        "    - {name: node-1, address: 192.0.2.11}\n",
        "    node-1\n",
        "7:5: management.hosts: this is a single value, and must be a list; write each item on a line of its own",
    ),
    (
        "  hosts:\n    -",
        "  kubeconfig: k\n  hosts:\n    -",
        "6:15: management.kubeconfig: hosts and kubeconfig exclude each other; write exactly one of hosts and kubeconfig",
    ),
    (
        "  hosts:\n    - {name: node-1, address: 192.0.2.11}\n",
        "",
        "5:1: management: one of hosts and kubeconfig is missing; write exactly one of hosts and kubeconfig",
    ),
    (
        "192.0.2.11}",
        "192.0.2.11, ssh: {host: -oProxyCommand=id}}",
        "7:55: management.hosts[0].ssh.host: '-oProxyCommand=id' is nothing that ssh can be called with",
    ),
    ("192.0.2.11}", "192.0.2.11, ssh: {host: root@n}}", "7:55: management.hosts[0].ssh.host: 'root@n' names a user as well; write the part before @ as `user`"),
    ("192.0.2.11}", "192.0.2.11, ssh: {user: -l}}", "7:55: management.hosts[0].ssh.user: '-l' is not a user's name; write the login name"),
    ("192.0.2.11}", "192.0.2.11, ssh: {port: 0}}", "7:55: management.hosts[0].ssh.port: 0 is not a port; write a number from 1 to 65535"),
    (
        "192.0.2.11}",
        "192.0.2.11, ssh: {password: x}}",
        "7:49: management.hosts[0].ssh.password: secrets are not written into this file; write it into a file of its own (mode 0600), and write `identityFile:",
    ),
    ("192.0.2.11}", "192.0.2.11, ssh: {user: a}, local: true}", "7:66: management.hosts[0].local: ssh and local exclude each other; remove `ssh`, or `local`"),
    ("192.0.2.11}", "192.0.2.11, local: yes}", "7:50: management.hosts[0].local: 'yes' is not a truth value; write true or false, without quotes"),
    (
        "192.0.2.11}",
        "198.51.100.1}",
        "7:31: management.hosts[0].address: the address 198.51.100.1 is not in the hosts' network 192.0.2.0/24; write an address of that network",
    ),
    (
        "192.0.2.11}",
        "192.0.2.0}",
        "7:31: management.hosts[0].address: the address 192.0.2.0 is the first one of 192.0.2.0/24, which no interface can have; write another",
    ),
    (
        "192.0.2.11}",
        "192.0.2.119}",
        "7:31: management.hosts[0].address: the address 192.0.2.119 is in the load balancers' range 192.0.2.100 to 192.0.2.119; shorten the range",
    ),
    ("192.0.2.11}", "2001:db8::1}", "7:31: management.hosts[0].address: '2001:db8::1' is not an IPv4 address; write one such as 192.0.2.10"),
    # -- addresses
    ("hosts: 192.0.2.0/24", "hosts: 192.0.2.7/24", "9:10: addresses.hosts: '192.0.2.7/24' is not how that network is written; write 192.0.2.0/24"),
    ("hosts: 192.0.2.0/24", "hosts: 192.0.2.0", "9:10: addresses.hosts: '192.0.2.0' has no prefix length; write one such as 192.0.2.0/24"),
    ("hosts: 192.0.2.0/24", "hosts: 2001:db8::/64", "9:10: addresses.hosts: '2001:db8::/64' is not an IPv4 network; write one such as 192.0.2.0/24"),
    (
        "last: 192.0.2.119",
        "last: 192.0.2.99",
        "11:25: addresses.loadBalancers.ciliumPool.first: the load balancers' range 192.0.2.100 to 192.0.2.99 ends before it begins; write the lower",
    ),
    (
        "last: 192.0.2.119",
        "last: 192.0.3.1",
        "11:44: addresses.loadBalancers.ciliumPool.last: the load balancers' range 192.0.2.100 to 192.0.3.1 is not in the hosts' network 192.0.2.0/24;",
    ),
    (
        "hub: {address: 192.0.2.101}",
        "hub: {address: 192.0.2.100}",
        "13:18: addresses.hub.address: Compass and the hub have the same address 192.0.2.100; give each an address",
    ),
    (
        "compass: {address: 192.0.2.100}",
        "compass: {address: 192.0.2.99}",
        "12:22: addresses.compass.address: the address 192.0.2.99 of Compass is not in the load balancers' range 192.0.2.100",
    ),
    (
        "compass: {address: 192.0.2.100}",
        'compass: {address: 192.0.2.100, names: ["*.x"]}',
        "12:43: addresses.compass.names[0]: '*.x' is not a DNS name; write one in lower case",
    ),
    (
        "registry:\n",
        "  managementPods: 192.0.0.0/16\nregistry:\n",
        "14:19: addresses.managementPods: the site's networks overlap: hosts 192.0.2.0/24 and management pods 192.0.0.0/16; give each",
    ),
    (
        "registry:\n",
        "  managementServices: 10.244.8.0/24\nregistry:\n",
        "14:23: addresses.managementServices: the site's networks overlap: management pods 10.244.0.0/16 and management services 10.244.8.0/24; give",
    ),
    (
        "registry:\n",
        "  managementServices: 10.96.0.0/29\nregistry:\n",
        "14:23: addresses.managementServices: the services' network 10.96.0.0/29 is too small; write at least a /28",
    ),
    (
        "registry:\n",
        "  managementServices: 10.0.0.0/11\nregistry:\n",
        "14:23: addresses.managementServices: the services' network 10.0.0.0/11 is too large; write at most a /12",
    ),
    (
        "registry:\n",
        "  managementPods: 10.9.0.0/25\nregistry:\n",
        "14:19: addresses.managementPods: the pods' network 10.9.0.0/25 has room for 0 hosts, and there are 1; each host takes a /24",
    ),
    (
        "ciliumPool: {first: 192.0.2.100, last: 192.0.2.119}",
        "onHosts: [192.0.2.100]",
        "11:5: addresses.loadBalancers.onHosts: there are too few addresses; write at least two",
    ),
    (
        "ciliumPool: {first: 192.0.2.100, last: 192.0.2.119}",
        "onHosts: [192.0.2.100, 192.0.2.102]",
        "13:18: addresses.hub.address: the address 192.0.2.101 is not one of loadBalancers.onHosts; take one",
    ),
    (
        "ciliumPool: {first: 192.0.2.100, last: 192.0.2.119}",
        "{}",
        "10:3: addresses.loadBalancers: one of ciliumPool, className and onHosts is missing; write exactly one of ciliumPool, className and onHosts",
    ),
    (
        "ciliumPool: {first: 192.0.2.100, last: 192.0.2.119}",
        "className: a b",
        "11:16: addresses.loadBalancers.className: 'a b' is not a load balancer class; write spec.loadBalancerClass",
    ),
    # -- registry, storage, database
    (
        "registry.rack-7.internal}",
        "registry.rack-7.internal, port: 5_000}",
        "15:47: registry.own.port: '5_000' is not a whole number; write it in decimal digits",
    ),
    (
        "registry.rack-7.internal}",
        "registry.rack-7.internal, storage: ../x}",
        "15:50: registry.own.storage: '../x' is not a path on a host; write an absolute path",
    ),
    (
        "own: {name: registry.rack-7.internal}",
        "existing: {address: https://r.example}",
        "15:23: registry.existing.address: 'https://r.example' is not the address of a registry; write host:port, without https://",
    ),
    (
        "own: {name: registry.rack-7.internal}",
        "existing: {address: 'r.example:0'}",
        "15:23: registry.existing.address: 'r.example:0' is not the address of a registry; write host:port, such as",
    ),
    (
        "own: {name: registry.rack-7.internal}",
        "existing: {address: r.example, password: x}",
        "15:34: registry.existing.password: secrets are not written into this file; write it into a file of its own (mode 0600), and write `credentialsFile:",
    ),
    (
        "registry:\n",
        "storage: {etcd: {path: /a, className: b}}\nregistry:\n",
        "14:39: storage.etcd.className: path and className exclude each other; write exactly one of path and className",
    ),
    (
        "registry:\n",
        "database: {sqlite: {}, postgresql: {urlFile: a}}\nregistry:\n",
        "14:24: database.postgresql: sqlite and postgresql exclude each other; write exactly one",
    ),
    (
        "registry:\n",
        "database: {postgresql: {url: postgresql://u:pw@h/d}}\nregistry:\n",
        "14:25: database.postgresql.url: this URL holds a password; write it into a file of its own (mode 0600), and write `urlFile: <path of that file>`",
    ),
    (
        "registry:\n",
        "database: {postgresql: {urlFile: 'postgresql://u:pw@h/d'}}\nregistry:\n",
        "14:34: database.postgresql.urlFile: this URL holds a password; write it into a file of its own (mode 0600), and write that file's path as `urlFile`",
    ),
    (
        "registry:\n",
        "database: {postgresql: {urlFile: postgresql://h/d}}\nregistry:\n",
        "14:34: database.postgresql.urlFile: 'postgresql://h/d' is not a path; write the path of a file",
    ),
    # -- releases, network, trust, backup, workers
    (
        "registry:\n",
        "releases: [v1.2.3]\nregistry:\n",
        f"14:12: releases[0]: 'v1.2.3' is not a release of the catalog; write one of {', '.join(catalog_releases())}",
    ),
    ("registry:\n", "releases: [v1.35.1, v1.35.1]\nregistry:\n", "14:21: releases[1]: releases[0] has the release v1.35.1 already; remove one of the two"),
    ("registry:\n", "releases: []\nregistry:\n", "14:1: releases: there is no release; name at least one"),
    ("registry:\n", "network: {proxy: {}}\nregistry:\n", "14:11: network.proxy: http and https are missing; write at least one of them, or remove `proxy`"),
    (
        "registry:\n",
        "network: {proxy: {http: 'http://a:b@p.example'}}\nregistry:\n",
        "14:25: network.proxy.http: this URL holds a password; remove it: no secret is needed here",
    ),
    (
        "registry:\n",
        "network: {proxy: {http: 'http://a@p.example'}}\nregistry:\n",
        "14:25: network.proxy.http: 'http://…' has more than a host and a port; write one such as http://example.com:8080",
    ),
    (
        "registry:\n",
        "network: {proxy: {http: 'p.example:3128'}}\nregistry:\n",
        "14:25: network.proxy.http: 'p.example:3128' is not a URL that begins with http://; write one such as",
    ),
    (
        "registry:\n",
        "network: {proxy: {http: 'http://p.example', noProxy: [a b]}}\nregistry:\n",
        "14:55: network.proxy.noProxy[0]: 'a b' is neither a domain, an address nor a network; write one such as",
    ),
    (
        "registry:\n",
        "network: {dns: [192.0.2.1, 192.0.2.1]}\nregistry:\n",
        "14:28: network.dns[1]: dns[0] has the nameserver 192.0.2.1 already; remove one of the two",
    ),
    (
        "registry:\n",
        "trust: {fingerprints: [89ABCDEF01234567]}\nregistry:\n",
        "14:24: trust.fingerprints[0]: '89ABCDEF01234567' is not the fingerprint of an OpenPGP key; write all 40 (or 64) hexadecimal digits",
    ),
    (
        "registry:\n",
        "backup: {to: {path: /b}, every: 1m, encryptFor: [a]}\nregistry:\n",
        "14:33: backup.every: '1m' is no interval for this; write one from 5m to 744h",
    ),
    (
        "registry:\n",
        "backup: {to: {path: /b}, every: daily, encryptFor: [a]}\nregistry:\n",
        "14:33: backup.every: 'daily' is not a duration; write one such as 90m, 24h or 1h30m",
    ),
    (
        "registry:\n",
        "backup: {to: {path: /b}, encryptFor: []}\nregistry:\n",
        "14:26: backup.encryptFor: it names nobody; write the path of at least one OpenPGP certificate",
    ),
    (
        "registry:\n",
        "backup: {to: {path: /b}, keep: 0, encryptFor: [a]}\nregistry:\n",
        "14:32: backup.keep: 0 is not a number of backups; write a number from 1 to 1000",
    ),
    (
        "registry:\n",
        "backup: {to: {s3: {endpoint: 'https://s', bucket: bb-b, credentialsFile: c, secretKey: k}}, encryptFor: [a]}\nregistry:\n",
        "14:77: backup.to.s3.secretKey: secrets are not written",
    ),
    (
        "registry:\n",
        "workers: {group: {name: a, description: ''}}\nregistry:\n",
        "14:41: workers.group.description: '' is not a line of text; write 1 to 200 characters on one line",
    ),
    # -- values without a type of ours
    (
        "registry:\n",
        "addonValues: {cilium: {a: no}}\nregistry:\n",
        "14:27: addonValues.cilium.a: 'no' means different things to different readers of YAML; write it in quotes if it is text or false",
    ),
    (
        "registry:\n",
        "addonValues: {cilium: {a: 012}}\nregistry:\n",
        "14:27: addonValues.cilium.a: '012' means different things to different readers of YAML; write it in quotes if it is text, or a decimal",
    ),
    (
        "registry:\n",
        "addonValues: {cilium: {a: 1e3}}\nregistry:\n",
        "14:27: addonValues.cilium.a: '1e3' means different things to different readers of YAML; write it in quotes if it is text, or a decimal",
    ),
    (
        "registry:\n",
        "addonValues: {cilium: {a: 22:30}}\nregistry:\n",
        "14:27: addonValues.cilium.a: '22:30' means different things to different readers of YAML; write it in quotes if it is text",
    ),
    (
        "registry:\n",
        "addonValues: {cilium: {a: 2026-01-01}}\nregistry:\n",
        "14:27: addonValues.cilium.a: '2026-01-01' means different things to different readers of YAML; write it in quotes if it is text",
    ),
    (
        "registry:\n",
        "addonValues: {cilium: {a: .nan}}\nregistry:\n",
        "14:27: addonValues.cilium.a: '.nan' means different things to different readers of YAML; write it in quotes if it is text",
    ),
    (
        "registry:\n",
        "addonValues: {cilium: {x: [{adminPassword: hunter2}]}}\nregistry:\n",
        "14:44: addonValues.cilium.x[0].adminPassword: this looks like a secret, and secrets are not written into this file; keep it in a Secret",
    ),
    (
        "registry:\n",
        "addonValues: {cilium: 5}\nregistry:\n",
        "14:23: addonValues.cilium: this is a single value, and must be a mapping; write keys and values below it",
    ),
    ("registry:\n", "hostSettings: {a: 1, a: 2}\nregistry:\n", "14:22: hostSettings: line 14 has the key 'a' already; keep one of the two"),
    # -- YAML
    ("  name: rack-7\n", "\tname: rack-7\n", "4:1: YAML does not take a tab here; indent with spaces"),
    ("  name: rack-7\n", "  name: &a rack-7\n", "4:9: anchors (&a) are not supported; remove it, and write the value wherever it is needed"),
    ("  name: rack-7\n", "  name: *a\n", "4:9: aliases (*a) are not supported; write the value itself"),
    (
        "  name: rack-7\n",
        "  name: !!str rack-7\n",
        "4:9: tags ('tag:yaml.org,2002:str') are not supported; remove it; text that looks like a number goes into quotes",
    ),
    ("  name: rack-7\n", "  name: a: b\n", "4:10: a colon makes no key here; put text with a colon into quotes, or indent the line as those around it"),
    ("  name: rack-7\n", "  name: 'a\n", "15:1: the file ends inside of a value; close its quotes or brackets"),
    ("  name: rack-7\n", "  name: @a\n", "4:9: this character can't begin a value; put the value into quotes"),
    ("registry:\n", "---\nregistry:\n", "14:1: a second document begins here; describe one site in a file, and remove what follows ---"),
    ("rack-7\n", "rack\u20287\n", "4:13: the character '\\u2028' is not allowed here; remove it, or write it as an escape in double quotes"),
]


@pytest.mark.parametrize(("old", "new", "expected"), RULES, ids=[expected[:60] for *_, expected in RULES])
def test_a_broken_rule_is_named_with_its_line_and_a_remedy(old: str, new: str, expected: str) -> None:
    text = ONE.replace(old, new, 1)
    assert text != ONE
    found = errors(text)
    assert len(found) == 1 and found[0].startswith(expected), found


HA_RULES = [
    (API, "", "10:1: addresses.api: virtualAddress is missing, and there are 3 management hosts; write a free address of 192.0.2.0/24 that no machine has"),
    (
        "virtualAddress: 192.0.2.10",
        "virtualAddress: 192.0.2.12",
        "12:25: addresses.api.virtualAddress: management.hosts[1] has the address 192.0.2.12; take an address that no machine has",
    ),
    (
        "virtualAddress: 192.0.2.10",
        "virtualAddress: 192.0.2.105",
        "12:25: addresses.api.virtualAddress: the address 192.0.2.105 is in the load balancers' range 192.0.2.100 to 192.0.2.119; take a free",
    ),
    (
        "virtualAddress: 192.0.2.10",
        "virtualAddress: 192.0.9.1",
        "12:25: addresses.api.virtualAddress: the address 192.0.9.1 is not in the hosts' network 192.0.2.0/24; write an address of that network",
    ),
    (
        "virtualAddress: 192.0.2.10",
        "certSANs: [a.example]",
        "12:3: addresses.api: virtualAddress is missing, and there are 3 management hosts; write a free address of 192.0.2.0/24 that no machine has",
    ),
    ("node-3, address: 192.0.2.13", "node-1, address: 192.0.2.13", "9:14: management.hosts[2].name: hosts[0] has the name node-1 already; write another name"),
    (
        "node-3, address: 192.0.2.13",
        "node-3, address: 192.0.2.12",
        "9:31: management.hosts[2].address: hosts[1] has the address 192.0.2.12 already; write another address",
    ),
    (
        "{name: node-3, address: 192.0.2.13}",
        "{name: node-3}",
        "9:7: management.hosts[2]: address is missing; write `address`: Its address in `addresses.hosts`",
    ),
    (
        "registry:\n",
        "  managementPods: 10.244.0.0/23\nregistry:\n",
        "17:19: addresses.managementPods: the pods' network 10.244.0.0/23 has room for 2 hosts, and there are 3; each host takes a /24",
    ),
]


@pytest.mark.parametrize(("old", "new", "expected"), HA_RULES, ids=[expected[:60] for *_, expected in HA_RULES])
def test_a_rule_about_several_hosts_is_named_with_its_line_and_a_remedy(old: str, new: str, expected: str) -> None:
    found = errors(changed(old, new, three()))
    assert len(found) == 1 and found[0].startswith(expected), found


def test_only_one_host_is_this_machine() -> None:
    text = re.sub(r"(192\.0\.2\.1[12])}", r"\1, local: true}", three())
    assert errors(text) == ["8:50: management.hosts[1].local: hosts[0] is this machine already; reach the other hosts by `ssh`"]


def test_an_existing_cluster_has_its_own_address() -> None:
    text = changed("  hosts:\n    - {name: node-1, address: 192.0.2.11}\n", "  kubeconfig: k\n")
    found = errors(changed("  loadBalancers:", f"{API}  loadBalancers:", text))
    assert "9:25: addresses.api.virtualAddress: an existing cluster has its own address; remove the key" in found


def test_all_errors_of_a_file_are_named_in_the_order_of_lines() -> None:
    text = three().replace("kind: Site\n", "kynd: Site\n").replace("name: node-2", "name: NODE").replace("192.0.2.13", "192.0.2.12").replace("/24", "/33")
    found = errors(text + "backup: {every: 1}\n")
    assert [item.partition(": ")[0] for item in found] == ["2:1", "8:14", "9:31", "11:10", "19:1", "19:1", "19:17"]


def test_errors_never_quote_a_secret() -> None:
    for text in (
        "database: {postgresql: {url: 'postgresql://u:hunter2@h/d'}}\n",
        "database: {postgresql: {urlFile: 'postgresql://u:hunter2@h/d'}}\n",
        "trust: {keyringFile: 'https://h/?token=hunter2'}\n",
        "addonValues: {cilium: {apiToken: hunter2}}\n",
        "addonValues: {cilium: {a: 'https://u:hunter2@h'}}\n",
        "token: hunter2\n",
        "workers: {group: {name: a, description: '-----BEGIN EC PRIVATE KEY----- hunter2'}}\n",
    ):
        with pytest.raises(InvalidSite) as caught:
            site(ONE + text)
        assert len(caught.value.found) == 1 and "hunter2" not in caught.value.render(), text


def test_text_is_what_is_written() -> None:
    for name in ("no", "012", "1e3", "0x1f", "true", "2026-01-01"):
        assert site(changed("name: rack-7", f"name: {name}")).metadata.name == name
        assert site(changed("name: rack-7", f"name: '{name}'")).metadata.name == name


def test_a_mapping_or_list_without_a_value_is_an_empty_one() -> None:
    assert site(f"{ONE}trust:\nnetwork: {{dns: }}\ndatabase: {{sqlite: }}\nhostSettings:\n") == site()


def test_many_errors_are_cut_and_a_large_file_is_refused() -> None:
    assert errors(ONE + "".join(f"key{number}: 1\n" for number in range(150)))[-1] == "and 50 more"
    with pytest.raises(InvalidSite, match="larger than 1 MiB"):
        site("#" * ((1 << 20) + 1))
    with pytest.raises(InvalidSite, match="more than 20000 values"):
        site(f"a: [{'b,' * 30000}]")
    for bracket in ("[", "- ", "{a: ", "{"):
        with pytest.raises(InvalidSite, match="more than 32 levels deep"):
            site(bracket * 5000)


def test_what_is_no_text_is_refused_where_it_begins() -> None:
    with pytest.raises(InvalidSite, match=r"2:4: this is not UTF-8; save the file as UTF-8"):
        parse_site(b"a: 1\nb: \xff\n", FILE)
    assert parse_site(b"\xef\xbb\xbf" + ONE.encode(), FILE) == parse_site(ONE.replace("\n", "\r\n").encode(), FILE) == site()
    with pytest.raises(InvalidSite, match=r"1:1: .*%YAML"):
        site(f"%YAML 1.1\n---\n{ONE}")


def test_a_file_is_read_from_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    path = tmp_path / "sub" / "site.yaml"
    path.write_text(f"{ONE}trust: {{keyringFile: keys.gpg}}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    spec = read_site(Path("sub/site.yaml"))
    assert spec.trust.keyring_file == tmp_path / "sub" / "keys.gpg" and spec.file == Path("sub/site.yaml")
    path.write_text(f"{ONE}trust: {{keyringFile: ~/keys.gpg}}\n")
    assert read_site(path).trust.keyring_file == Path("/home/someone/keys.gpg")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="there is no file") as caught:
        read_site(tmp_path / "none.yaml")
    assert "ckp site init" in caught.value.resolution
    with pytest.raises(InvalidInput, match="can't be read: Is a directory"):
        read_site(tmp_path)


def test_lines_of_keys_are_known() -> None:
    spec = site(f"{three()}backup: {{to: {{path: /a}}, encryptFor: [a]}}\n")
    assert (spec.line("management", "hosts", 2), spec.line("management", "hosts", 2, "address"), spec.line("addresses", "hub", "names")) == (9, 9, 16)
    assert spec.line("storage") == 0 and spec.line("backup", "keep") == len(three().splitlines()) + 1


def test_a_site_made_in_another_way_follows_the_same_rules() -> None:
    data = site().model_dump(mode="json")
    assert SiteSpec.model_validate(data) == site() and SiteSpec.model_validate(data).line("kind") == 0
    data["addresses"]["hub"]["address"] = "192.0.2.99"
    with pytest.raises(ValidationError, match=r"hub\.address: the address 192\.0\.2\.99 of the hub is not in"):
        SiteSpec.model_validate(data)


def models() -> list[type[Part]]:
    return list(dict(reference._parts()).values())


@pytest.mark.parametrize("model", models(), ids=lambda model: model.__name__)
def test_every_part_and_key_says_what_it_is(model: type[Part]) -> None:
    assert model.__doc__ and all(field.description and field.description.endswith(".") for field in model.model_fields.values())
    assert set(model.one_of) <= set(model.model_fields) and all(re.fullmatch(r"[a-z][A-Za-z0-9]*", key_of(model, name)) for name in model.model_fields)


def settings_of(text: str) -> str:
    """A template with all its commented settings."""
    return re.sub(r"(?m)^( *)#(?! )(?! *$)", r"\1", re.sub(r"(?m)^#(  )", r"\1", text))


def test_a_template_is_a_site_with_and_without_its_commented_settings() -> None:
    text = template.render(EXAMPLE)
    spec, full = site(text), site(settings_of(text))
    assert spec.backup is None and spec.management.hosts is not None and len(spec.management.hosts) == 3
    assert full.backup is not None and full.backup.every == timedelta(hours=24) and full.network.proxy is not None and full.storage.etcd is not None
    assert full.workers is not None and full.addresses.compass.names == ("compass.example.com",)


def test_names_that_yaml_takes_for_something_else_are_quoted_in_a_template() -> None:
    [host] = [("012", IPv4Address("192.0.2.11"))]
    answers = Answers("no", (host,), "1e3", EXAMPLE.network, EXAMPLE.pool, EXAMPLE.release)
    text = template.render(answers)
    assert 'name: "no"' in text and 'name: "012"' in text and 'user: "1e3"' in text
    spec = site(text)
    assert spec.management.hosts is not None and (spec.metadata.name, spec.management.hosts[0].name) == ("no", "012")


@pytest.mark.parametrize(
    ("network", "taken", "pool"),
    [
        ("192.0.2.0/24", ["192.0.2.11"], "192.0.2.205 192.0.2.254"),
        ("192.0.2.0/24", ["192.0.2.254", "192.0.2.240"], "192.0.2.241 192.0.2.253"),
        ("192.0.2.0/24", ["192.0.2.254", "192.0.2.253"], "192.0.2.203 192.0.2.252"),
        ("192.0.2.0/29", ["192.0.2.1"], "192.0.2.2 192.0.2.6"),
        ("192.0.2.0/30", ["192.0.2.1"], ""),
        ("192.0.2.0/32", [], ""),
    ],
)
def test_the_suggested_range_is_free_of_hosts(network: str, taken: list[str], pool: str) -> None:
    found = template.suggest_pool(IPv4Network(network), {IPv4Address(item) for item in taken})
    assert " ".join(map(str, found or ())) == pool


def test_the_suggested_address_of_the_api_is_free() -> None:
    pool = (IPv4Address("192.0.2.100"), IPv4Address("192.0.2.110"))
    taken = {IPv4Address("192.0.2.99"), IPv4Address("192.0.2.98")}
    assert template.suggest_virtual_address(IPv4Network("192.0.2.0/24"), pool, taken) == IPv4Address("192.0.2.97")
    assert template.suggest_virtual_address(IPv4Network("192.0.2.96/28"), pool, {IPv4Address(f"192.0.2.{number}") for number in range(96, 100)}) is None


def test_a_key_with_control_characters_is_shown_on_one_line() -> None:
    found = errors(f'{ONE}addonValues: {{"a\\x1e": [x]}}\n')
    assert len(found) == 1 and "addonValues.a\\x1e: this is a list" in found[0] and found[0].isprintable()
