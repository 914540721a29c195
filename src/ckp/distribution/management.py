"""The management layer's manifests, rendered from the sources that were built: cert-manager's chart, Cluster API's kustomizations, our own.

They form groups, to be applied one after the other: each needs what the one before it brings (CRDs, webhooks, certificates).
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ckp.api.crds import all_crds
from ckp.distribution.builder.component import Built
from ckp.kits import paths
from ckp.kits.errors import CkpError
from ckp.kits.processes import run

Obj = dict[str, Any]
FOUNDATION = "00-foundation.yaml"
PRIORITY = "ckp-management"
API_RATES = ("--kube-api-qps=100", "--kube-api-burst=200")
"""Above upstream's default of 20 requests a second: a new cluster causes more than a hundred in each of these controllers at once."""


@dataclass(frozen=True)
class Management:
    """Renders the groups for the release that the management cluster runs.

    Args:
        built: the release's components; of these kubernetes, helm, cert-manager and cluster-api are used.
        registry: `host:port/prefix` of the images.
        images: repository -> `tag@sha256:…`, so that the registry cannot substitute another image.
    """

    built: Mapping[str, Built]
    registry: str
    images: Mapping[str, str]

    def image(self, repository: str) -> str:
        """The full reference of an image."""
        return f"{self.registry}/{repository}:{self.images[repository]}"

    def foundation(self) -> list[Obj]:
        """Namespaces and priority classes, which all other groups need."""
        return _load(paths.data("deploy", FOUNDATION).read_text())

    def cert_manager(self) -> list[Obj]:
        """cert-manager from its own chart, set to delete a Certificate's Secret with the Certificate.

        Raises:
            ProcessFailed: helm cannot render the chart.
        """
        cert_manager = self.built["cert-manager"]
        version = cert_manager.chosen.source.version
        with tempfile.TemporaryDirectory(prefix="ckp-chart-") as work:
            chart = Path(work) / "cert-manager"
            shutil.copytree(cert_manager.file("charts/cert-manager"), chart)
            template = (chart / "Chart.template.yaml").read_text()
            meta = yaml.safe_load(re.sub(r"\{\{.*?\}\}", "false", template))
            meta |= {"version": version, "appVersion": version}
            (chart / "Chart.yaml").write_text(json.dumps(meta))
            values = Path(work) / "values.json"
            values.write_text(json.dumps(self._cert_manager_values()))
            argv: list[str | Path] = [self.built["helm"].binary("helm"), "template", "cert-manager", chart, "--namespace=cert-manager"]
            target = f"--kube-version={self.built['kubernetes'].chosen.source.version}"
            rendered = run([*argv, f"--values={values}", target], timeout=60, what="rendering cert-manager's chart").stdout
        crds = [crd for path in sorted(cert_manager.file("crds").glob("crd-*.yaml")) for crd in _load(_without_template_lines(path.read_text()))]
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "cert-manager"}}
        return [namespace, *crds, *_load(rendered)]

    def _cert_manager_values(self) -> Obj:
        def image(name: str) -> Obj:
            tag, _, digest = self.images[f"cert-manager-{name}"].partition("@")
            return {"repository": f"{self.registry}/cert-manager-{name}", "tag": tag, "digest": digest}

        resources = {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "512Mi"}}
        return {
            "image": image("controller"),
            "webhook": {"image": image("webhook"), "resources": resources, "timeoutSeconds": 10},
            "cainjector": {"image": image("cainjector"), "resources": resources},
            "startupapicheck": {"enabled": False},
            "resources": resources,
            "extraArgs": ["--enable-certificate-owner-ref=true", *API_RATES],
            "prometheus": {"enabled": False},
            "global": {"leaderElection": {"namespace": "cert-manager"}, "priorityClassName": PRIORITY},
        }

    def cluster_api(self, kubectl: Path) -> list[Obj]:
        """Cluster API's core and kubeadm bootstrap provider, from their own kustomizations.

        Args:
            kubectl: the program that renders them.
        """
        capi = self.built["cluster-api"]
        objects: list[Obj] = []
        for folder, repository in (("config", "cluster-api-controller"), ("bootstrap/kubeadm/config", "kubeadm-bootstrap-controller")):
            rendered = run([kubectl, "kustomize", capi.file(folder) / "default"], timeout=60, what=f"rendering Cluster API's {folder}").stdout
            for obj in _load(_expand(rendered)):
                if obj["kind"] == "Deployment":
                    obj["spec"]["template"]["spec"]["priorityClassName"] = PRIORITY
                    container = obj["spec"]["template"]["spec"]["containers"][0]
                    container["image"] = self.image(repository)
                    container["imagePullPolicy"] = "IfNotPresent"
                    container["args"] = [*container.get("args", []), *API_RATES]
                    container.setdefault("resources", {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}})
                objects.append(obj)
        return objects

    def ckp(self, settings: Mapping[str, str], database: str = "sqlite") -> list[Obj]:
        """CKP's CRDs and the manifests of `deploy/`.

        Args:
            settings: values of the templates' `@NAME@` placeholders.
            database: which of `deploy/compass-database/` Compass has.

        Raises:
            CkpError: a placeholder has no setting.
        """
        known = {
            "PLATFORM_IMAGE": self.image("ckp-platform"),
            "ADDONS_IMAGE": self.image("ckp-addons"),
            "BACKUP_IMAGE": self.image("ckp-backup"),
            "PACKAGES_IMAGE": self.image("ckp-packages"),
            **settings,
        }
        objects = all_crds()
        for path in sorted(paths.data("deploy").glob("*.yaml")):
            if path.name == FOUNDATION:
                continue
            objects += _load(fill(path.read_text(), known, f"deploy/{path.name}"))
        part = paths.data("deploy", "compass-database", f"{database}.yaml")
        over, *more = _load(fill(part.read_text(), known, f"deploy/{part.parent.name}/{part.name}"))
        return [overlaid(each, over) if _is_same(each, over) else each for each in objects] + more


