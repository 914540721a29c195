"""The cluster that `ckp up` made is a real one."""

from __future__ import annotations

import base64
import json
import re
import socket
import ssl
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
import yaml
from cryptography import x509

from ckp.cli.up import kubeconfig_path
from ckp.lab.lab import LabHost
from ckp.rules.lifecycle import STEPS
from ckp.verify.packagefile import MAINTAINER
from tests.e2e.conftest import STAMP, WORKERS, World, ckp
from tests.support.said import BUILDING
from tests.support.tls_clients import go_program

pytestmark = pytest.mark.e2e

SERVER = """
import http.server, os
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = os.environ["NODE"].encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers(); self.wfile.write(body)
    def log_message(self, *a): print("asked for", self.path, flush=True)
http.server.ThreadingHTTPServer(("", 8080), H).serve_forever()
"""


def workload(image: str) -> str:
    """One server on each node, a Service before them, and a client."""
    security = {
        "allowPrivilegeEscalation": False,
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    env = [{"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}]
    server = {
        "name": "server",
        "image": image,
        "command": ["python3", "-c", SERVER],
        "env": env,
        "ports": [{"containerPort": 8080}],
        "securityContext": security,
    }
    server["readinessProbe"] = {"httpGet": {"port": 8080}, "periodSeconds": 1, "timeoutSeconds": 10}
    spread = {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "web"}}}
    pod = {"containers": [server], "topologySpreadConstraints": [spread], "terminationGracePeriodSeconds": 1}
    client = {"name": "client", "image": image, "command": ["sleep", "86400"], "securityContext": security}
    items = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "e2e"}},
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "web", "namespace": "e2e"},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}}, "template": {"metadata": {"labels": {"app": "web"}}, "spec": pod}},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "web", "namespace": "e2e"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
        },
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "client", "namespace": "e2e", "labels": {"app": "client"}},
            "spec": {"containers": [client], "terminationGracePeriodSeconds": 1},
        },
    ]
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items})


@pytest.fixture(scope="module")
def web(world: World) -> World:
    """The workload, up."""
    world.kubectl("apply", "-f", "-", stdin=workload(world.image))
    world.kubectl("rollout", "status", "deployment/web", "-n", "e2e", "--timeout=240s", timeout=260)
    world.kubectl("wait", "pod/client", "-n", "e2e", "--for=condition=Ready", "--timeout=240s", timeout=260)
    return world


def fetch(world: World, url: str, *, check: bool = True) -> str:
    """What the client pod gets from `url`; the exec goes through konnectivity itself."""
    code = f"import urllib.request as u; print(u.urlopen({url!r}, timeout=5).read().decode())"
    return world.kubectl("exec", "-n", "e2e", "client", "--", "python3", "-c", code, check=check).stdout.strip()


def test_it_shows_every_step_with_its_time_and_what_stands_in(world: World) -> None:
    for number, step in enumerate(STEPS, start=1):
        assert re.search(rf"\[ ?{number}/14\] {re.escape(step.title)}: (done, [\dhms.]+|skipped)", world.output), step.title
    for phase in dict.fromkeys(step.phase for step in STEPS):
        assert re.search(rf"^{re.escape(phase)}$", world.output, re.M), f"{phase} has no heading of its own"
    assert "STAND-IN: cert-manager v1.11.5 takes the place of cert-manager v1.15.3" in world.output
    assert str(kubeconfig_path("demo")) in world.output
    assert "Compass      https://" in world.output


def test_a_second_run_goes_through_and_builds_nothing(world: World) -> None:
    again = ckp("up", "--workers", str(WORKERS), timeout=600)
    assert f"components of {STAMP} are built" in again.stdout, "it has looked"
    assert BUILDING.findall(again.stdout) == []
    assert "management is a cluster already" in again.stdout


def test_both_nodes_are_ready_and_say_the_stamp_and_so_does_the_api(world: World) -> None:
    nodes = world.get("nodes")["items"]
    assert len(nodes) == WORKERS
    for node in nodes:
        assert node["status"]["nodeInfo"]["kubeletVersion"] == STAMP
        assert {item["type"]: item["status"] for item in node["status"]["conditions"]}["Ready"] == "True"
        assert node["spec"]["providerID"].startswith("byoh://ckp-default-default/")
    assert json.loads(world.kubectl("get", "--raw", "/version").stdout)["gitVersion"] == STAMP


