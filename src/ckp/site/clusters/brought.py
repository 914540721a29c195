"""What CKP has brought to an existing cluster: each object has the site's label, and removing takes away what has it and nothing else."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ckp.api.names import CKP, DOMAIN_LABEL
from ckp.kits.errors import CkpError

Obj = dict[str, Any]
Kubectl = Callable[..., str]
SITE_LABEL = f"{CKP}/site"
ROOT_CA = "ckp-root-ca"
"""The Secret in cert-manager's namespace, which a cert-manager of others leaves behind when its Certificate is deleted."""
FIRST = (
    "validatingwebhookconfigurations.admissionregistration.k8s.io",
    "mutatingwebhookconfigurations.admissionregistration.k8s.io",
    "deployments.apps",
)
"""They go first: a webhook whose pods are gone refuses every change, and controllers make what is deleted again."""
LAST = ("customresourcedefinitions.apiextensions.k8s.io", "namespaces")
DELETE_SECONDS = 300


def labelled(objects: Iterable[Obj], site: str) -> list[Obj]:
    """Manifests with the site's label."""
    found = []
    for each in objects:
        made = copy.deepcopy(each)
        made["metadata"]["labels"] = {**(made["metadata"].get("labels") or {}), SITE_LABEL: site}
        found.append(made)
    return found


def other_site(kubectl: Kubectl, site: str) -> str:
    """The name of another site whose layer is in the cluster; empty if there is none."""
    text = kubectl("get", "namespace", "ckp-system", "--ignore-not-found", "--output=json")
    if not text.strip():
        return ""
    owner = str((json.loads(text)["metadata"].get("labels") or {}).get(SITE_LABEL, "(without a name)"))
    return owner if owner != site else ""


def remove(kubectl: Kubectl, site: str, say: Callable[[str], None]) -> None:
    """Delete all that has the site's label, and the namespaces of projects, which are empty of clusters. What is gone already is fine.

    Raises:
        CkpError: something is not deleted in time; the same again goes on.
    """
    everywhere = kubectl("api-resources", "--verbs=list,delete", "--output=name").split()
    kinds = [kind for kind in everywhere if kind not in (*FIRST, *LAST, "events", "events.events.k8s.io")]
    _delete(kubectl, ["namespaces"], DOMAIN_LABEL, say)  # of projects, which Compass has made
    for group in ([kind for kind in FIRST if kind in everywhere], kinds, [kind for kind in LAST if kind in everywhere]):
        _delete(kubectl, group, f"{SITE_LABEL}={site}", say)
    kubectl("delete", "secret", ROOT_CA, "--namespace=cert-manager", "--ignore-not-found")


def _delete(kubectl: Kubectl, kinds: Sequence[str], selector: str, say: Callable[[str], None]) -> None:
    if not kinds:
        return
    listed = kubectl("get", ",".join(kinds), "--all-namespaces", f"--selector={selector}", "--ignore-not-found", "--output=name", timeout=120).split()
    if not listed:
        return
    for kind in dict.fromkeys(name.partition("/")[0] for name in listed):
        kubectl("delete", kind, "--all-namespaces", f"--selector={selector}", "--ignore-not-found", f"--timeout={DELETE_SECONDS}s", timeout=2 * DELETE_SECONDS)
    left = kubectl("get", ",".join(kinds), "--all-namespaces", f"--selector={selector}", "--ignore-not-found", "--output=name", timeout=120).split()
    if left:
        raise CkpError(
            f"not everything of the site is deleted: {', '.join(left[:5])}", resolution="see what holds it (kubectl describe), and run the same command again"
        )
    say(f"{len(listed)} objects deleted")
