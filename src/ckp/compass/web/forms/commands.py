"""What a page does, as a command line: of `ckp`, and of curl."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence

from ckp.api.compass.clusters import ClusterRequest
from ckp.compass.identity import ProjectRef
from ckp.kits.clock import exact_duration

_OPTIONS = (
    ("version", "--version"),
    ("cni", "--cni"),
    ("host_group", "--host-group"),
    ("workers", "--workers"),
    ("pod_cidr", "--pod-cidr"),
    ("service_cidr", "--service-cidr"),
    ("address", "--address"),
)


def of_ckp(project: ProjectRef, request: ClusterRequest) -> str:
    """`ckp cluster create …` with what is set."""
    words = ["ckp", "cluster", "create", request.name, "--domain", project.domain, "--project", project.project]
    for name, option in _OPTIONS:
        if name in request.model_fields_set and getattr(request, name) != "":
            words += [option, str(getattr(request, name))]
    if "control_plane" in request.model_fields_set:
        words += ["--control-plane-replicas", str(request.control_plane.replicas)]
    for name in request.cert_sans:
        words += ["--cert-san", name]
    for name in sorted(request.timeouts.model_fields_set):
        words += [f"--{name.replace('_', '-')}-timeout", exact_duration(getattr(request.timeouts, name))]
    return shlex.join(words)


def of_curl(server: str, project: ProjectRef, request: ClusterRequest) -> str:
    """The request to the REST interface. The token is read from a variable: it stands in no command."""
    url = f"{server}/api/v1/domains/{project.domain}/projects/{project.project}/clusters"
    body = json.dumps(request.body())
    return f'curl --cacert site-ca.crt -H "Authorization: Bearer $CKP_TOKEN" -H "Content-Type: application/json" -d {shlex.quote(body)} {shlex.quote(url)}'


def upgrade_of_ckp(project: ProjectRef, name: str, values: Mapping[str, str], nodes: Sequence[str], accept: Sequence[str]) -> str:
    """`ckp cluster upgrade …` with what is set.

    Args:
        values: `version`, and `atOnce`, `afterFirst` and `soak` where they are not empty, as a form has them.
    """
    words = ["ckp", "cluster", "upgrade", name, "--domain", project.domain, "--project", project.project, "--to", values["version"] or "VERSION"]
    for option, given in (("--node", nodes), ("--accept", accept)):
        for value in given:
            words += [option, value]
    for key, option, default in (("atOnce", "--at-once", "1"), ("afterFirst", "--after-first", "0")):
        if values.get(key) not in (None, "", default):
            words += [option, values[key]]
    if values.get("soak") == "yes":
        words.append("--soak")
    return shlex.join(words)
