"""Condition types, reasons, phases and states of the objects that CKP reads and writes: each word is written once, here.

All of them are wire names: they stand in objects that are stored. Read models keep them as plain text, so that an object of a newer version can be
read; code compares that text with these names.
"""

from __future__ import annotations

from enum import StrEnum


class ConditionType(StrEnum):
    """Types of conditions, by the object that carries them."""

    READY = "Ready"
    """Of every object: the sum of its other conditions."""

    # ByoHost, from the hub
    AGENT_CONNECTED = "AgentConnected"
    IDENTITY_UNIQUE = "IdentityUnique"
    """False while two machines show the same host's certificate: an operator must decide which of them it is."""

    # ByoHost, from its controller
    AVAILABLE = "Available"
    STABLE = "Stable"
    DRAINED = "Drained"
    NODE_MARKED = "NodeMarked"
    """The node carries the labels and taints of its host."""

    # ByoMachine
    BYO_HOST_READY = "BYOHostReady"
    NODE_UPGRADED = "NodeUpgraded"
    """Only once an upgrade was asked for: its node is of the release that it is to be of. It does not count for Ready."""

    # ByoCluster
    CLUSTER_READY = "ClusterReady"
    REMEDIATION_ALLOWED = "RemediationAllowed"
    """False while an unhealthy worker is not replaced, with the reason. It does not count for Ready."""

    # ManagedControlPlane, in the order in which it comes up
    ENDPOINT_AVAILABLE = "EndpointAvailable"
    CERTIFICATES_AVAILABLE = "CertificatesAvailable"
    ETCD_READY = "EtcdReady"
    ETCD_SPACE_AVAILABLE = "EtcdSpaceAvailable"
    """etcd's database is below its quota; at the quota the cluster can be read, and nothing but deletions is accepted."""
    COMPONENTS_READY = "ControlPlaneComponentsReady"
    KUBECONFIG_AVAILABLE = "KubeconfigAvailable"
    KUBERNETES_SERVICE_READY = "KubernetesServiceReady"
    """The Service `default/kubernetes` of the workload cluster leads to the load balancer."""
    BOOTSTRAPPED = "Bootstrapped"
    DELETED = "Deleted"
    WORKLOAD_READY = "WorkloadReady"
    """A pod of the workload cluster was scheduled, resolves a name and reaches the API server. Not part of Ready: the control plane may be all right."""

    UPGRADED = "Upgraded"
    """All of the control plane is of `spec.version`. False with the part that is waited for, and then part of Ready; or with why the version is refused."""
    BACKUP_FRESH = "BackupFresh"
    """A proved backup of the cluster is as new as its schedule asks for, and none has failed since. Not part of Ready."""
    DATA_RESTORED = "DataRestored"
    """Only where a restore was asked for: True once the cluster goes on with a backup's data. Not part of Ready."""

    # Cluster API's own (api/v1beta1/condition_consts.go, v1.7.7)
    CONTROL_PLANE_INITIALIZED = "ControlPlaneInitialized"
    NODE_HEALTHY = "NodeHealthy"
    HEALTH_CHECK_SUCCEEDED = "HealthCheckSucceeded"
    DRAINING_SUCCEEDED = "DrainingSucceeded"
    VOLUME_DETACH_SUCCEEDED = "VolumeDetachSucceeded"
    PRE_TERMINATE_HOOK_SUCCEEDED = "PreTerminateDeleteHookSucceeded"
    """Of a Machine that is being deleted: True once its node was drained and its volumes are off, or were not waited for."""


