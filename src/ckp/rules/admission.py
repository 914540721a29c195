"""Which admission webhooks keep pods from being created: fail-closed ones whose backend can't answer. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ckp.rules.selectors import matches

Labels = Mapping[str, str]


@dataclass(frozen=True)
class Backend:
    """The Service of the workload cluster that a webhook asks."""

    namespace: str
    name: str


@dataclass(frozen=True)
class Blocker:
    """A webhook that no pod passes."""

    kind: str
    configuration: str
    webhook: str
    backend: Backend

    @property
    def sentence(self) -> str:
        """What it does, and the remediation."""
        service, kind = f"{self.backend.namespace}/{self.backend.name}", self.kind.lower()
        return (
            f"the webhook {self.webhook} of the {self.kind} {self.configuration} refuses every pod, as its Service {service} can't be reached: "
            f"exempt the namespace kube-system in its namespaceSelector, or delete the configuration (kubectl delete {kind} {self.configuration})"
        )


def blockers(
    configurations: Iterable[Mapping[str, Any]], *, namespace: Labels, pods: Sequence[Labels], is_reachable: Callable[[Backend], bool]
) -> list[Blocker]:
    """The webhooks that refuse to let one of these pods be created.

    One with matchConditions is left out: whether they match can't be told here. So is one that is asked by URL, which does not go through the cluster.

    Args:
        configurations: ValidatingWebhookConfigurations and MutatingWebhookConfigurations.
        namespace: labels of the pods' namespace.
        pods: the labels of each pod.
        is_reachable: whether a backend can answer.
    """
    found = []
    for configuration in configurations:
        for webhook in configuration.get("webhooks") or ():
            service = (webhook.get("clientConfig") or {}).get("service")
            if not service or webhook.get("failurePolicy", "Fail") != "Fail" or webhook.get("matchConditions"):
                continue
            if not any(_covers_pods(rule) for rule in webhook.get("rules") or ()) or not selects(webhook.get("namespaceSelector"), namespace):
                continue
            backend = Backend(str(service.get("namespace", "")), str(service.get("name", "")))
            if any(selects(webhook.get("objectSelector"), labels) for labels in pods) and not is_reachable(backend):
                found.append(Blocker(str(configuration["kind"]), str(configuration["metadata"]["name"]), str(webhook.get("name", "")), backend))
    return found


def _covers_pods(rule: Mapping[str, Any]) -> bool:
    """Whether a rule is about the creation of pods (admissionregistration.k8s.io/v1, RuleWithOperations)."""
    wanted = (("operations", ("CREATE", "*")), ("apiGroups", ("", "*")), ("apiVersions", ("v1", "*")), ("resources", ("pods", "*", "*/*")))
    return all(any(item in accepted for item in rule.get(key) or ()) for key, accepted in wanted) and rule.get("scope", "*") in ("*", "Namespaced")


def selects(selector: Mapping[str, Any] | None, labels: Labels) -> bool:
    """Whether a label selector (metav1.LabelSelector) selects these labels; none or an empty one selects all."""
    chosen = selector or {}
    exact = all(labels.get(key) == value for key, value in (chosen.get("matchLabels") or {}).items())
    expressions = chosen.get("matchExpressions") or ()
    return exact and all(matches(item.get("key", ""), item.get("operator", ""), item.get("values") or (), labels) for item in expressions)
