"""The kinds of objects that CKP works with, with their group, version and plural."""

from __future__ import annotations

from dataclasses import dataclass

from ckp.api import names


@dataclass(frozen=True)
class Kind:
    """One kind of object, as its API server knows it."""

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """`apiVersion` of its objects."""
        return f"{self.group}/{self.version}" if self.group else self.version


def _core(kind: str, plural: str, *, namespaced: bool = True) -> Kind:
    return Kind("", "v1", kind, plural, namespaced)


NAMESPACE = _core("Namespace", "namespaces", namespaced=False)
NODE = _core("Node", "nodes", namespaced=False)
POD = _core("Pod", "pods")
SECRET = _core("Secret", "secrets")
CONFIG_MAP = _core("ConfigMap", "configmaps")
SERVICE = _core("Service", "services")
SERVICE_ACCOUNT = _core("ServiceAccount", "serviceaccounts")
EVENT = _core("Event", "events")
PVC = _core("PersistentVolumeClaim", "persistentvolumeclaims")
PERSISTENT_VOLUME = _core("PersistentVolume", "persistentvolumes", namespaced=False)
ENDPOINTS = _core("Endpoints", "endpoints")
ENDPOINT_SLICE = Kind("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices")

DEPLOYMENT = Kind("apps", "v1", "Deployment", "deployments")
STATEFUL_SET = Kind("apps", "v1", "StatefulSet", "statefulsets")
DAEMON_SET = Kind("apps", "v1", "DaemonSet", "daemonsets")
JOB = Kind("batch", "v1", "Job", "jobs")
LEASE = Kind("coordination.k8s.io", "v1", "Lease", "leases")
CSR = Kind("certificates.k8s.io", "v1", "CertificateSigningRequest", "certificatesigningrequests", False)
ROLE = Kind("rbac.authorization.k8s.io", "v1", "Role", "roles")
ROLE_BINDING = Kind("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings")
CLUSTER_ROLE = Kind("rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles", False)
CLUSTER_ROLE_BINDING = Kind("rbac.authorization.k8s.io", "v1", "ClusterRoleBinding", "clusterrolebindings", False)
NETWORK_POLICY = Kind("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies")
STORAGE_CLASS = Kind("storage.k8s.io", "v1", "StorageClass", "storageclasses", False)
PRIORITY_CLASS = Kind("scheduling.k8s.io", "v1", "PriorityClass", "priorityclasses", False)
PDB = Kind("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets")
CRD = Kind("apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions", False)
VALIDATING_WEBHOOK = Kind("admissionregistration.k8s.io", "v1", "ValidatingWebhookConfiguration", "validatingwebhookconfigurations", False)
MUTATING_WEBHOOK = Kind("admissionregistration.k8s.io", "v1", "MutatingWebhookConfiguration", "mutatingwebhookconfigurations", False)

CERTIFICATE = Kind("cert-manager.io", "v1", "Certificate", "certificates")
CERTIFICATE_REQUEST = Kind("cert-manager.io", "v1", "CertificateRequest", "certificaterequests")
ISSUER = Kind("cert-manager.io", "v1", "Issuer", "issuers")
CLUSTER_ISSUER = Kind("cert-manager.io", "v1", "ClusterIssuer", "clusterissuers", False)

LB_POOL = Kind("cilium.io", "v2", "CiliumLoadBalancerIPPool", "ciliumloadbalancerippools", False)
L2_POLICY = Kind("cilium.io", "v2alpha1", "CiliumL2AnnouncementPolicy", "ciliuml2announcementpolicies", False)

CLUSTER = Kind(names.CLUSTER_GROUP, names.V1BETA1, "Cluster", "clusters")
MACHINE = Kind(names.CLUSTER_GROUP, names.V1BETA1, "Machine", "machines")
MACHINE_SET = Kind(names.CLUSTER_GROUP, names.V1BETA1, "MachineSet", "machinesets")
MACHINE_HEALTH_CHECK = Kind(names.CLUSTER_GROUP, names.V1BETA1, "MachineHealthCheck", "machinehealthchecks")
MACHINE_DEPLOYMENT = Kind(names.CLUSTER_GROUP, names.V1BETA1, "MachineDeployment", "machinedeployments")
KUBEADM_CONFIG = Kind(names.BOOTSTRAP_GROUP, names.V1BETA1, "KubeadmConfig", "kubeadmconfigs")
KUBEADM_CONFIG_TEMPLATE = Kind(names.BOOTSTRAP_GROUP, names.V1BETA1, "KubeadmConfigTemplate", "kubeadmconfigtemplates")
BYO_HOST = Kind(names.INFRASTRUCTURE_GROUP, names.V1BETA1, "ByoHost", "byohosts")
BYO_CLUSTER = Kind(names.INFRASTRUCTURE_GROUP, names.V1BETA1, "ByoCluster", "byoclusters")
BYO_MACHINE = Kind(names.INFRASTRUCTURE_GROUP, names.V1BETA1, "ByoMachine", "byomachines")
BYO_MACHINE_TEMPLATE = Kind(names.INFRASTRUCTURE_GROUP, names.V1BETA1, "ByoMachineTemplate", "byomachinetemplates")
BYO_REMEDIATION = Kind(names.INFRASTRUCTURE_GROUP, names.V1BETA1, "ByoRemediation", "byoremediations")
BYO_REMEDIATION_TEMPLATE = Kind(names.INFRASTRUCTURE_GROUP, names.V1BETA1, "ByoRemediationTemplate", "byoremediationtemplates")
MANAGED_CONTROL_PLANE = Kind(names.CONTROLPLANE_GROUP, names.V1BETA1, "ManagedControlPlane", "managedcontrolplanes")
CLUSTER_UPGRADE = Kind(names.CONTROLPLANE_GROUP, names.V1BETA1, "ClusterUpgrade", "clusterupgrades")

ALL: tuple[Kind, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Kind))
_BY_NAME = {(kind.api_version, kind.kind): kind for kind in ALL}


def kind_of(obj: dict[str, object]) -> Kind:
    """The Kind of an object from its `apiVersion` and `kind`; one that is not listed here is assumed to be namespaced, with a regular plural."""
    api_version, kind = str(obj["apiVersion"]), str(obj["kind"])
    if found := _BY_NAME.get((api_version, kind)):
        return found
    group, _, version = api_version.rpartition("/")
    lower = kind.lower()
    plural = lower + "es" if lower.endswith(("s", "x")) else lower[:-1] + "ies" if lower.endswith("y") else lower + "s"
    return Kind(group, version, kind, plural, namespaced="namespace" in dict(obj["metadata"]))  # type: ignore[call-overload]