class Reason(StrEnum):
    """Reasons of conditions that are not True. A host's own reasons (Report.reason) are the agent's, and are passed on as they are."""

    WAITING = "Waiting"

    # AgentConnected
    CONNECTED = "Connected"
    DISCONNECTED = "Disconnected"
    """The agent ended the connection in order: it was stopped or upgraded, or its host restarted."""
    SILENT = "Silent"
    """The connection was lost."""

    # IdentityUnique
    ONE_MACHINE = "OneMachine"
    CLONED_MACHINE = "ClonedMachine"
    OTHER_MACHINE = "OtherMachine"

    # Available, Stable, Drained, NodeMarked
    CLAIMED = "Claimed"
    FLAPPING = "Flapping"
    DRAINING = "Draining"
    DRAIN_FAILED = "DrainFailed"
    UNCORDONING = "Uncordoning"
    NODE_NOT_REACHED = "NodeNotReached"

    # BYOHostReady
    WAITING_FOR_MACHINE_OWNER = "WaitingForMachineOwner"
    WAITING_FOR_CLUSTER_INFRASTRUCTURE = "WaitingForClusterInfrastructure"
    WAITING_FOR_HOST = "WaitingForHost"
    NO_FREE_HOST = "NoFreeHost"
    HOST_GONE = "HostGone"
    HOST_LOST = "HostLost"
    HOST_OFFLINE = "HostOffline"
    CLUSTER_NOT_REACHED = "ClusterNotReached"
    JOIN_TOKEN_RENEWED = "JoinTokenRenewed"
    CANNOT_PROVISION = "CannotProvision"
    INSTALLATION_FAILED = "InstallationFailed"
    RESETTING = "Resetting"
    UPGRADE_NOT_REQUESTED = "UpgradeNotRequested"
    """The Machine is of another version than its node, and nobody has asked for the node's upgrade."""

    # ByoMachine.status.upgrade
    AGENT_TOO_OLD = "AgentTooOld"
    NO_BUNDLE = "NoBundle"
    OLDER_VERSION = "OlderVersion"
    NODE_GONE = "NodeGone"
    NODE_NOT_READY = "NodeNotReady"
    NODE_UPGRADING = "NodeUpgrading"

    # RemediationAllowed
    WAITING_FOR_NETWORK = "WaitingForNetwork"
    WAITING_FOR_STARTUP = "WaitingForStartup"
    TOO_MANY_UNHEALTHY = "TooManyUnhealthy"
    BACKING_OFF = "BackingOff"
    HELD = "Held"

    # ManagedControlPlane
    DATA_LOST = "DataLost"
    """No member of etcd has data: it could only start empty."""
    MEMBER_WITHOUT_DATA = "MemberWithoutData"
    """A quorum of etcd has its data, and one of the others has lost its own."""
    REVISION_WENT_BACK = "RevisionWentBack"
    """etcd holds older data than was seen in it, or another cluster's."""
    NO_SPACE = "NoSpace"
    NEARLY_FULL = "NearlyFull"
    SPACE_FREED = "EtcdSpaceFreed"
    """Of Events: a member was defragmented, or the alarm ended."""
    ETCD_NOT_REACHED = "EtcdNotReached"
    API_SERVER_NOT_REACHED = "APIServerNotReached"
    UNKNOWN_VERSION = "UnknownVersion"
    UNUSABLE_ENDPOINT = "UnusableEndpoint"
    ADDRESS_LOST = "AddressLost"
    """The API server's Service no longer has the address that the cluster was made with."""
    REFUSED = "Refused"
    """The management cluster refused an object, or holds one that can't be used: it takes a person."""
    DELETING = "Deleting"
    BACKUP_FAILED = "BackupFailed"
    BACKUP_OVERDUE = "BackupOverdue"
    NO_SCHEDULE = "NoSchedule"
    """No backups are asked for."""
    RESTORING = "Restoring"
    RESTORE_REFUSED = "RestoreRefused"
    """The backup can't be restored into this cluster; nothing was changed."""

    UPGRADING_ETCD = "UpgradingEtcd"
    UPGRADING_API_SERVERS = "UpgradingAPIServers"
    UPGRADING_MANAGERS = "UpgradingManagers"
    RUNNING_KUBEADM_PHASES = "RunningKubeadmPhases"
    """Of Upgraded, in their order: the part that is not of the version yet."""
    ROLLING_BACK = "RollingBack"
    """Of Upgraded: a step that was not committed is undone."""
    SOAKING = "Soaking"
    """Of Upgraded: the new programs run as the minor before, until the step is committed. All is well, so it does not count for Ready."""
    UPGRADE_REFUSED = "UpgradeRefused"
    """The version can't be reached from the one that runs, or not now; nothing was changed."""
    UPGRADE_FAILED = "UpgradeFailed"

    # WorkloadReady
    NO_NODE = "NoNode"
    NO_NETWORK = "NoNetwork"
    NODES_NOT_READY = "NodesNotReady"
    POD_NETWORK_FULL = "PodNetworkFull"
    NODE_NETWORK_NOT_READY = "NodeNetworkNotReady"
    """A node says that it is ready, and no pod of the network plugin runs on it: no pod can start there."""
    WEBHOOK_BLOCKS = "WebhookBlocks"
    POD_NOT_CREATED = "PodNotCreated"
    UNSCHEDULABLE = "Unschedulable"
    POD_NOT_STARTED = "PodNotStarted"
    DNS_NOT_READY = "DNSNotReady"
    NAME_NOT_RESOLVED = "NameNotResolved"
    API_NOT_REACHED = "APINotReached"


