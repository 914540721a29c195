"""Groups, kinds, labels and annotations: each name is written once, here."""

from __future__ import annotations

CLUSTER_GROUP = "cluster.x-k8s.io"
BOOTSTRAP_GROUP = "bootstrap.cluster.x-k8s.io"
INFRASTRUCTURE_GROUP = "infrastructure.cluster.x-k8s.io"
CONTROLPLANE_GROUP = "controlplane.cluster.x-k8s.io"
V1BETA1 = "v1beta1"
CONTRACT_LABEL = {"cluster.x-k8s.io/v1beta1": "v1beta1"}
"""Every CRD of a provider carries it, or Cluster API's look-ups of references fail (contract: all CRDs)."""

CLUSTER_NAME_LABEL = "cluster.x-k8s.io/cluster-name"
DEPLOYMENT_NAME_LABEL = "cluster.x-k8s.io/deployment-name"
PAUSED_ANNOTATION = "cluster.x-k8s.io/paused"
MANAGED_BY_ANNOTATION = "cluster.x-k8s.io/managed-by"
CLUSTER_SECRET_TYPE = "cluster.x-k8s.io/secret"

CKP = "ckp.coredge.io"
HOST_GROUP_LABEL = f"hostgroup.{CKP}"
"""Label of a ByoHost: `hostgroup.ckp.coredge.io/<group>: ""`; a host may be in several groups."""
DOMAIN_LABEL = f"{CKP}/domain"
PROJECT_LABEL = f"{CKP}/project"
HOST_LABEL = f"{CKP}/host"
"""On a host's desired-state Secret, and on the pod that drains its node: the host's name. The hub reads the Secrets that have it."""
TENANT_NAMESPACE_LABEL = f"{CKP}/tenant-namespace"
"""On a host's desired-state Secret: the namespace of its ByoHost."""
MACHINE_ID_ANNOTATION = f"{CKP}/machine-id"
"""On a ByoHost: the machine-id of the machine that was approved as this host."""
DESIRED_KEY, AGENT_KEY, REGISTRY_KEY = "desired.json", "agent.json", "registry.json"
"""Of a host's Secret: its desired state, the wanted version of its agent, and its login to the registry; so that their writers never overwrite each other."""
CERTIFICATES_ANNOTATION = f"{CKP}/certificates"
"""On a host's desired-state Secret: which certificates the host may use. When it changes, or the Secret is deleted, the hub checks the host at once."""
EVENT_LABEL = f"{CKP}/about"
"""Of an Event: the uid of the object that it is about, since lists can be narrowed by labels."""
FORCE_RELEASE_ANNOTATION = f"{CKP}/force-release"
"""Of a ByoMachine: release its host without waiting for it to be clean (it resets itself when it comes back)."""
RETRY_UPGRADE_ANNOTATION = f"{CKP}/retry-upgrade"
"""On a ByoMachine: any text. A new one (a time, say) makes an upgrade of its node that failed be tried again."""
UPGRADE_CORDON_ANNOTATION = f"{CKP}/cordoned-for-upgrade"
"""On a Node: it takes no pods because it is upgraded, and is to take them again afterwards. A node that was cordoned before has no such annotation."""
DELETE_REQUESTED_ANNOTATION = f"{CKP}/delete-requested-at"
"""On a Cluster: drain and reset its workers, then delete it."""
FORCE_DELETE_ANNOTATION = f"{CKP}/force-delete-requested-at"
"""On a Cluster whose deletion is requested: no drain, no wait for volumes, and none for hosts that do not answer."""
LEFT_BEHIND_ANNOTATION = f"{CKP}/left-behind"
"""On a Cluster that is being deleted: the volumes that it leaves in other systems, as a JSON list of sentences."""
NO_DRAIN_ANNOTATION = "machine.cluster.x-k8s.io/exclude-node-draining"
NO_VOLUME_DETACH_ANNOTATION = "machine.cluster.x-k8s.io/exclude-wait-for-node-volume-detach"
"""Both on a Machine, and Cluster API's: its deletion does not wait for these."""
FORCED = {NO_DRAIN_ANNOTATION: "true", NO_VOLUME_DETACH_ANNOTATION: "true"}
LOOK_ANNOTATION = f"{CKP}/looked-at"
"""On a Machine: when Cluster API was last woken for it, because a timeout has run out that it would notice later by itself."""
SKIP_REMEDIATION_ANNOTATION = "cluster.x-k8s.io/skip-remediation"
REMEDIATE_ANNOTATION = "cluster.x-k8s.io/remediate-machine"
"""Both on a Machine, and Cluster API's: no health check reads it; it is reported as unhealthy because a person says so."""
RESUMED_ANNOTATION = f"{CKP}/replacement-resumed-at"
"""On a ByoCluster: when a person last let CKP go on with replacing unhealthy workers; what failed before does not count any more."""
ACCEPT_ETCD_DATA_ANNOTATION = f"{CKP}/accept-etcd-data"
"""On a ManagedControlPlane whose etcd lost data: go on with what is there. The value is the one that its condition EtcdReady names, so it is good for once."""
BACKUP_ANNOTATION = f"{CKP}/backup-requested-at"
"""On a ManagedControlPlane: when a person last asked for a backup beside the schedule. It is taken up once."""
RESTORE_ANNOTATION = f"{CKP}/restore-requested"
"""On a ManagedControlPlane: `BACKUP TIME`: put the cluster's etcd back to this backup. It is removed when that is done or refused, so it is good for once."""
UPGRADE_ANNOTATION = f"{CKP}/upgraded-to"
"""On a MachineDeployment that CKP has paused: the version that its template and its MachineSet's are brought to meanwhile."""
REQUESTED_AT_ANNOTATION = f"{CKP}/requested-at"
"""When the user asked for the cluster; the first of the fourteen steps counts from it."""
ON_HOSTS_CLASS = f"{CKP}/on-hosts"
"""The load balancer class of Services that get an address which a management host has (ckp.controllers.host_addresses)."""
ADDRESSES_ANNOTATION, OLDER_ADDRESSES_ANNOTATION = "lbipam.cilium.io/ips", "io.cilium/lb-ipam-ips"
"""By which a Service asks Cilium's load balancer for addresses (pkg/annotation/k8s.go); CKP writes the first."""

