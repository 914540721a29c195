"""What CKP does inside a workload cluster, against a real API server: the canary, releases of helm that were interrupted, webhooks that refuse pods."""

from __future__ import annotations

import asyncio
import copy
import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ckp.api import kinds
from ckp.clients.kube import Kube, KubeError, Obj
from ckp.controllers.addons.helm import remove_interrupted
from ckp.controllers.workload_health.canary import Canary
from ckp.controllers.workload_health.reconciler import _blockers
from ckp.kits.processes import run
from ckp.kits.retry import wait_until
from tests.support.control_plane import TestControlPlane, built

CANARY = Canary("registry.example:5000/ckp/kubeadm:v1", "cluster.local")


def pod_of(deployment: Obj, namespace: str) -> Obj:
    template = copy.deepcopy(deployment["spec"]["template"])
    meta = {"name": deployment["metadata"]["name"], "namespace": namespace, "labels": template["metadata"]["labels"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"]}


async def test_the_canary_is_accepted_as_it_is_by_the_strictest_pod_security(kube: Kube, namespace: str) -> None:
    for _ in range(2):  # again, as after a restart
        for obj in CANARY.manifests():
            await kube.apply(obj)
    await kube.merge(kinds.NAMESPACE, namespace, None, {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}})
    pod = pod_of(CANARY.manifests()[-1], namespace)
    made = await kube.create({**pod, "spec": {**pod["spec"], "priorityClassName": ""}})  # only kube-system may have the system's priority
    assert made["spec"]["containers"][0]["securityContext"]["runAsNonRoot"] is True
    privileged = {**pod["spec"], "priorityClassName": "", "hostNetwork": True}
    with pytest.raises(KubeError, match="violates PodSecurity"):
        await kube.create({**pod, "metadata": {**pod["metadata"], "name": "other"}, "spec": privileged})


async def test_the_canarys_account_may_ask_whether_the_api_server_is_ready_and_nothing_else(plane: TestControlPlane, kube: Kube, tmp_path: Path) -> None:
    for obj in CANARY.manifests():
        await kube.apply(obj)
    (tmp_path / "token").write_text(plane.kubectl("create", "token", "ckp-canary", "-n", "kube-system"))
    config: dict[str, Any] = json.loads(json.dumps(plane.kubeconfig()))
    config["users"][0]["user"] = {"tokenFile": str(tmp_path / "token")}
    (tmp_path / "kubeconfig").write_text(json.dumps(config))
    program = built("kubernetes").binary("kubectl")
    probe = CANARY.manifests()[-1]["spec"]["template"]["spec"]["containers"][0]["readinessProbe"]["exec"]["command"]
    arguments = [f"--kubeconfig={tmp_path}/kubeconfig" if item.startswith("--kubeconfig=") else item for item in probe[1:]]
    assert run([program, *arguments], timeout=60).stdout == "ok"
    for what in (("get", "pods"), ("get", "secrets"), ("create", "pods"), ("get", "nodes")):
        answer = run([program, f"--kubeconfig={tmp_path}/kubeconfig", "auth", "can-i", *what, "-n", "kube-system"], timeout=60, check=False)
        assert answer.stdout.strip() == "no", what


CHART = {
    "Chart.yaml": "apiVersion: v2\nname: slow\nversion: 1.0.0\n",
    "templates/config.yaml": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: slow}\ndata: {round: {{ .Values.round | quote }}}\n",
    # Nothing runs pods here, so that its end is waited for until helm is killed.
    "templates/wait.yaml": (
        "{{ if .Values.wait }}\napiVersion: batch/v1\nkind: Job\nmetadata:\n  name: wait-{{ .Values.round }}\n"
        "  annotations: {helm.sh/hook: 'pre-install,pre-upgrade'}\n"
        "spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: i}]}}}\n{{ end }}\n"
    ),
}