LISTENING = {
    22: "sshd",  # the lab's own way in, as hosts of a site have one
    10250: "kubelet",  # its API, by client certificates
    4240: "cilium-agent",  # health checks between nodes
    8134: "proxy-agent",  # konnectivity's health and metrics
    9963: "cilium-operator",  # metrics, on the node that it runs on
}
"""All that may listen on a worker for packets from outside: TCP port and program."""


def listening(host: LabHost) -> dict[int, str]:
    """TCP ports on which a host takes connections from outside, and the program of each."""
    found = {}
    for line in host.run(["ss", "-Htlnp"], timeout=30).stdout.splitlines():
        address, _, port = line.split()[3].rpartition(":")
        if not re.match(r"127\.|\[::1\]|\[::ffff:127\.", address):
            program = re.search(r'users:\(\("([^"]+)"', line)
            found[int(port)] = program[1] if program else ""
    return found


def test_workers_listen_only_where_a_node_must(world: World) -> None:
    """The agent dials out and listens nowhere."""
    for host in world.hosts.workers:
        found = listening(host)
        assert found.get(10250) == "kubelet", f"{host.name}: {found}"
        assert {port: program for port, program in found.items() if LISTENING.get(port) != program} == {}, host.name


def test_no_part_of_the_control_plane_is_on_a_worker(world: World) -> None:
    """Control planes are hosted: no worker runs one of its parts."""
    pods = world.get("pods", "-A")["items"]
    names = [pod["metadata"]["name"] for pod in pods]
    assert not [name for name in names if name.startswith(("kube-apiserver", "etcd", "kube-scheduler", "kube-controller"))]
    hosted = json.loads(world.management("get", "pods", "-n", "ckp-default-default", "-o", "json").stdout)["items"]
    for component in ("etcd", "apiserver", "controller-manager", "scheduler"):
        assert any(pod["metadata"]["labels"].get("app.kubernetes.io/component") == component for pod in hosted), component


def test_pods_of_different_hosts_reach_each_other_and_a_service_and_dns(web: World) -> None:
    pods = web.get("pods", "-n", "e2e", "-l", "app=web")["items"]
    nodes = {pod["spec"]["nodeName"] for pod in pods}
    assert len(nodes) == 2
    for pod in pods:
        assert fetch(web, f"http://{pod['status']['podIP']}:8080/") == pod["spec"]["nodeName"]
    assert fetch(web, "http://web.e2e.svc.cluster.local/") in nodes
    address = web.get("service", "web", "-n", "e2e")["spec"]["clusterIP"]
    seen = {fetch(web, f"http://{address}/") for _ in range(12)}
    assert seen == nodes


OUTSIDE = """
import json, socket, time
found = []
for number in range(5):
    started = time.monotonic()
    try:
        found.append([str(socket.getaddrinfo(f"outside-{number}.example.", 443)), 0])
    except socket.gaierror as error:
        found.append([error.args[0] in (socket.EAI_AGAIN, socket.EAI_NONAME) and "refused", time.monotonic() - started])
    time.sleep(0.5)
print(json.dumps(found))
"""
"""Five lookups half a second apart of names that nothing has cached yet: how each ended, and after how many seconds."""


def test_an_outside_name_fails_at_once_in_a_pod_beside_coredns(web: World) -> None:
    """There the host's own lookups and those of CoreDNS (its health checks, too) share what the kernel allows one host."""
    coredns = web.get("pods", "-n", "kube-system", "-l", "k8s-app=kube-dns")["items"]
    nodes = {pod["spec"]["nodeName"] for pod in coredns}
    beside = next(pod["metadata"]["name"] for pod in web.get("pods", "-n", "e2e", "-l", "app=web")["items"] if pod["spec"]["nodeName"] in nodes)
    since = datetime.now(UTC).isoformat()
    found = json.loads(web.kubectl("exec", "-n", "e2e", beside, "--", "python3", "-c", OUTSIDE).stdout)
    assert [ended for ended, _ in found] == ["refused"] * 5
    assert max(seconds for _, seconds in found) < 1
    for pod in coredns:
        log = web.kubectl("logs", "-n", "kube-system", pod["metadata"]["name"], f"--since-time={since}").stdout
        assert "i/o timeout" not in log


