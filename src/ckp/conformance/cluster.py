"""The cluster that is tested, as far as a run has to know it: which it is, whether it is fit, and what an earlier run left in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckp.kits.clock import human_duration, parse_rfc3339
from ckp.kits.errors import CkpError, TimedOut
from ckp.kits.processes import Finished, run
from ckp.kits.retry import wait_until

TEST_NAMESPACE = "e2e-framework"
"""The label of every namespace that a test makes (test/e2e/framework/framework.go, CreateNamespace)."""
TEST_TAINT = "kubernetes.io/e2e-"
"""What the keys of taints begin with that tests put on nodes (test/e2e/node/taints.go)."""
POINTERS = ("validatingwebhookconfigurations", "mutatingwebhookconfigurations", "apiservices")
"""Kinds of the whole cluster that point at services of test namespaces: left behind, they break requests of everybody."""
REMOVAL = 600.0
"""Seconds that namespaces have for ending."""
NODE_OS = {"Ubuntu": "ubuntu", "Debian": "debian"}
"""Beginning of a node's osImage -> --node-os-distro; what is none of them is `custom` (test/e2e/framework/test_context.go)."""


@dataclass(frozen=True)
class Looked:
    """What a run has to know of a cluster before it begins.

    Args:
        nodes: names of the nodes that pods may be scheduled to.
        node_os: what the tests call the nodes' distribution.
    """

    nodes: tuple[str, ...]
    node_os: str


@dataclass(frozen=True)
class Cluster:
    """One cluster, by a kubeconfig and the kubectl of its release."""

    kubectl: Path
    kubeconfig: Path

    def ask(self, *arguments: str, timeout: float = 60, check: bool = True, what: str = "asking the cluster") -> Finished:
        """kubectl with these arguments. ProcessFailed with its words, if it fails and `check`."""
        argv: list[str | Path] = [self.kubectl, f"--kubeconfig={self.kubeconfig}", f"--request-timeout={timeout:.0f}s", *arguments]
        return run(argv, timeout=timeout + 10, check=check, what=what, resolution="is the cluster up, and is the kubeconfig that of its administrator?")

    def get(self, *arguments: str) -> list[dict[str, Any]]:
        """The items of a list of objects."""
        items: list[dict[str, Any]] = json.loads(self.ask("get", *arguments, "-o", "json").stdout)["items"]
        return items

    def uid(self) -> str:
        """The uid of the namespace kube-system: the identity of a cluster. ProcessFailed if it does not answer."""
        return self.ask("get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}").stdout.strip()

    def now(self) -> str:
        """Its API server's time (RFC 3339): what the creation of objects is told by. It creates nothing."""
        asked = ("create", "configmap", "ckp-conformance-time", "--namespace=kube-system", "--dry-run=server")
        return self.ask(*asked, "-o", "jsonpath={.metadata.creationTimestamp}", what="asking for the cluster's time").stdout.strip()

    def version(self) -> str:
        """Of its API server, such as v1.35.1-ckp."""
        return str(json.loads(self.ask("get", "--raw", "/version").stdout)["gitVersion"])

    def look(self) -> Looked:
        """See whether it can be tested.

        Raises:
            CkpError: a node is not ready, or no node takes pods.
        """
        nodes = self.get("nodes")
        if sick := sorted(node["metadata"]["name"] for node in nodes if not is_ready(node)):
            raise CkpError(f"not all nodes are ready: {', '.join(sick)}", resolution="a cluster is tested when all its nodes are ready: kubectl get nodes")
        able = [node for node in nodes if not node["spec"].get("unschedulable") and not node["spec"].get("taints")]
        if not able:
            raise CkpError("no node takes pods: all are cordoned or have taints", resolution="kubectl uncordon, or kubectl taint nodes --all KEY-")
        image = able[0]["status"]["nodeInfo"]["osImage"]
        node_os = next((name for start, name in NODE_OS.items() if image.startswith(start)), "custom")
        return Looked(tuple(sorted(node["metadata"]["name"] for node in able)), node_os)

    def test_namespaces(self, *, since: str = "") -> list[str]:
        """Namespaces of tests: of all, or of those since a time (RFC 3339)."""
        found = self.get("namespaces", "-l", TEST_NAMESPACE)
        first = parse_rfc3339(since) if since else None
        return [item["metadata"]["name"] for item in found if first is None or parse_rfc3339(item["metadata"]["creationTimestamp"]) >= first]

    def settle(self, since: str, say: Callable[[str], None], *, timeout: float = REMOVAL) -> None:
        """Wait until the namespaces of a run that has ended are gone: its tests delete them and do not wait. What does not go is said, and no error.

        Args:
            since: as of `clean`.
            timeout: seconds.
        """
        try:
            wait_until(lambda: not self.test_namespaces(since=since), what="the tests' namespaces are gone", timeout=timeout, every=2)
        except TimedOut:
            left = ", ".join(sorted(self.test_namespaces(since=since)))
            say(f"WARNING: namespaces of the tests are not gone after {human_duration(timeout)}: {left}; see why with kubectl describe namespace")

    def clean(self, since: str, say: Callable[[str], None]) -> None:
        """Remove what tests have left that were killed: first what points at their namespaces, then these, and taints of tests.

        Args:
            since: the time (RFC 3339), by the cluster's clock, from which on namespaces are the run's own.

        Raises:
            TimedOut: a namespace does not end.
        """
        names = self.test_namespaces(since=since)
        for kind in POINTERS if names else ():
            for item in self.get(kind):
                if set(names) & set(_namespaces_behind(item)):
                    say(f"removing {kind}/{item['metadata']['name']}, which a killed test left")
                    self.ask("delete", kind, item["metadata"]["name"], "--ignore-not-found")
        for node in self.get("nodes"):
            for taint in node["spec"].get("taints") or []:
                if taint["key"].startswith(TEST_TAINT):
                    say(f"removing the taint {taint['key']} of {node['metadata']['name']}, which a killed test left")
                    self.ask("taint", "node", node["metadata"]["name"], f"{taint['key']}:{taint['effect']}-")
        if names:
            say(f"removing {len(names)} namespaces that killed tests left")
            self.ask("delete", "namespace", *names, "--ignore-not-found", "--wait=false")
            wait_until(
                lambda: not set(names) & set(self.test_namespaces()),
                what="the namespaces of killed tests are gone",
                timeout=REMOVAL,
                every=2,
                reason=lambda: ", ".join(sorted(set(names) & set(self.test_namespaces()))),
            )


def is_ready(node: Mapping[str, Any]) -> bool:
    """Whether a node's Ready is True."""
    return any(item["type"] == "Ready" and item["status"] == "True" for item in node["status"].get("conditions", []))


def _namespaces_behind(item: Mapping[str, Any]) -> Iterator[str]:
    """Namespaces of the services that a webhook configuration or an APIService points at."""
    for hook in item.get("webhooks") or []:
        yield ((hook.get("clientConfig") or {}).get("service") or {}).get("namespace", "")
    yield ((item.get("spec") or {}).get("service") or {}).get("namespace", "")
