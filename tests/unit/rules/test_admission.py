"""Which webhooks keep pods of kube-system from being created."""

from __future__ import annotations

from typing import Any

import pytest

from ckp.rules.admission import Backend, blockers, selects

SPACE = {"kubernetes.io/metadata.name": "kube-system"}
PODS = [{"k8s-app": "konnectivity-agent"}]
RULE = {"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}


def configuration(kind: str = "ValidatingWebhookConfiguration", **webhook: Any) -> dict[str, Any]:
    """One that covers pods of all namespaces, as the API server completes it; `webhook` goes over that."""
    service = {"namespace": "policy", "name": "engine", "path": "/validate", "port": 443}
    full = {"name": "pods.policy.example", "clientConfig": {"service": service}, "failurePolicy": "Fail", "rules": [RULE], "namespaceSelector": {}}
    return {"kind": kind, "metadata": {"name": "policy"}, "webhooks": [{**full, "objectSelector": {}, **webhook}]}


def found(*configurations: dict[str, Any], reachable: bool = False) -> list[str]:
    return [item.sentence for item in blockers(configurations, namespace=SPACE, pods=PODS, is_reachable=lambda backend: reachable)]


@pytest.mark.parametrize("kind", ["ValidatingWebhookConfiguration", "MutatingWebhookConfiguration"])
def test_a_fail_closed_webhook_without_a_backend_is_named_with_the_remediation(kind: str) -> None:
    assert found(configuration(kind)) == [
        f"the webhook pods.policy.example of the {kind} policy refuses every pod, as its Service policy/engine can't be reached: exempt the namespace "
        f"kube-system in its namespaceSelector, or delete the configuration (kubectl delete {kind.lower()} policy)"
    ]
    assert found(configuration(kind), reachable=True) == []


@pytest.mark.parametrize(
    "webhook",
    [
        {"rules": [{**RULE, "operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*"]}]},
        {"rules": [{**RULE, "resources": ["deployments"]}, {**RULE, "resources": ["*/*"], "scope": "Namespaced"}]},
        {"namespaceSelector": {"matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["policy"]}]}},
        {"namespaceSelector": {"matchExpressions": [{"key": "policy/ignore", "operator": "DoesNotExist"}]}},
        {"objectSelector": {"matchExpressions": [{"key": "k8s-app", "operator": "Exists"}]}},
        {"failurePolicy": "Fail", "timeoutSeconds": 30},
    ],
)
def test_whatever_covers_the_pods_blocks_them(webhook: dict[str, Any]) -> None:
    assert len(found(configuration(**webhook))) == 1


@pytest.mark.parametrize(
    "webhook",
    [
        {"failurePolicy": "Ignore"},
        {"rules": [{**RULE, "operations": ["UPDATE"]}]},
        {"rules": [{**RULE, "resources": ["pods/exec"]}]},
        {"rules": [{**RULE, "apiGroups": ["apps"]}]},
        {"rules": [{**RULE, "scope": "Cluster"}]},
        {"rules": []},
        {"namespaceSelector": {"matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["kube-system"]}]}},
        {"namespaceSelector": {"matchLabels": {"policy": "on"}}},
        {"objectSelector": {"matchLabels": {"app": "web"}}},
        {"matchConditions": [{"name": "not-the-system", "expression": "request.namespace != 'kube-system'"}]},
        {"clientConfig": {"url": "https://policy.example/validate"}},
    ],
)
def test_one_that_does_not_cover_them_or_does_not_go_through_the_cluster_is_left_out(webhook: dict[str, Any]) -> None:
    assert found(configuration(**webhook)) == []


def test_the_backend_that_is_asked_about_is_the_webhooks_service() -> None:
    asked: list[Backend] = []

    def is_reachable(backend: Backend) -> bool:
        asked.append(backend)
        return True

    assert blockers([configuration()], namespace=SPACE, pods=PODS, is_reachable=is_reachable) == []
    assert asked == [Backend("policy", "engine")]


def test_label_selectors_are_read_as_kubernetes_reads_them() -> None:
    labels = {"a": "1"}
    assert selects(None, labels) and selects({}, {}) and selects({"matchLabels": {"a": "1"}}, labels)
    assert not selects({"matchLabels": {"a": "2"}}, labels)
    operators = {"In": (["1"], ["2"]), "NotIn": (["2"], ["1"])}
    for operator, (yes, no) in operators.items():
        assert selects({"matchExpressions": [{"key": "a", "operator": operator, "values": yes}]}, labels)
        assert not selects({"matchExpressions": [{"key": "a", "operator": operator, "values": no}]}, labels)
    assert selects({"matchExpressions": [{"key": "b", "operator": "NotIn", "values": ["1"]}]}, labels), "a key that is not there is in no list"
    assert not selects({"matchExpressions": [{"key": "a", "operator": "Unheard"}]}, labels)