def test_the_cluster_is_ready_because_a_pod_in_it_works(world: World) -> None:
    """By the canary: its name by DNS, the API through the service network, its certificate verified. Its image was on the node before it joined."""
    assert world.get("deployment", "ckp-canary", "-n", "kube-system")["status"]["availableReplicas"] == 1
    plane = json.loads(world.management("get", "managedcontrolplane", "demo", "-n", "ckp-default-default", "-o", "json").stdout)
    assert {item["type"]: item["status"] for item in plane["status"]["conditions"]}["WorkloadReady"] == "True"
    account = "--as=system:serviceaccount:kube-system:ckp-canary"
    assert world.kubectl("auth", "can-i", "get", "pods", "-n", "kube-system", account, check=False).stdout.strip() == "no"


def test_logs_and_port_forward_go_through_konnectivity(web: World) -> None:
    pod = web.get("pods", "-n", "e2e", "-l", "app=web")["items"][0]
    fetch(web, f"http://{pod['status']['podIP']}:8080/for-the-log")
    assert "asked for /for-the-log" in web.kubectl("logs", "-n", "e2e", pod["metadata"]["name"]).stdout
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = web.site.dist.built["kubernetes"].binary("kubectl")
    command: list[str | Path] = [
        program,
        f"--kubeconfig={kubeconfig_path('demo')}",
        "port-forward",
        "-n",
        "e2e",
        f"pod/{pod['metadata']['name']}",
        f"{port}:8080",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as forward:
        try:
            assert forward.stdout is not None
            assert "Forwarding from" in forward.stdout.readline()
            assert httpx.get(f"http://127.0.0.1:{port}/", trust_env=False, timeout=20).text == pod["spec"]["nodeName"]
        finally:
            forward.terminate()


def test_a_deployment_scales(web: World) -> None:
    web.kubectl("scale", "deployment/web", "-n", "e2e", "--replicas=4")
    web.kubectl("rollout", "status", "deployment/web", "-n", "e2e", "--timeout=180s", timeout=200)
    assert web.get("deployment", "web", "-n", "e2e")["status"]["readyReplicas"] == 4
    web.kubectl("scale", "deployment/web", "-n", "e2e", "--replicas=2")


def test_a_network_policy_blocks_and_its_removal_opens_again(web: World) -> None:
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "nobody", "namespace": "e2e"},
        "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"], "ingress": []},
    }
    assert fetch(web, "http://web.e2e/")
    web.kubectl("apply", "-f", "-", stdin=json.dumps(policy))

    def blocked() -> bool:
        return fetch(web, "http://web.e2e/", check=False) == ""

    web.wait(blocked, "the policy blocks", timeout=60)
    web.kubectl("delete", "networkpolicy", "nobody", "-n", "e2e")
    web.wait(lambda: fetch(web, "http://web.e2e/", check=False) != "", "the way is open again", timeout=60)


def certificate(world: World, namespace: str, secret: str) -> x509.Certificate:
    data = json.loads(world.management("get", "secret", secret, "-n", namespace, "-o", "json").stdout)["data"]["tls.crt"]
    return x509.load_pem_x509_certificate(base64.b64decode(data))


def test_certificates_are_valid_for_ten_years_and_chain_to_the_root(world: World) -> None:
    """Design: each cluster's CA is an anchor, and by its cross-signed certificate below the Root CA; CA -> its leaves; ten years."""
    root = certificate(world, "cert-manager", "ckp-root-ca")
    authorities = {part: certificate(world, "ckp-default-default", f"demo-{part}") for part in ("ca", "etcd", "proxy")}
    chain = json.loads(world.management("get", "configmap", "demo-ca-chain", "-n", "ckp-default-default", "-o", "json").stdout)["data"]
    for part, authority in authorities.items():
        authority.verify_directly_issued_by(authority)
        cross_signed = x509.load_pem_x509_certificate(chain[f"{part}.crt"].encode())
        cross_signed.verify_directly_issued_by(root)
        assert (cross_signed.subject, cross_signed.public_key()) == (authority.subject, authority.public_key())
    leaves = {"apiserver": "ca", "admin": "ca", "etcd-server": "etcd", "front-proxy-client": "proxy", "apiserver-etcd-client": "etcd"}
    for name, issuer in leaves.items():
        leaf = certificate(world, "ckp-default-default", f"demo-{name}")
        leaf.verify_directly_issued_by(authorities[issuer])
        for found in (leaf, authorities[issuer]):
            assert abs(found.not_valid_after_utc - found.not_valid_before_utc - timedelta(days=3650)) < timedelta(hours=1)
        assert leaf.not_valid_after_utc > datetime.now(UTC) + timedelta(days=3640)


