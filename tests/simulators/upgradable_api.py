"""A management cluster's API whose layer is upgraded: beside what SimulatedApi has, it remembers who has applied what, migrates Compass' database by Jobs,
rolls Deployments out or doesn't, and lets agents follow their desired version.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ckp.rules.schemas import HEAD
from ckp.site.install import FIELD_MANAGER
from ckp.site.upgrade.agents import RESOURCE
from ckp.site.upgrade.database import COMPASS, JOB
from tests.simulators.management_api import Obj, SimulatedApi, _parsed
from tests.simulators.site_host import Said

OLD_IMAGE = "r.test:5000/ckp/ckp-platform:0.2.0"
CRDS = "CustomResourceDefinition"


def fields_of(value: Any) -> Obj:
    """FieldsV1 of a value that one manager has set: lists are atomic here."""
    return {f"f:{name}": fields_of(inner) for name, inner in value.items()} if isinstance(value, dict) else {}


@dataclass
class UpgradableApi(SimulatedApi):
    """Pods are not simulated: a Deployment's are as its template says once its rollout was waited for."""

    version: str = "0.2.0"
    """Of CKP, as a pod of Compass says it."""
    schema: str = "0002"
    broken: set[str] = field(default_factory=set)
    """Deployments whose new pods do not become ready."""
    migration: str = "succeeded"
    """What becomes of the Job that brings the database up."""
    foreign: set[str] = field(default_factory=set)
    """Names of objects that others have applied."""
    stubborn: set[str] = field(default_factory=set)
    """Hosts that return to their old agent."""
    rolled: list[str] = field(default_factory=list)
    """What happened, in order: Deployments that were rolled out, schemas, agents."""

    def age(self) -> None:
        """The layer as 0.2.0 has made it: no version, older images, an older schema, fewer objects."""
        del self.objects["ConfigMap", "ckp-system", "ckp-version"]
        for key in [key for key in self.objects if key[2] == "byoremediations.infrastructure.cluster.x-k8s.io" or key[:1] == ("NetworkPolicy",)]:
            del self.objects[key]
        for key, each in self.objects.items():
            if key[0] == "Deployment" and "template" in each["spec"]:
                self.objects[key] = self._of_old(each)
        self.schema = "0002"

    @staticmethod
    def _of_old(deployment: Obj) -> Obj:
        made = copy.deepcopy(deployment)
        for container in made["spec"]["template"]["spec"]["containers"]:
            container["image"] = OLD_IMAGE
        return made

    def kubectl(self, words: Sequence[str], stdin: str | None = None) -> Said:
        operands, flags = _parsed(words)
        match operands:
            case ["exec", *_] if self._compass is None or self._compass["spec"].get("replicas") == 0:
                return 1, "", "error: no pod"
            case ["exec", *rest]:
                return 0, self.version if "ckp.__version__" in rest[-1] else self.schema, ""
            case ["get"] if "show-managed-fields" in flags:
                return self._managed(json.loads(stdin or "")["items"])
            case ["get", kinds] if "show-managed-fields" in flags:
                wanted = {kind.partition(".")[0] for kind in kinds.split(",")}
                return self._managed([each for key, each in self.objects.items() if key[0] in wanted])
            case ["get", "customresourcedefinitions"]:
                return 0, json.dumps({"items": [self._definition(each) for each in self._definitions()]}), ""
            case ["get", "customresourcedefinitions", name] if "output" in flags and (CRDS, "", name) in self.objects:
                return 0, name, ""
            case ["get", name] if (CRDS, "", name) in self.objects and flags.get("output") == "name":
                return 0, "", ""
            case ["get", "deployments"]:
                found = [self._ready(each) for key, each in self.objects.items() if key[:2] == ("Deployment", flags["namespace"])]
                return 0, json.dumps({"items": found}), ""
            case ["get", "pods"] | ["get", "pods,events"]:
                return 0, "", ""
            case ["get", name] if name == f"job/{JOB}":
                return 0, json.dumps(self.objects["Job", "ckp-system", JOB]), ""
            case ["logs", *_]:
                return 0, "the migration failed", ""
            case ["scale", name]:
                self.objects["Deployment", flags["namespace"], name.partition("/")[2]]["spec"]["replicas"] = int(flags["replicas"])
                return 0, "", ""
            case ["rollout", "status", name] if self._stays_old(flags["namespace"], name.partition("/")[2]):
                return 1, "", "timed out waiting for the condition"
            case ["rollout", "status", name]:
                self.rolled.append(name.partition("/")[2])
                return 0, "", ""
            case ["patch", kind, name] if kind == RESOURCE:
                return self._agent(flags["namespace"], name, json.loads(flags["patch"])["spec"]["agentVersion"])
            case ["delete", *names]:
                return self._delete(names, flags)
        return super().kubectl(words, stdin)

    @property
    def _compass(self) -> Obj | None:
        return self.objects.get(("Deployment", "ckp-system", COMPASS))

    def _stays_old(self, namespace: str, name: str) -> bool:
        image = self.objects["Deployment", namespace, name]["spec"]["template"]["spec"]["containers"][0]["image"]
        return name in self.broken and image != OLD_IMAGE

    def _managed(self, asked: Sequence[Obj]) -> Said:
        found = []
        for each in asked:
            key = each["kind"], each["metadata"].get("namespace", ""), each["metadata"]["name"]
            if key in self.objects:
                obj = {"apiVersion": "v1", **copy.deepcopy(self.objects[key])}
                fields = fields_of({name: value for name, value in obj.items() if name not in ("kind", "apiVersion", "status")})
                manager = "helm" if key[2] in self.foreign else FIELD_MANAGER.partition("=")[2]
                obj["metadata"]["managedFields"] = [{"manager": manager, "operation": "Apply", "fieldsV1": fields}]
                found.append(obj)
        return 0, json.dumps({"kind": "List", "items": found}), ""

    def _definitions(self) -> list[Obj]:
        """CKP's own; and those of others, whose manifests are not part of the simulated layer."""
        own = [each for key, each in self.objects.items() if key[0] == CRDS]
        known = {(each["spec"]["group"], each["spec"]["names"]["kind"]) for each in own}
        for each in self.objects.values():
            group, _, served = each.get("apiVersion", "v1").rpartition("/")
            if "." in group and not group.endswith(".k8s.io") and (group, each["kind"]) not in known:
                known.add((group, each["kind"]))
                spec = {"group": group, "names": {"kind": each["kind"]}, "versions": [{"name": served, "served": True, "storage": True}]}
                own.append({"metadata": {"name": f"{each['kind'].lower()}s.{group}"}, "spec": spec})
        return own

    @staticmethod
    def _ready(deployment: Obj) -> Obj:
        """Its pods are, unless a test has said otherwise."""
        return {"status": {"readyReplicas": deployment["spec"].get("replicas", 1)}, **deployment}

    @staticmethod
    def _definition(each: Obj) -> Obj:
        return {**each, "status": {"storedVersions": [next(item["name"] for item in each["spec"]["versions"] if item["storage"])]}}

    def _apply(self, each: Obj) -> None:
        if each["kind"] != "Job":
            super()._apply(copy.deepcopy(each))
            return
        arguments = each["spec"]["template"]["spec"]["containers"][0]["args"][1:]
        outcome = "succeeded" if "--schema-back" in arguments else self.migration
        if outcome == "succeeded":
            self.schema = arguments[1] if "--schema-back" in arguments else HEAD
            self.rolled.append(f"schema {self.schema}")
        self.add("Job", "ckp-system", JOB, status={outcome: 1}, spec=each["spec"])

    def _delete(self, names: Sequence[str], flags: dict[str, str]) -> Said:
        kind, gone = (names[0].partition("/")[0], names[0].partition("/")[2:]) if len(names) == 1 else (names[0], names[1:])
        for key in [key for key in self.objects if key[0].lower() == kind.partition(".")[0].lower() and key[2] in gone]:
            assert key[1] == flags.get("namespace", "")
            del self.objects[key]
        return 0, "", ""

    def _agent(self, namespace: str, name: str, wanted: str | None) -> Said:
        host = self.objects["ByoHost", namespace, name]
        host.setdefault("spec", {})["agentVersion"] = wanted
        if wanted and name in self.stubborn:
            host["status"]["observed"] = {"reason": "AgentUpgradeReturned", "message": f"{wanted} was installed before and rolled back"}
        elif wanted:
            self.rolled.append(f"agent {name}")
            host["status"]["agent"]["version"] = wanted
        return 0, "", ""
