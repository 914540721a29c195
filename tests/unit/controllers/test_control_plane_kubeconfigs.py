"""Kubeconfigs of several clusters, used side by side."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ckp.clients.kube import Obj
from ckp.controllers.controlplane.bootstrap import ClientFiles, kubeconfig
from ckp.controllers.controlplane.plan import Plan
from tests.unit.controllers.test_control_plane_certificates import PLANE, RELEASES


def config_of(cluster: str, project: str, role: str = "admin") -> str:
    meta = {**PLANE["metadata"], "name": cluster, "namespace": f"ckp-default-{project}"}
    plane: Obj = {**PLANE, "metadata": meta}
    plan = Plan.of(plane, {"metadata": meta, "spec": {}}, RELEASES, "10.0.0.1")
    mark = f"{cluster} {project} {role}".encode()
    return kubeconfig(plan, f"https://{cluster}.{project}:6443", role, ClientFiles(mark, mark, mark))


def merged(*texts: str) -> dict[str, dict[str, Any]]:
    """As kubectl merges: of two entries with one name the first one wins."""
    found: dict[str, dict[str, Any]] = {"clusters": {}, "users": {}, "contexts": {}}
    for config in map(json.loads, texts):
        for kind, entries in found.items():
            for entry in config[kind]:
                entries.setdefault(entry["name"], entry)
    return found


def test_kubeconfigs_of_many_clusters_can_be_merged_also_of_namesakes_in_two_projects() -> None:
    texts = [config_of(*key) for key in (("a", "one"), ("b", "one"), ("a", "two"), ("a", "one", "super-admin"))]
    found = merged(*texts[:3])
    assert {kind: len(entries) for kind, entries in found.items()} == {"clusters": 3, "users": 3, "contexts": 3}
    for text in texts:
        config = json.loads(text)
        context = next(entry["context"] for entry in config["contexts"] if entry["name"] == config["current-context"])
        assert context == {"cluster": config["clusters"][0]["name"], "user": config["users"][0]["name"]}
    assert json.loads(texts[0])["current-context"] == "a.ckp-default-one"
    assert len({json.loads(text)["users"][0]["name"] for text in texts}) == 4


def test_kubectl_keeps_each_clusters_credentials_when_it_merges(tmp_path: Path) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("there is no kubectl in the PATH; the test above does what it does")
    files = []
    for project in ("one", "two"):
        files.append(tmp_path / project)
        files[-1].write_text(config_of("demo", project))
    environment = {"KUBECONFIG": ":".join(map(str, files)), "HOME": str(tmp_path)}
    done = subprocess.run([kubectl, "config", "view", "--flatten", "--output=json"], env=environment, capture_output=True, text=True, check=True)
    config = json.loads(done.stdout)
    for project, file in zip(("one", "two"), files, strict=True):
        own = json.loads(file.read_text())
        name = f"demo.ckp-default-{project}"
        assert next(user for user in config["users"] if user["name"] == f"admin@{name}") == own["users"][0]
        assert next(entry for entry in config["contexts"] if entry["name"] == name) == own["contexts"][0]
