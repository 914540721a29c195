"""A site's management host with all that applying a site needs of it: names, packages, the host tool with its journal, and a cluster's API.

The API keeps what is applied to it and answers as kubectl prints it, on the host as for the machine that applies. What the host tool says of the
host, it says from the simulated state: its journal, its packages, and what listens.
"""

from __future__ import annotations

import ast
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ckp.api.kinds import MACHINE, MACHINE_DEPLOYMENT, MANAGED_CONTROL_PLANE, Kind
from ckp.api.names import CLUSTER_NAME_LABEL
from ckp.api.platform import Releases
from ckp.hostkit.locations import SITE_SETTINGS
from ckp.site.management import ADMIN, JOURNAL
from ckp.site.publish import CONFIG, DIGEST_ANNOTATION, NAMESPACE, OFFERED, WITHDRAWN
from tests.simulators.management_api import USERS, Obj, SimulatedApi
from tests.simulators.site_host import Said, SimulatedHost

PROGRAM = "/usr/bin/ckp-agent"
STEPS = ("verify", "system", "containerd", "runc", "kernel", "packages", "swap", "init", "kubectl", "helm", "cni", "csi")
OS_RELEASE = 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\nVERSION_ID="12"\n'


def virtual_address_of(settings: Mapping[str, str] | None) -> str:
    """The virtual address of an installation, which its kubeconfigs name."""
    return (settings or {}).get("virtual_address", "")


PARSING = threading.Lock()
"""CPython 3.11 fails where two threads parse at the same time (gh-106905)."""