IN_A_POD = """
import ssl, urllib.request
context = ssl.create_default_context(cafile="/var/run/secrets/kubernetes.io/serviceaccount/ca.crt")
context.verify_flags |= ssl.VERIFY_X509_STRICT
print(urllib.request.urlopen("https://kubernetes.default/version", timeout=20, context=context).read().decode())
"""


def test_a_program_in_a_pod_verifies_the_api_server_by_the_mounted_ca(web: World) -> None:
    """As every operator that is not written in Go does; strictly, as Python 3.13."""
    said = web.kubectl("exec", "-n", "e2e", "client", "--", "python3", "-c", IN_A_POD).stdout
    assert json.loads(said)["gitVersion"] == STAMP


KEYS_IN_A_POD = """
import json, ssl, urllib.request
folder = "/var/run/secrets/kubernetes.io/serviceaccount"
context = ssl.create_default_context(cafile=f"{folder}/ca.crt")
def get(url):
    request = urllib.request.Request(url, headers={"Authorization": "Bearer " + open(f"{folder}/token").read()})
    return json.load(urllib.request.urlopen(request, timeout=20, context=context))
print(len(get(get("https://kubernetes.default/.well-known/openid-configuration")["jwks_uri"])["keys"]))
"""


def test_a_pod_finds_the_keys_that_tokens_are_signed_with(web: World) -> None:
    """OpenID Connect discovery, as whoever verifies tokens of service accounts does it: the address that the API server says of itself must be reached."""
    assert web.kubectl("exec", "-n", "e2e", "client", "--", "python3", "-c", KEYS_IN_A_POD).stdout == "1\n"


UNPACK = """
import base64, os, sys
with open("/tmp/verify", "wb") as file: file.write(base64.b64decode(sys.stdin.read()))
os.chmod("/tmp/verify", 0o755)
os.execv("/tmp/verify", ["verify", "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt", *sys.argv[1:]])
"""


@pytest.mark.parametrize(("name", "verified"), [("kubernetes.default", True), ("another.name", False)])
def test_a_go_program_in_a_pod_verifies_the_api_server_by_the_mounted_ca(web: World, name: str, verified: bool) -> None:
    """With Go's own crypto/tls; a name that the certificate is not for is refused (the control)."""
    program = base64.b64encode(go_program()).decode()
    done = web.kubectl("exec", "-i", "-n", "e2e", "client", "--", "python3", "-c", UNPACK, "kubernetes.default:443", name, stdin=program, check=False)
    assert (done.code == 0) is verified, done.stderr
    assert ("verified" in done.stdout) if verified else ("x509: certificate is valid for" in done.stderr)


def test_a_program_outside_verifies_the_api_server_by_the_kubeconfig(world: World) -> None:
    config = yaml.safe_load(kubeconfig_path("demo").read_text())["clusters"][0]["cluster"]
    context = ssl.create_default_context(cadata=base64.b64decode(config["certificate-authority-data"]).decode())
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    assert httpx.get(f"{config['server']}/version", verify=context, trust_env=False, timeout=20).json()["gitVersion"] == STAMP


def test_kubelets_serve_certificates_of_the_clusters_ca(world: World) -> None:
    """As metrics-server and `kubectl top` need it; approved within seconds of the join."""
    config = yaml.safe_load(kubeconfig_path("demo").read_text())["clusters"][0]["cluster"]
    context = ssl.create_default_context(cadata=base64.b64decode(config["certificate-authority-data"]).decode())
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    for node in world.get("nodes")["items"]:
        address = next(item["address"] for item in node["status"]["addresses"] if item["type"] == "InternalIP")

        def serves(address: str = address) -> bool:
            try:
                return httpx.get(f"https://{address}:10250/pods", verify=context, trust_env=False, timeout=20).status_code == 401
            except httpx.HTTPError:
                return False

        world.wait(serves, f"the kubelet of {node['metadata']['name']} serves a certificate of the cluster's CA", timeout=60)