BYOHOST_FINALIZER = f"byohost.{CKP}"
BYOMACHINE_FINALIZER = f"byomachine.{CKP}"
MANAGED_CONTROL_PLANE_FINALIZER = f"managedcontrolplane.{CKP}"
CLUSTER_UPGRADE_FINALIZER = f"clusterupgrade.{CKP}"

SYSTEM_NAMESPACE = "ckp-system"
"""Controllers, hub and Compass."""
HOSTS_NAMESPACE = "ckp-hosts"
"""One Secret a host with its desired state; the hub reads Secrets here and nowhere else."""

PROVIDER_ID_PREFIX = "byoh://"


def workers_name(cluster: str) -> str:
    """The name of a cluster's MachineDeployment, of its MachineHealthCheck, and of the templates that they use."""
    return f"{cluster}-workers"


def tenant_namespace(domain: str, project: str) -> str:
    """The namespace that holds a project's hosts and clusters."""
    return f"ckp-{domain}-{project}"


def desired_secret(namespace: str, host: str) -> str:
    """The Secret in HOSTS_NAMESPACE with a host's desired state: `<namespace>.<host>`; a namespace's name has no dot, so two hosts never share one."""
    return f"{namespace}.{host}"


def provider_id(namespace: str, host: str, machine_uid: str) -> str:
    """A node's providerID: `byoh://<namespace>/<host>/<start of the machine's uid>`; another machine on the same host is another node."""
    return f"{PROVIDER_ID_PREFIX}{namespace}/{host}/{machine_uid[:8]}"


def host_of(identity: str) -> str:
    """The host in a providerID."""
    return identity.removeprefix(PROVIDER_ID_PREFIX).split("/")[1]


def group_label(group: str) -> str:
    """The label key that puts a ByoHost into a host group."""
    return f"{HOST_GROUP_LABEL}/{group}"


def load_balancer(name: str, address: str) -> dict[str, str]:
    """What the spec of a Service of type LoadBalancer says of the class that it is of; nothing without one.

    Args:
        address: the one to ask for, beside ADDRESSES_ANNOTATION, which only Cilium reads; empty: any.
    """
    return {} if not name else {"loadBalancerClass": name, **({"loadBalancerIP": address} if address else {})}


COMPASS_AUDIENCE = "ckp-compass"
"""What ServiceAccount tokens are made for that are shown to Compass."""
SITE_ACCOUNT = "ckp-site"
"""The ServiceAccount that `ckp site apply` shows to Compass; in ckp-system."""
