"""`kubectl top`: an aggregated API behind konnectivity, and kubelets that it verifies. By a few lines of Python, and by metrics-server as it ships."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import PLAIN, WORKERS, World
from tests.support.control_plane import built_test_tool
from tests.support.tool_images import push_tool_image
from tests.worlds.tls import key_pem, make_authority, make_leaf

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("well")]

UPSTREAM = "registry.k8s.io/metrics-server/metrics-server"
"""The image that the manifests name."""


FIGURES = """
import http.server, json, ssl, urllib.request
ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
def get(url):
    context = ssl.create_default_context(cafile=f"{ACCOUNT}/ca.crt")
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    request = urllib.request.Request(url, headers={"Authorization": "Bearer " + open(f"{ACCOUNT}/token").read()})
    return urllib.request.urlopen(request, context=context, timeout=10).read().decode()
def figures():
    found = {}
    for node in json.loads(get("https://kubernetes.default/api/v1/nodes"))["items"]:
        address = next(item["address"] for item in node["status"]["addresses"] if item["type"] == "InternalIP")
        lines = get(f"https://{address}:10250/metrics/resource").splitlines()
        found[node["metadata"]["name"]] = sum(line.startswith("container_memory_working_set_bytes") for line in lines)
    return found
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        api, resources = "/apis/figures.example/v1", {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "figures.example/v1", "resources": []}
        try: status, answer = (200, figures()) if self.path == f"{api}/nodes" else (200, resources) if self.path.startswith(api) else (404, {})
        except Exception as error: status, answer = 500, {"error": str(error)}
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
server = http.server.ThreadingHTTPServer(("", 6443), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/tls/tls.crt", "/tls/tls.key")
server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
server.serve_forever()
"""


def figures_api(image: str) -> list[dict[str, object]]:
    """An aggregated API in a pod that, when it is asked, asks each kubelet as metrics-server does: with its own token, verified by the mounted CA."""
    authority = make_authority("figures")
    certificate, key = make_leaf(authority, dns=("figures.default.svc",), server=True)
    rbac, account = "rbac.authorization.k8s.io", {"kind": "ServiceAccount", "name": "figures", "namespace": "default"}
    rules = [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]}, {"apiGroups": [""], "resources": ["nodes/metrics"], "verbs": ["get"]}]
    container: dict[str, object] = {"name": "figures", "image": image, "command": ["python3", "-c", FIGURES], "securityContext": PLAIN}
    container["volumeMounts"] = [{"name": "tls", "mountPath": "/tls"}]
    container["readinessProbe"] = {"tcpSocket": {"port": 6443}, "periodSeconds": 1}
    pod = {
        "serviceAccountName": "figures",
        "containers": [container],
        "volumes": [{"name": "tls", "secret": {"secretName": "figures"}}],
        "terminationGracePeriodSeconds": 0,
    }
    plain, here = {"name": "figures"}, {"name": "figures", "namespace": "default"}
    service = {"name": "figures", "namespace": "default", "port": 443}
    api = {
        "group": "figures.example",
        "version": "v1",
        "service": service,
        "caBundle": base64.b64encode(authority.pem.encode()).decode(),
        "groupPriorityMinimum": 100,
        "versionPriority": 100,
    }
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": here},
        {"apiVersion": f"{rbac}/v1", "kind": "ClusterRole", "metadata": plain, "rules": rules},
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": plain,
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": "figures"},
            "subjects": [account],
        },
        {"apiVersion": "v1", "kind": "Secret", "metadata": here, "stringData": {"tls.crt": certificate, "tls.key": key_pem(key)}},
        {"apiVersion": "v1", "kind": "Pod", "metadata": {**here, "labels": {"app": "figures"}}, "spec": pod},
        {"apiVersion": "v1", "kind": "Service", "metadata": here, "spec": {"selector": {"app": "figures"}, "ports": [{"port": 443, "targetPort": 6443}]}},
        {"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": "v1.figures.example"}, "spec": api},
    ]


@contextlib.contextmanager
def installed(world: World, manifest: str) -> Iterator[None]:
    """Objects in the workload cluster; they are gone in the end."""
    world.kubectl("apply", "-f", "-", stdin=manifest)
    try:
        yield
    finally:
        world.kubectl("delete", "--ignore-not-found", "--wait=false", "-f", "-", stdin=manifest, check=False)


def await_api(world: World, name: str) -> None:
    """Until the API server itself says that it reaches an aggregated API."""

    def available() -> bool:
        service = world.get("apiservice", name)
        return any(item["type"] == "Available" and item["status"] == "True" for item in service.get("status", {}).get("conditions", []))

    world.wait(available, f"the API server reaches {name}", timeout=120)


def node_names(world: World) -> list[str]:
    found = sorted(node["metadata"]["name"] for node in world.get("nodes")["items"])
    assert len(found) == WORKERS
    return found


def test_an_aggregated_api_in_a_pod_is_reached_and_verifies_the_kubelets_that_it_asks(world: World) -> None:
    with installed(world, json.dumps({"apiVersion": "v1", "kind": "List", "items": figures_api(world.image)})):
        await_api(world, "v1.figures.example")
        figures = json.loads(world.kubectl("get", "--raw", "/apis/figures.example/v1/nodes").stdout)
    assert sorted(figures) == node_names(world)
    assert all(containers > 1 for containers in figures.values()), figures


def manifests(world: World, folder: Path) -> str:
    """Those of metrics-server's own release, with another address of the image and nothing else changed."""
    image = f"{world.site.registry.address}/{push_tool_image('metrics-server', world.site.registry.client())}"
    shutil.copytree(built_test_tool("metrics-server").file("manifests"), folder / "manifests")
    address, _, tag = image.rpartition(":")
    kustomization = {"resources": ["manifests/overlays/release"], "images": [{"name": UPSTREAM, "newName": address, "newTag": tag}]}
    (folder / "kustomization.yaml").write_text(json.dumps(kustomization))  # JSON is YAML
    rendered = world.kubectl("kustomize", str(folder)).stdout
    assert image in rendered and UPSTREAM not in rendered
    assert "insecure-tls" not in rendered
    return rendered


def rows(world: World, *arguments: str) -> list[list[str]]:
    """`kubectl top`; none while there are no figures."""
    done = world.kubectl("top", *arguments, "--no-headers", check=False)
    return [line.split() for line in done.stdout.splitlines()] if done.code == 0 else []


@pytest.mark.long
def test_kubectl_top_shows_all_nodes_and_their_pods_by_metrics_server_as_it_ships(world: World, tmp_path: Path) -> None:
    with installed(world, manifests(world, tmp_path)):
        await_api(world, "v1beta1.metrics.k8s.io")
        nodes = node_names(world)

        def figures() -> list[list[str]]:
            found = rows(world, "node")
            return found if sorted(row[0] for row in found) == nodes and "<unknown>" not in str(found) else []

        for _, cpu, _, memory, _ in world.wait(figures, "there are figures of every node", timeout=60):
            assert cpu.endswith("m") and int(memory.removesuffix("Mi")) > 100
        places = {(pod["metadata"]["namespace"], pod["metadata"]["name"]): pod["spec"]["nodeName"] for pod in world.get("pods", "-A")["items"]}
        measured = {places.get((namespace, name)) for namespace, name, _, memory in rows(world, "pod", "-A") if memory != "0Mi"}
    assert set(nodes) <= measured