def fill(template: str, settings: Mapping[str, str], name: str) -> str:
    """`template` with its `@NAME@` placeholders replaced by settings.

    Args:
        name: what the template is called in errors.

    Raises:
        CkpError: a placeholder has no setting.
    """

    def value(match: re.Match[str]) -> str:
        if match.group(1) not in settings:
            raise CkpError(f"{name} has the placeholder @{match.group(1)}@, which no setting fills")
        return settings[match.group(1)]

    return re.sub(r"@([A-Z][A-Z0-9_]*)@", value, template)


def _is_same(one: Obj, other: Obj) -> bool:
    return bool(one["kind"] == other["kind"] and one["metadata"]["name"] == other["metadata"]["name"])


def overlaid(under: Any, over: Any) -> Any:
    """`over` laid over `under`: mappings key by key, lists of things with names by these names, other lists one after the other."""
    if isinstance(under, dict) and isinstance(over, dict):
        return {**under, **{key: overlaid(under[key], value) if key in under else value for key, value in over.items()}}
    if isinstance(under, list) and isinstance(over, list):
        named = {item["name"]: item for item in over if isinstance(item, dict) and "name" in item}
        known = {item["name"] for item in under if isinstance(item, dict) and "name" in item}
        found = [overlaid(item, named[item["name"]]) if isinstance(item, dict) and item.get("name") in named else item for item in under]
        return found + [item for item in over if not (isinstance(item, dict) and item.get("name") in known)]
    return over


def _expand(text: str) -> str:
    """clusterctl's `${NAME:=default}` with the defaults."""
    return re.sub(r"\$\{[A-Z_]+:=([^}]*)\}", r"\1", text)


def _without_template_lines(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if "{{" not in line)


def _load(text: str) -> list[Obj]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return [document for document in yaml.load_all(text, Loader=loader) if document]


def as_list(objects: list[Obj]) -> str:
    """One JSON document that `kubectl apply -f -` takes."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
