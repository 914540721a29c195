"""What a pool asks for follows its nodes: the version of a MachineDeployment and of its MachineSet, without a new MachineSet and without a new Machine.

Cluster API v1.7.7 makes a new MachineSet where a MachineDeployment's template differs from all that there are, and copies its MachineSet's version to the
Machines. So: pause the MachineDeployment, patch both templates to the same value, go on. Tried on a real core manager (docs/adr/0038). Each step is taken
by what is seen, and a mark tells our pause from a person's: whoever is killed in between continues at the next pass, and nothing stays paused.
"""

from __future__ import annotations

from ckp.api.kinds import MACHINE_DEPLOYMENT, MACHINE_SET
from ckp.api.names import CLUSTER_NAME_LABEL, PAUSED_ANNOTATION, UPGRADE_ANNOTATION
from ckp.clients.kube import Kube, Obj
from ckp.controllers.scope import owner


def asked(obj: Obj) -> str:
    """The version in the template of a MachineDeployment or a MachineSet."""
    return str(obj["spec"]["template"]["spec"].get("version") or "")


async def settle(kube: Kube, namespace: str, cluster: str, name: str, version: str) -> str:
    """Bring one pool to the version that all its nodes have. Repeating it is harmless.

    Returns:
        Why it can't be done now; "" once it is.

    Raises:
        KubeError: the management cluster refuses, or can't be reached.
    """
    found = await kube.get(MACHINE_DEPLOYMENT, name, namespace)
    if found is None:
        return ""  # it was deleted
    marked, paused = _is_marked(found), PAUSED_ANNOTATION in (found["metadata"].get("annotations") or {})
    if paused and not marked:
        return f"the MachineDeployment {name} is paused by somebody else: kubectl -n {namespace} annotate machinedeployment {name} {PAUSED_ANNOTATION}-"
    sets = [item for item in await kube.list(MACHINE_SET, namespace, labels={CLUSTER_NAME_LABEL: cluster}) if _is_of(item, found)]
    behind = [item for item in sets if int(item["spec"].get("replicas") or 0) and asked(item) != version]
    if asked(found) == version and not behind:
        if marked:
            await kube.merge(MACHINE_DEPLOYMENT, name, namespace, {"metadata": {"annotations": {PAUSED_ANNOTATION: None, UPGRADE_ANNOTATION: None}}})
        return ""
    if not marked:
        # One patch, so that there is no pause without the mark.
        await kube.merge(MACHINE_DEPLOYMENT, name, namespace, {"metadata": {"annotations": {PAUSED_ANNOTATION: "true", UPGRADE_ANNOTATION: version}}})
    patch = {"spec": {"template": {"spec": {"version": version}}}}
    for item in behind:
        await kube.merge(MACHINE_SET, item["metadata"]["name"], namespace, patch)
    await kube.merge(MACHINE_DEPLOYMENT, name, namespace, patch)
    return await settle(kube, namespace, cluster, name, version)


async def release(kube: Kube, namespace: str, cluster: str) -> None:
    """Finish whatever `settle` has begun in a cluster: its nodes are of that version by then.

    Raises:
        KubeError: the management cluster refuses, or can't be reached.
    """
    for item in await kube.list(MACHINE_DEPLOYMENT, namespace, labels={CLUSTER_NAME_LABEL: cluster}):
        if _is_marked(item):
            await settle(kube, namespace, cluster, item["metadata"]["name"], str(item["metadata"]["annotations"][UPGRADE_ANNOTATION]))


def _is_marked(obj: Obj) -> bool:
    return UPGRADE_ANNOTATION in (obj["metadata"].get("annotations") or {})


def _is_of(machine_set: Obj, deployment: Obj) -> bool:
    reference = owner(machine_set, MACHINE_DEPLOYMENT.kind)
    return reference is not None and reference["uid"] == deployment["metadata"]["uid"]
