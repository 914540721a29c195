"""What to do about a step that waits. What it waits for is said by the step itself."""

from __future__ import annotations

from dataclasses import dataclass

from ckp.api.states import StepState


@dataclass(frozen=True)
class Remedy:
    """A sentence, and where on the console it leads to.

    Args:
        page: below the project's pages; empty for none.
        link: what the link says.
    """

    text: str
    page: str = ""
    link: str = ""


_HOSTS = Remedy("See that its hosts are connected and fit: each host's page says what is wrong with it.", "hosts", "Hosts")
REMEDIES = {
    "ProviderResolved": Remedy("This takes seconds. If it stays, the controllers of the management cluster do not run: see ckp site status."),
    "HostsProvisioned": _HOSTS,
    "AgentsRegistered": Remedy("A host that is not connected must be on, run ckp-agent, and reach the hub.", "hosts?state=Offline", "Hosts that are offline"),
    "HostsApproved": Remedy("Approve the machines that ask to become hosts.", "requests", "Pending requests"),
    "HostsAssigned": Remedy("Put more free hosts into the group, or make the cluster smaller.", "host-groups", "Host groups"),
    "ResourcesCreated": Remedy("Creation was interrupted: send the same request again, and it is completed."),
    "ReconcilersBootstrapped": Remedy("Each machine claims a free host of the group. Add hosts to it, or look at the machines below.", "hosts", "Hosts"),
    "ControlPlaneUp": Remedy("Its pods start in the management cluster, which needs room for them and must be able to pull their images."),
    "WorkersJoined": Remedy("A host installs and verifies its packages first. What it does, and why it failed, is in its journal.", "hosts", "Hosts"),
    "ClusterReady": Remedy("Nodes become ready once the network runs. The machines below say what they wait for."),
    "NetworkInstalled": Remedy("The network's pods must be able to pull their images and run on the nodes."),
    "StorageAndBackup": Remedy("The addons' pods must be able to run on the nodes; the conditions below name the one that does not."),
    "CertificatesIssued": Remedy("cert-manager issues them in the management cluster; the conditions below say which one is missing."),
}


def remedy(step: str, state: str) -> Remedy | None:
    """What to do about a step in this state; None where there is nothing to do."""
    return REMEDIES.get(step) if state in (StepState.RUNNING, StepState.FAILED, StepState.UNKNOWN) else None
