"""The use cases of Compass, and the door of each: REST, the command line, the console. One feature is one function; doors lead to it."""

from __future__ import annotations

from dataclasses import dataclass

PROJECT = "/api/v1/domains/{domain}/projects/{project}"
PAGES = "/domains/{domain}/projects/{project}"


@dataclass(frozen=True)
class Feature:
    """One use case.

    Args:
        title: what somebody wants to do.
        service: of `UseCases`, as `clusters.create`; several, separated by blanks, where one request may do several things.
        rest: method and path below /api/v1 (`…` stands for a project's part); empty if there is none.
        cli: the command; empty if there is none.
        web: method and path of the page that does it (`…` as above); empty if there is none.
    """

    title: str
    service: str
    rest: str = ""
    cli: str = ""
    web: str = ""


FEATURES: tuple[Feature, ...] = (
    Feature("Sign in", "sessions.open", "", "", "POST /sign-in"),
    Feature("Sign out", "sessions.close", "", "", "POST /sign-out"),
    Feature("List known projects", "known_projects", "", "", "GET /"),
    Feature("List releases", "list_releases", "GET /releases", "", "GET /releases"),
    Feature("Show a release", "get_release", "GET /releases/{name}", "", ""),
    Feature("List versions of the agent", "releases.agents", "GET /agents", "", "GET /releases"),
    Feature("Show the audit log", "audit", "GET …/audit", "", "GET …/audit"),
    Feature("Show the pre-shared key", "keys.get", "GET …/host-psk", "ckp host psk", ""),
    Feature("Make a new pre-shared key", "keys.reset", "POST …/host-psk/reset", "ckp host psk", ""),
    Feature("Show the line by which machines enrol", "joining.get", "GET …/host-join", "ckp host join-command", "GET …/hosts"),
    Feature("List host requests", "requests.list", "GET …/host-requests", "ckp host requests", "GET …/requests"),
    Feature("Show a host request", "requests.get", "GET …/host-requests/{request_id}", "", ""),
    Feature("Approve a host request", "requests.approve", "POST …/host-requests/{request_id}/approve", "ckp host approve", "POST …/requests/decide"),
    Feature("Reject a host request", "requests.reject", "POST …/host-requests/{request_id}/reject", "ckp host reject", "POST …/requests/decide"),
    Feature("Decide about many host requests", "requests.bulk", "POST …/host-requests/bulk", "ckp host approve", "POST …/requests/decide"),
    Feature("List approval rules", "approval.list", "GET …/host-approval-rules", "ckp host rule list", ""),
    Feature("Create an approval rule", "approval.create", "POST …/host-approval-rules", "ckp host rule create", ""),
    Feature("Show an approval rule", "approval.get", "GET …/host-approval-rules/{name}", "", ""),
    Feature("Delete an approval rule", "approval.delete", "DELETE …/host-approval-rules/{name}", "ckp host rule delete", ""),
    Feature("List hosts", "hosts.list", "GET …/hosts", "ckp host list", "GET …/hosts"),
    Feature("Show a host", "hosts.get", "GET …/hosts/{name}", "ckp host describe", "GET …/hosts/{name}"),
    Feature("List a host's events", "hosts.events", "GET …/hosts/{name}/events", "ckp host describe", "GET …/hosts/{name}"),
    Feature("Follow hosts live", "changes.follow", "", "", "GET …/hosts/-/stream"),
    Feature("Follow a host live", "changes.follow", "", "", "GET …/hosts/{name}/stream"),
    Feature("Follow host requests live", "changes.follow", "", "", "GET …/requests/-/stream"),
    Feature("Cordon, drain, label or taint a host", "operations.change", "PATCH …/hosts/{name}", "ckp host cordon", ""),
    Feature("Revoke a host's certificate", "operations.revoke", "POST …/hosts/{name}/revoke", "ckp host revoke", ""),
    Feature("Upgrade a host's agent", "operations.upgrade_agent", "PUT …/hosts/{name}/agent", "ckp host upgrade-agent", ""),
    Feature("Take a host out of its cluster", "operations.leave", "POST …/hosts/{name}/leave", "ckp host remove", ""),
    Feature("Remove a host", "hosts.delete", "DELETE …/hosts/{name}", "ckp host delete", ""),
    Feature("List host groups", "groups.list", "GET …/host-groups", "ckp hostgroup list", "GET …/host-groups"),
    Feature("Create a host group", "groups.create", "POST …/host-groups", "ckp hostgroup create", "POST …/host-groups"),
    Feature("Show a host group", "groups.get", "GET …/host-groups/{name}", "", "GET …/host-groups"),
    Feature("Change a host group's description", "groups.update", "PATCH …/host-groups/{name}", "", ""),
    Feature("Delete a host group", "groups.delete", "DELETE …/host-groups/{name}", "ckp hostgroup delete", ""),
    Feature("Add hosts to a group", "groups.add", "POST …/host-groups/{name}/members", "ckp hostgroup add", "POST …/host-groups/{name}/members"),
    Feature("Add one host to a group", "groups.add", "PUT …/host-groups/{name}/members/{host}", "ckp hostgroup add", "POST …/host-groups/{name}/members"),
    Feature(
        "Remove hosts from a group", "groups.remove", "POST …/host-groups/{name}/members/remove", "ckp hostgroup remove", "POST …/host-groups/{name}/members"
    ),
    Feature(
        "Remove one host from a group",
        "groups.remove",
        "DELETE …/host-groups/{name}/members/{host}",
        "ckp hostgroup remove",
        "POST …/host-groups/{name}/members",
    ),
    Feature("List clusters", "clusters.list", "GET …/clusters", "ckp cluster list", "GET …/clusters"),
    Feature("Show a cluster, its steps and machines", "clusters.get", "GET …/clusters/{name}", "ckp cluster describe", "GET …/clusters/{name}"),
    Feature("Follow clusters live", "changes.follow", "", "", "GET …/clusters/-/stream"),
    Feature("Follow a cluster live", "changes.follow", "", "", "GET …/clusters/{name}/stream"),
    Feature("Try a request for a cluster (dry run)", "clusters.check", "POST …/clusters/check", "", "POST …/new-cluster"),
    Feature("Create a cluster", "clusters.create", "POST …/clusters", "ckp cluster create", "POST …/new-cluster"),
    Feature("Scale a cluster", "clusters.scale", "PATCH …/clusters/{name}", "ckp cluster scale", "POST …/clusters/{name}/scale"),
    Feature("List a cluster's backups", "backups.list", "GET …/clusters/{name}/backups", "ckp cluster backups", "GET …/clusters/{name}"),
    Feature("Back a cluster up now", "backups.request", "POST …/clusters/{name}/backups", "ckp cluster backup", ""),
    Feature("Restore a cluster in place", "backups.restore", "POST …/clusters/{name}/restore", "ckp cluster restore", ""),
    Feature("Change a cluster's timeouts, names and backups", "clusters.change backups.set", "PATCH …/clusters/{name}", "ckp cluster set", ""),
    Feature("Let workers be replaced again", "clusters.resume_replacement", "POST …/clusters/{name}/resume-replacement", "ckp cluster resume-replacement", ""),
    Feature("Get a kubeconfig", "clusters.kubeconfig", "GET …/clusters/{name}/kubeconfig", "ckp cluster kubeconfig", "POST …/clusters/{name}/kubeconfig"),
    Feature("Delete a cluster", "clusters.delete", "DELETE …/clusters/{name}", "ckp cluster delete", "POST …/clusters/{name}/delete"),
)
