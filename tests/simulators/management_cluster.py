"""A management host whose cluster answers: as much of kubectl and of the host tool as releases of a site need, over objects in memory.

The pods of a Deployment follow its template when its rollout is waited for, not before: until then they know what they have read.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ckp.api.kinds import MACHINE, MACHINE_DEPLOYMENT, MACHINE_SET, MANAGED_CONTROL_PLANE, Kind
from ckp.api.names import CLUSTER_NAME_LABEL
from ckp.api.platform import Releases
from ckp.hostkit.locations import STANDALONE_JOURNAL, STATE_DIR
from ckp.kits.errors import CkpError
from ckp.kits.processes import Finished
from ckp.site.publish import CONFIG, DIGEST_ANNOTATION, NAMESPACE, OFFERED, WITHDRAWN
from tests.simulators.site_host import Said, SimulatedHost

Obj = dict[str, Any]
USERS = (MANAGED_CONTROL_PLANE, MACHINE_DEPLOYMENT, MACHINE_SET, MACHINE)
FOLLOWERS = ("ckp-compass", "ckp-controllers")
READ_AT_START = "what its pods have read"


def _deployment(name: str, annotations: dict[str, str]) -> Obj:
    return {"metadata": {"name": name, "namespace": NAMESPACE}, "spec": {"template": {"metadata": {"annotations": annotations}}}, READ_AT_START: ""}


class ManagementHost(SimulatedHost):
    """A host with a management cluster of a release; without one before `install`."""

    def __init__(self, root: Path, name: str = "m1", address: str = "192.0.2.10") -> None:
        super().__init__(root, name, address)
        self.complete = False
        """Whether all steps of the standalone installation are done."""
        self.answering = True
        self.config: Obj | None = None
        """The ConfigMap with the releases."""
        self.deployments: dict[str, Obj] = {}
        self.objects: dict[tuple[str, str, str], Obj] = {}
        """By plural with group, namespace and name."""
        self.answers: dict[str, Said] = {}
        """Beginnings of commands -> what else this host says."""
        self.on_rollout: Callable[[], object] = lambda: None
        """Called as soon as pods know the table that they are to know."""

    # -- for tests

    def install(self, release: str, *, complete: bool = True) -> None:
        """The host is a standalone cluster, or is becoming one."""
        self.complete = complete
        self.push(json.dumps({"schema": 1, "member": {"key": "standalone", "release": release}, "done": []}).encode(), f"{STATE_DIR}/{STANDALONE_JOURNAL}")

    def deploy(self, config: Obj, digest: str) -> None:
        """The management layer is there, and its pods know this table."""
        self.config = copy.deepcopy(config)
        self.deployments = {name: _deployment(name, {DIGEST_ANNOTATION: digest}) for name in FOLLOWERS}
        self.deployments["ckp-hub"] = _deployment("ckp-hub", {})
        for name in FOLLOWERS:
            self.deployments[name][READ_AT_START] = config["data"][OFFERED]

    def create(self, kind: Kind, name: str, spec: Obj, *, namespace: str = "ckp-a-b", cluster: str = "", status: Obj | None = None) -> None:
        """An object of a workload cluster."""
        meta = {"name": name, "namespace": namespace, "labels": {CLUSTER_NAME_LABEL: cluster or name}}
        self.objects[f"{kind.plural}.{kind.group}", namespace, name] = {"kind": kind.kind, "metadata": meta, "spec": spec, "status": status or {}}

    def create_cluster(self, name: str, release: str) -> None:
        """A hosted control plane with one worker."""
        self.create(MANAGED_CONTROL_PLANE, name, {"version": release})
        self.create(MACHINE_DEPLOYMENT, f"{name}-workers", {"template": {"spec": {"version": release}}}, cluster=name)
        self.create(MACHINE, f"{name}-1", {"version": release}, cluster=name)

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
        """What the pods of each Deployment know."""
        return {name: list(Releases.model_validate_json(self.deployments[name][READ_AT_START]).releases) for name in FOLLOWERS}

    # -- SiteHost

    def run(self, argv: Sequence[str | Path], *, timeout: float, stdin: str | bytes | None = None, check: bool = True, what: str = "") -> Finished:
        words = [str(word) for word in argv]
        answer = next((said for start, said in self.answers.items() if " ".join(words).startswith(start)), None)
        if answer is not None:
            code, out, err = answer
        elif words[0] in ("kubectl", "ckp-agent", "test"):
            text = stdin.decode() if isinstance(stdin, bytes) else stdin or ""
            code, out, err = self.step(" ".join(words), lambda: self._ours(words, text))
        else:
            return super().run(argv, timeout=timeout, stdin=stdin, check=check, what=what)
        if code and check:
            raise CkpError(f"{what or words[0]} on {self.name} failed with exit code {code}", details=err)
        return Finished(tuple(words), code, out, err, 0.0)

    def _ours(self, words: list[str], text: str) -> Said:
        if words[0] == "test":
            return int(not self.path(words[-1]).exists()), "", ""
        if words[0] == "ckp-agent":
            assert words[1:] == ["standalone", "status"]
            return (0, "[ 1/12] Checks: done\n", "") if self.complete else (1, "this host is not a standalone cluster\n", "")
        if not (self.complete and self.answering):
            return 1, "", "The connection to the server was refused"
        assert words[1] == "--kubeconfig=/etc/kubernetes/admin.conf" and words[2].startswith("--request-timeout=")
        flags = dict(word.removeprefix("--").partition("=")[::2] for word in words[3:] if word.startswith("--"))
        operands = [word for word in words[3:] if not word.startswith("-")]
        match operands:
            case ["get", "configmap", name]:
                assert (name, flags["namespace"]) == (CONFIG, NAMESPACE)
                return 0, json.dumps(self.config) if self.config else "", ""
            case ["get", "customresourcedefinitions", *names]:
                known = [f"{kind.plural}.{kind.group}" for kind in USERS] if self.config else []
                return 0, "".join(f"customresourcedefinition.apiextensions.k8s.io/{name}\n" for name in names if name in known), ""
            case ["get", "deployments"]:
                assert flags["namespace"] == NAMESPACE
                return 0, _items(self.deployments.values()), ""
            case ["get", kinds]:
                assert "all-namespaces" in flags
                return 0, _items(obj for (kind, _, _), obj in self.objects.items() if kind in kinds.split(",")), ""
            case ["apply", "-"] | ["apply"]:
                applied = json.loads(text)
                assert (applied["kind"], applied["metadata"]["name"]) == ("ConfigMap", CONFIG) and "server-side" in flags
                self.config = applied
                return 0, "", ""
            case ["patch", "deployment", name]:
                annotations = json.loads(flags["patch"])["spec"]["template"]["metadata"]["annotations"]
                self.deployments[name]["spec"]["template"]["metadata"]["annotations"] |= annotations
                return 0, "", ""
            case ["rollout", "status", name]:
                assert self.config is not None
                self.deployments[name.removeprefix("deployment/")][READ_AT_START] = self.config["data"][OFFERED]
                self.on_rollout()
                return 0, "", ""
        raise AssertionError(f"kubectl {operands} is not simulated")


def _items(objects: Iterable[Obj]) -> str:
    return json.dumps({"items": list(objects)})