class HostPhase(StrEnum):
    """What a host reports to be (host_protocol.Phase)."""

    FREE = "Free"
    PREFLIGHT = "Preflight"
    PULLING = "Pulling"
    VERIFYING = "Verifying"
    PREPARING = "Preparing"
    INSTALLING = "Installing"
    FETCHING = "Fetching"
    PREPARED = "Prepared"
    JOINING = "Joining"
    CHECKING = "Checking"
    JOINED = "Joined"
    RESETTING = "Resetting"
    FAILED = "Failed"


class UpgradePhase(StrEnum):
    """Of a ClusterUpgrade."""

    CHECKING = "Checking"
    BLOCKED = "Blocked"
    """A finding holds it up; nothing was changed. It is checked again, and goes on once nothing does."""
    PREPARING = "Preparing"
    """Hosts pull and verify what they will install."""
    CONTROL_PLANE = "ControlPlane"
    SOAKING = "Soaking"
    """The control plane runs the new programs as the minor before; it waits for the commit or the rollback."""
    NODES = "Nodes"
    PAUSED = "Paused"
    FAILED = "Failed"
    ABORTED = "Aborted"
    ROLLED_BACK = "RolledBack"
    """The control plane is of the version before its last step again."""
    PLANNED = "Planned"
    """It was to be checked only; nothing was changed."""
    DONE = "Done"


class NodeUpgradeState(StrEnum):
    """Of the upgrade of one node in place, in the order in which it goes."""

    PREPARING = "Preparing"
    PREPARED = "Prepared"
    DRAINING = "Draining"
    INSTALLING = "Installing"
    VERIFYING = "Verifying"
    DONE = "Done"
    FAILED = "Failed"


class StepState(StrEnum):
    """Of one of a cluster's steps."""

    PENDING = "Pending"
    RUNNING = "Running"
    DONE = "Done"
    SKIPPED = "Skipped"
    FAILED = "Failed"
    UNKNOWN = "Unknown"
    """What it is judged by can't be seen now."""


FINISHED_STEPS = (StepState.DONE, StepState.SKIPPED)
"""The states in which nothing more is expected of a step."""


class AddonState(StrEnum):
    """Of one of a cluster's addons."""

    INSTALLING = "Installing"
    INSTALLED = "Installed"
    UNAVAILABLE = "Unavailable"
    """This version of CKP, or the cluster's release, does not have it."""


AGENT_STAYS = ("AgentUpgradeReturned", "NoWayBack", "AgentPackageMissing")
"""Reasons in a host's report after which its agent stays as it is (ckp.agent.upgrade): waiting for the wanted version is useless."""