class Helm:
    """The helm that CKP ships, as an addon's Job calls it."""

    def __init__(self, plane: TestControlPlane, namespace: str, folder: Path) -> None:
        for name, text in CHART.items():
            (folder / "chart" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "chart" / name).write_text(text)
        (folder / "kubeconfig").write_text(json.dumps(plane.kubeconfig()))
        (folder / "kubeconfig").chmod(0o600)
        self.folder = folder
        self.command = [str(built("helm").binary("helm")), "upgrade", "--install", "slow", str(folder / "chart"), f"--namespace={namespace}"]
        self.command += [f"--kubeconfig={folder}/kubeconfig", "--timeout=5m"]

    def upgrade(self, number: int) -> subprocess.CompletedProcess[str]:
        command = [*self.command, f"--set=round=r{number},wait=false"]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env={"HOME": str(self.folder)})

    def kill_in_the_middle(self, kube: TestControlPlane, namespace: str, number: int) -> None:
        """Start an upgrade, and kill it when its hook is there."""
        command = [*self.command, f"--set=round=r{number},wait=true"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={"HOME": str(self.folder)}) as process:
            try:
                hook = ("get", "job", f"wait-r{number}", "-n", namespace, "--ignore-not-found", "-o", "name")
                wait_until(lambda: kube.kubectl(*hook).strip(), what="helm waits for its hook", timeout=120, every=0.5)
            finally:
                process.send_signal(signal.SIGKILL)


async def test_helm_goes_on_after_one_that_was_killed(plane: TestControlPlane, kube: Kube, namespace: str, tmp_path: Path) -> None:
    """At the first installation and at an upgrade. Without the removal every later helm refuses."""
    helm = Helm(plane, namespace, tmp_path)
    for number in (1, 3):
        helm.kill_in_the_middle(plane, namespace, number)
        refused = helm.upgrade(number)
        assert refused.returncode != 0 and "another operation (install/upgrade/rollback) is in progress" in refused.stderr
        assert await remove_interrupted(kube, "slow", namespace) == 1
        done = helm.upgrade(number + 1)
        assert done.returncode == 0, done.stderr
        config = await kube.get(kinds.CONFIG_MAP, "slow", namespace)
        assert config is not None and config["data"] == {"round": f"r{number + 1}"}
        assert await remove_interrupted(kube, "slow", namespace) == 0


async def test_a_webhook_that_the_api_server_fails_at_is_the_one_that_is_named(kube: Kube, namespace: str) -> None:
    """Both ways: what is named does refuse the pod, and once it exempts the namespace neither is so."""
    labels = {"k8s-app": "konnectivity-agent"}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "kube-system", "labels": labels}}
    pod["spec"] = {"containers": [{"name": "c", "image": "i"}], "automountServiceAccountToken": False}
    webhook: Obj = {
        "name": "pods.policy.example",
        "clientConfig": {"service": {"namespace": namespace, "name": "engine"}, "caBundle": ""},
        "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}],
        "objectSelector": {"matchLabels": labels},  # only these pods: other tests of this run make some, too
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
        "timeoutSeconds": 5,
    }
    name = f"policy-{namespace}"
    configuration = {"apiVersion": kinds.VALIDATING_WEBHOOK.api_version, "kind": "ValidatingWebhookConfiguration", "metadata": {"name": name}}
    try:
        await kube.create({**configuration, "webhooks": [webhook]})
        refusals = await _until_refused(kube, pod)
        assert "pods.policy.example" in refusals
        [sentence] = await _blockers(kube, [labels], [])
        assert f"the webhook pods.policy.example of the ValidatingWebhookConfiguration {name} refuses every pod" in sentence
        exempt = {"matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["kube-system"]}]}
        await kube.merge(kinds.VALIDATING_WEBHOOK, name, None, {"webhooks": [{**webhook, "namespaceSelector": exempt}]})
        assert await _blockers(kube, [labels], []) == []
    finally:
        await kube.delete(kinds.VALIDATING_WEBHOOK, name)


async def _until_refused(kube: Kube, pod: Obj) -> str:
    """The API server's error; it sees a new configuration within seconds."""
    for number in range(60):
        try:
            await kube.create({**pod, "metadata": {**pod["metadata"], "name": f"p{number}"}})
        except KubeError as error:
            return error.brief
        await kube.delete(kinds.POD, f"p{number}", "kube-system")
        await asyncio.sleep(0.25)
    return ""