class ManagementHost(SimulatedHost):
    """A host that can be made a site's management host; those of one cluster have the same `api`."""

    def __init__(self, root: Path, name: str = "m1", address: str = "192.0.2.10", api: SimulatedApi | None = None) -> None:
        super().__init__(root, name, address)
        self.api = api or SimulatedApi()
        self.tokens: list[str] = []
        """With which it has joined."""
        self.dns: dict[str, str] = {}
        self.packages: dict[str, str] = {}
        self.findings: list[dict[str, Any]] = []
        """What the host tool finds beside what is simulated."""
        self.untaken = ""
        """Why it can't take the site's settings."""
        self.arp: dict[str, str] = {}
        self.more_addresses: list[str] = []
        """Beside its own."""
        self.uids = iter(range(1, 100))
        machine_id = f"{address.rpartition('.')[2].zfill(32)}\n"
        for path, text in {"/etc/hosts": "127.0.0.1 localhost\n", "/etc/os-release": OS_RELEASE, "/etc/machine-id": machine_id}.items():
            self.path(path).parent.mkdir(parents=True, exist_ok=True)
            self.path(path).write_text(text)

    # -- SiteHost

    def stream(self, argv: Sequence[str | Path], *, timeout: float, on_line: Callable[[str], None]) -> int:
        words = [str(word) for word in argv]
        if words[0] == "python3":  # listens for other hosts' connections (ckp.site.check)
            on_line("ready")
            return 0
        if words[:3] == ["ckp-agent", "standalone", "join"]:
            self.step(" ".join(words[:3]), lambda: self.join(words[3:]))
            return 0
        if words[:3] == ["ckp-agent", "standalone", "reset"]:
            self.step(" ".join(words[:3]), self.reset)
            return 0
        assert words[:3] == ["ckp-agent", "standalone", "install"], words
        options = dict(zip(words[3::2], words[4::2], strict=True))
        settings = {
            "pod_cidr": options["--pod-cidr"],
            "service_cidr": options["--service-cidr"],
            "advertise_address": options["--advertise-address"],
            "node_name": options["--node-name"],
            "cni": "cilium",
            "registry": "",
            "virtual_address": options.get("--virtual-address", ""),
            "cert_sans": ",".join(value for word, value in zip(words[3::2], words[4::2], strict=True) if word == "--cert-san"),
        }
        self.step(" ".join(words[:3]), lambda: self.install(options["--release"], options["--bundle-image"], settings))
        return 0

    # -- for tests

    def install(self, release: str, bundle: str = "", settings: Mapping[str, str] | None = None, steps: Sequence[str] = STEPS) -> None:
        """As `ckp-agent standalone install` leaves the host, killed after `steps`."""
        self.record(release, bundle, settings, steps)
        if self.complete:
            uid = f"uid-{next(self.uids)}"
            self.path(ADMIN).parent.mkdir(parents=True, exist_ok=True)
            self.path(ADMIN).write_text(f"    server: https://{virtual_address_of(settings) or self.address}:6443\nkubeconfig of {uid}")
            self.api.start(uid)
            self.api.join(self.name, self.address)
            self.api.add("StorageClass", "", "ckp-hostpath", provisioner="rancher.io/local-path")

    def join(self, words: Sequence[str]) -> None:
        """As `ckp-agent standalone join` leaves the host, with the token of a file that only root may read."""
        assert words[0] == "--control-plane", words
        options = dict(zip(words[1::2], words[2::2], strict=True))
        token = self.path(options["--token-file"])
        assert self.access[options["--token-file"]] == "600 root root"
        self.tokens.append(token.read_text())
        settings = {"advertise_address": options["--advertise-address"], "node_name": options["--node-name"], "role": "control-plane"}
        settings["virtual_address"] = self.tokens[-1].split(" ")[2]
        self.record(self.tokens[-1].split(" ")[1], options["--bundle-image"], settings)
        self.path(ADMIN).parent.mkdir(parents=True, exist_ok=True)
        self.path(ADMIN).write_text(f"    server: https://{virtual_address_of(settings) or self.address}:6443\nkubeconfig of another member")
        self.api.join(self.name, self.address)

    def reset(self) -> None:
        """As `ckp-agent standalone reset` leaves it."""
        for path in (JOURNAL, ADMIN):
            self.path(path).unlink(missing_ok=True)
        self.api.objects.pop(("Node", "", self.name), None)

    def record(self, release: str, bundle: str = "", settings: Mapping[str, str] | None = None, steps: Sequence[str] = STEPS) -> None:
        """What the host tool keeps of an installation; no cluster is made."""
        member = {**(settings or {}), "key": "standalone", "cluster": "", "machine": "", "release": release, "bundle": bundle}
        self.path(JOURNAL).parent.mkdir(parents=True, exist_ok=True)
        self.path(JOURNAL).write_text(json.dumps({"schema": 1, "member": member, "done": list(steps)}))

    def deploy(self, config: Obj, digest: str) -> None:
        """The management layer is applied with this table; pods that were there before follow later."""
        pod = {"containers": [{"name": "main", "image": "r.test:5000/ckp/ckp-platform:v1"}]}
        template = {"metadata": {"annotations": {DIGEST_ANNOTATION: digest}}, "spec": pod}
        made = {"ckp-compass": template, "ckp-controllers": template, "ckp-hub": {"spec": pod}}
        deployments = [{"kind": "Deployment", "metadata": {"name": name, "namespace": NAMESPACE}, "spec": {"template": each}} for name, each in made.items()]
        self.api.kubectl(["apply", "-f", "-"], json.dumps({"kind": "List", "items": [config, *deployments]}))

    def create(self, kind: Kind, name: str, spec: Obj, *, namespace: str = "ckp-a-b", cluster: str = "", status: Obj | None = None) -> None:
        """An object of a workload cluster."""
        self.api.add(kind.kind, namespace, name, metadata={"labels": {CLUSTER_NAME_LABEL: cluster or name}}, spec=spec, status=status or {})

    def create_cluster(self, name: str, release: str) -> None:
        """A hosted control plane with one worker."""
        self.create(MANAGED_CONTROL_PLANE, name, {"version": release})
        self.create(MACHINE_DEPLOYMENT, f"{name}-workers", {"template": {"spec": {"version": release}}}, cluster=name)
        self.create(MACHINE, f"{name}-1", {"version": release}, cluster=name)

    def delete_clusters(self) -> None:
        """No workload cluster is left."""
        self.api.forget(*USERS)

    @property
    def complete(self) -> bool:
        """Whether all steps of the standalone installation are done."""
        return len(self.journal.get("done", [])) == len(STEPS)

    @property
    def config(self) -> Obj | None:
        """The ConfigMap with the releases."""
        return self.api.config

    @config.setter
    def config(self, config: Obj) -> None:
        self.api.objects["ConfigMap", NAMESPACE, CONFIG] = config

    @property
    def table(self) -> Releases:
        """The releases in the ConfigMap."""
        assert self.config is not None
        return Releases.model_validate_json(self.config["data"][OFFERED])

    @property
    def offered(self) -> list[str]:
        """Names in the ConfigMap."""
        return list(self.table.releases)

    @property
    def withdrawn(self) -> list[str]:
        """Names of releases whose removal is not finished."""
        assert self.config is not None
        return list(json.loads(self.config["data"].get(WITHDRAWN, "{}")))

    @property
    def known(self) -> dict[str, list[str]]:
        """What the pods of each Deployment know that reads the table."""
        return {name: list(Releases.model_validate_json(text).releases) for name, text in self.api.read.items()}

    @property
    def journal(self) -> dict[str, Any]:
        """What the host tool keeps of the installation; empty before one was begun."""
        path = self.path(JOURNAL)
        return json.loads(path.read_text()) if path.exists() else {}

    # -- commands

    def _command(self, words: list[str], stdin: str | None = None) -> Said:
        match words:
            case ["kubectl", config, server, limit, *rest]:
                assert config == f"--kubeconfig={ADMIN}" and limit.startswith("--request-timeout=")
                assert server == f"--server=https://{self.address}:6443"
                return self.api.kubectl(rest, stdin) if self.complete else (1, "", "the connection to the server was refused")
            case ["python3", *_]:
                return self._python(words, stdin or "")
            case ["test", "-e", path]:
                return int(not self.path(path).exists()), "", ""
            case ["test", "-d", path]:
                return int(not self.path(path).is_dir()), "", ""
            case ["find", folder, "-xdev", "-mindepth", "1", "-maxdepth", "1", "-name", pattern, "-exec", "rm", *_]:
                return super()._command(["rm", "-rf", "--", *(f"{folder}/{each.name}" for each in self.path(folder).glob(pattern))])
            case ["cat", path]:
                return 0, self.path(path).read_text(), ""
            case ["ip", *_]:
                return 0, json.dumps([{"addr_info": [{"local": self.address}]}]), ""
            case ["getent", "ahostsv4", name]:
                found = self._resolved(name)
                return (0, "".join(f"{address} STREAM {name}\n" for address in found), "") if found else (2, "", "")
            case ["dpkg-query", "-W", "-f", wanted, package]:
                if package not in self.packages:
                    return 1, "", "no packages found"
                return 0, wanted.replace("${Version}", self.packages[package]).replace("${db:Status-Status}", "installed"), ""
            case ["dpkg", "-i", path]:
                self.packages["ckp-agent"] = self.path(path).read_text()
                self.path(PROGRAM).parent.mkdir(parents=True, exist_ok=True)
                self.path(PROGRAM).write_text("the host tool")
                return 0, "", ""
            case ["ckp-agent", "settings", *action]:
                return self._settings(action, stdin)
            case ["ckp-agent", "standalone", "status"]:
                if "ckp-agent" not in self.packages and not self.journal:
                    return 127, "", "ckp-agent: not found"
                done = self.journal.get("done", [])
                return int(not self.complete), "".join(f"{step}: done\n" for step in done) or "this host is not a standalone cluster\n", ""
            case ["ckp-agent", "standalone", "registry", "--registry-ca", _]:
                return 0, "", ""
            case ["ckp-agent", "standalone", "token", "create", "--control-plane", "--ttl", _]:
                member = self.journal["member"]
                return 0, f"secret {member['release']} {member['virtual_address']}\n", ""
            case ["ckp-agent", "standalone", "remove-node", name]:
                del self.api.objects["Node", "", name]
                return 0, "", ""
            case ["dpkg", "--purge", package]:
                self.packages.pop(package, None)
                self.path(PROGRAM).unlink(missing_ok=True)
                return 0, "", ""
            case ["true"]:
                return 0, "", ""
            case ["rm", "-rf", "--one-file-system", *paths]:
                return super()._command(["rm", "-rf", "--", *paths], stdin)
            case ["id", "-u"]:
                return 0, "0\n", ""
            case ["date", _]:
                return 0, "strange\n", ""
        return super()._command(words, stdin)

    def _settings(self, action: list[str], text: str | None) -> Said:
        """As ckp.agent.system.site_settings; what it makes of them is in its own tests."""
        path = self.path(SITE_SETTINGS)
        if self.untaken:
            return 2, "", f"this host can't take the site's settings, and nothing was changed: {self.untaken}"
        if action == ["remove"]:
            path.unlink()
            return 0, f"{SITE_SETTINGS} is gone\n", ""
        assert action == ["apply", "--file", "-"] and text is not None
        changed = not path.exists() or path.read_text() != text
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return 0, f"{SITE_SETTINGS} written\n" if changed else "", ""

    def _resolved(self, name: str) -> list[str]:
        lines = [line.split() for line in self.path("/etc/hosts").read_text().splitlines()]
        return [fields[0] for fields in lines if name in fields[1:2]] or [self.dns[name] for _ in range(1) if name in self.dns]

    def _python(self, words: list[str], script: str) -> Said:
        """What `ckp site check` sends."""
        if "-c" in words:
            return 0, "True\n", ""
        with PARSING:
            request = ast.literal_eval(script.rstrip().rpartition("\n")[2].removeprefix("main(").removesuffix(")"))
        if request["action"] == "answers":
            return 0, json.dumps({address: self.arp[address] for address in request["addresses"] if address in self.arp}), ""
        if request["action"] == "connect":
            return 0, json.dumps([[address, port, ""] for address, port in request["targets"]]), ""
        assert request["action"] == "survey", request["action"]
        listening = {int(item.listens.rpartition(":")[2]): "ckp-registry (pid 7)" for item in self.services.values() if item.pid}
        listening |= {int(socket.rpartition(":")[2]): "nginx (pid 77)" for socket in self.sockets}
        member = self.journal.get("member")
        number = self.address.rpartition(".")[2]
        facts = {
            "hostname": self.name,
            "machine_id": number.zfill(32),
            "os_id": "debian",
            "os_version": "12",
            "architecture": "amd64",
            "addresses": [self.address, *self.more_addresses],
        }
        answer = {
            "facts": {**facts, "links": [{"name": "eth0", "mac": f"52:54:00:00:00:{int(number):02x}"}]},
            "findings": self.findings,
            "member": member["key"] if member else "",
            "listening": [22, *listening, *([6443] if member else [])],
            "untaken": [[self.untaken, "correct it"]] if self.untaken else [],
            "names": {name: self._resolved(name) for name in request["names"]},
            "owners": {str(port): listening[port] for port in request["ports"] if port in listening},
        }
        return 0, json.dumps(answer), ""