def test_clusterctl_sees_every_object_ready(world: World) -> None:
    program = world.site.dist.built["cluster-api"].binary("clusterctl")
    command = [str(program), "describe", "cluster", "demo", "-n", "ckp-default-default", "--kubeconfig", str(world.site.kubeconfig), "--show-conditions", "all"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    lines = [line for line in done.stdout.splitlines()[1:] if line.strip(" │") and "─Workers" not in line]
    assert len(lines) > 10
    assert [line for line in lines if not re.search(r"\bTrue\b", line)] == [], done.stdout


def test_a_host_runs_only_packages_of_ours(world: World) -> None:
    for host in world.hosts.workers:
        for package in ("kubeadm", "kubelet", "kubectl", "kubernetes-cni", "cri-tools", "containerd", "ckp-agent"):
            maintainer = host.run(["dpkg-query", "-W", "-f", "${Maintainer} ${Version}", package], timeout=20).stdout
            assert maintainer.startswith(MAINTAINER), package


def with_private_keys(host: LabHost, *folders: str, user: str) -> list[str]:
    """Text files with a private key, as PEM or in a kubeconfig, that a user can read, whatever they are called."""
    search = ["grep", "-rIlE", "-D", "skip", "-e", "PRIVATE KEY-----", "-e", "client-key-data: ", *folders]
    done = host.run(["setpriv", f"--reuid={user}", f"--regid={'nogroup' if user == 'nobody' else user}", "--clear-groups", *search], timeout=120, check=False)
    assert done.code in (0, 1, 2), done.stderr  # 2: a folder that this user may not read
    return done.stdout.splitlines()


def test_no_secret_shows_in_process_lists_or_world_readable_files(world: World) -> None:
    for host in [*world.hosts.workers, world.hosts.management]:
        listing = host.run(["sh", "-c", "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '"], timeout=30, check=False).stdout
        assert "BEGIN" not in listing and "PRIVATE" not in listing
    for host in [*world.hosts.workers, world.hosts.management]:
        assert with_private_keys(host, "/var/lib", user="root"), f"{host.name}: the search finds no key at all"
        assert with_private_keys(host, "/etc", "/home", "/opt", "/root", "/run", "/srv", "/tmp", "/var", user="nobody") == [], host.name
    for host in world.hosts.workers:
        assert host.run(["test", "-e", "/etc/ckp-agent/psk"], timeout=10, check=False).code != 0, "the pre-shared key must be gone after enrolment"


def test_the_management_layer_runs_as_nobody_with_probes(world: World) -> None:
    for namespace in ("ckp-system", "capi-system", "capi-kubeadm-bootstrap-system", "cert-manager"):
        for deployment in json.loads(world.management("get", "deployments", "-n", namespace, "-o", "json").stdout)["items"]:
            pod = deployment["spec"]["template"]["spec"]
            for container in pod["containers"]:
                context = {**pod.get("securityContext", {}), **container.get("securityContext", {})}
                name = f"{namespace}/{deployment['metadata']['name']}"
                assert context.get("runAsNonRoot") is True, name
                assert container["securityContext"].get("allowPrivilegeEscalation") is False, name
                if namespace == "ckp-system":
                    assert container["readinessProbe"] and container["livenessProbe"]
                    assert container["securityContext"]["readOnlyRootFilesystem"] is True


def test_the_hub_may_read_desired_states_and_no_other_secret(world: World) -> None:
    """facts: every host could read all Secrets of the predecessor's clusters."""
    who = "--as=system:serviceaccount:ckp-system:ckp-hub"
    assert world.management("auth", "can-i", "list", "secrets", "-n", "ckp-hosts", who).stdout.strip() == "yes"
    for namespace in ("ckp-default-default", "ckp-system", "cert-manager", "kube-system"):
        assert world.management("auth", "can-i", "get", "secrets", "-n", namespace, who, check=False).stdout.strip() == "no"
