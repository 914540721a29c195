"""The use cases of Compass, the door of each (REST, the command line, the console), and the least role that it asks for. One feature is one function;
doors lead to it, and each call passes `ckp.compass.access.guard`, which asks for the role."""

from __future__ import annotations

from dataclasses import dataclass

from ckp.api.compass.roles import Least

NOBODY, SIGNED_IN, VIEWER, AUDITOR, USER = Least.NOBODY, Least.SIGNED_IN, Least.VIEWER, Least.AUDITOR, Least.USER
OF_PROJECT, OF_DOMAIN, OF_PLATFORM = Least.PROJECT_ADMINISTRATOR, Least.DOMAIN_ADMINISTRATOR, Least.PLATFORM_ADMINISTRATOR

PROJECT = "/api/v1/domains/{domain}/projects/{project}"
UPGRADE = "POST …/clusters/{name}/upgrade"
PAGES = "/domains/{domain}/projects/{project}"


@dataclass(frozen=True)
class Feature:
    """One use case.

    Args:
        title: what somebody wants to do.
        service: of `UseCases`, as `clusters.create`.
        least: who may use it, in the project, the domain or the platform that it is about.
        rest: method and path below /api/v1 (`…` stands for a project's part); empty if there is none.
        cli: the command; empty if there is none.
        web: method and path of the page that does it (`…` as above); empty if there is none.
    """

    title: str
    service: str
    least: Least
    rest: str = ""
    cli: str = ""
    web: str = ""


FEATURES: tuple[Feature, ...] = (
    Feature("Sign in by the bootstrap token", "sessions.open", NOBODY, "", "", "POST /sign-in"),
    Feature("Sign in by name and password", "sessions.sign_in", NOBODY, "POST /sessions", "ckp login", "POST /sign-in"),
    Feature("Sign out", "sessions.close", SIGNED_IN, "DELETE /sessions/current", "ckp logout", "POST /sign-out"),
    Feature("See who one is", "users.me", SIGNED_IN, "GET /me", "ckp whoami", "GET /account"),
    Feature("Change one's own password", "users.change_password", SIGNED_IN, "POST /me/password", "ckp user passwd", "POST /account/password"),
    Feature("Make the first administrator", "users.create_first", OF_PLATFORM, "POST /first-administrator", "ckp user create", "POST /first-administrator"),
    Feature("List domains", "domains.list", SIGNED_IN, "GET /domains", "ckp domain list", "GET /"),
    Feature("Create a domain", "domains.create", OF_PLATFORM, "POST /domains", "ckp domain create", "POST /domains"),
    Feature("Show a domain", "domains.get", VIEWER, "GET /domains/{domain}", "ckp domain get", "GET /domains/{domain}"),
    Feature("Rename a domain", "domains.rename", OF_DOMAIN, "PATCH /domains/{domain}", "ckp domain rename", "POST /domains/{domain}/rename"),
    Feature("Delete a domain", "domains.delete", OF_PLATFORM, "DELETE /domains/{domain}", "ckp domain delete", "POST /domains/{domain}/delete"),
    Feature("List projects", "projects.list", SIGNED_IN, "GET /projects", "ckp project list", "GET /"),
    Feature("List a domain's projects", "projects.of_domain", VIEWER, "GET /domains/{domain}/projects", "ckp project list", "GET /domains/{domain}"),
    Feature("Create a project", "projects.create", OF_DOMAIN, "POST /domains/{domain}/projects", "ckp project create", "POST /domains/{domain}/projects"),
    Feature("Show a project", "projects.get", VIEWER, "GET …", "ckp project get", "GET …/access"),
    Feature("Rename a project", "projects.rename", OF_PROJECT, "PATCH …", "ckp project rename", "POST …/rename"),
    Feature("Delete a project", "projects.delete", OF_DOMAIN, "DELETE …", "ckp project delete", "POST …/delete"),
    Feature("List users", "users.list", AUDITOR, "GET /users", "ckp user list", "GET /people"),
    Feature("List a domain's users", "users.list", AUDITOR, "GET /domains/{domain}/users", "ckp user list", "GET /domains/{domain}"),
    Feature("Create a user", "users.create", OF_DOMAIN, "POST /users", "ckp user create", "POST /people/users"),
    Feature("Create a user of a domain", "users.create", OF_DOMAIN, "POST /domains/{domain}/users", "ckp user create", "POST /domains/{domain}/users"),
    Feature("Show a user", "users.get", AUDITOR, "GET /users/{name}", "ckp user get", ""),
    Feature("Show a user of a domain", "users.get", AUDITOR, "GET /domains/{domain}/users/{name}", "ckp user get", ""),
    Feature("Rename, disable or enable a user", "users.change", OF_DOMAIN, "PATCH /users/{name}", "ckp user disable", ""),
    Feature("Rename, disable or enable a user of a domain", "users.change", OF_DOMAIN, "PATCH /domains/{domain}/users/{name}", "ckp user disable", ""),
    Feature("Set a user's password", "users.set_password", OF_DOMAIN, "POST /users/{name}/password", "ckp user passwd", ""),
    Feature("Set the password of a user of a domain", "users.set_password", OF_DOMAIN, "POST /domains/{domain}/users/{name}/password", "ckp user passwd", ""),
    Feature("Delete a user", "users.delete", OF_DOMAIN, "DELETE /users/{name}", "ckp user delete", "POST /people/users/{name}/delete"),
    Feature(
        "Delete a user of a domain",
        "users.delete",
        OF_DOMAIN,
        "DELETE /domains/{domain}/users/{name}",
        "ckp user delete",
        "POST /domains/{domain}/users/{name}/delete",
    ),
    Feature("List roles", "roles.list", AUDITOR, "GET /role-bindings", "ckp role list", "GET /people"),
    Feature("List the roles in a domain", "roles.list", AUDITOR, "GET /domains/{domain}/role-bindings", "ckp role list", "GET /domains/{domain}"),
    Feature("List the roles in a project", "roles.list", AUDITOR, "GET …/role-bindings", "ckp role list", "GET …/access"),
    Feature("Give a role", "roles.grant", OF_PROJECT, "POST /role-bindings", "ckp role grant", "POST /people/roles"),
    Feature("Give a role in a domain", "roles.grant", OF_PROJECT, "POST /domains/{domain}/role-bindings", "ckp role grant", "POST /domains/{domain}/roles"),
    Feature("Give a role in a project", "roles.grant", OF_PROJECT, "POST …/role-bindings", "ckp role grant", "POST …/access/roles"),
    Feature("Take a role", "roles.revoke", OF_PROJECT, "DELETE /role-bindings/{binding}", "ckp role revoke", "POST /people/roles/{binding}/delete"),
    Feature(
        "Take a role in a domain",
        "roles.revoke",
        OF_PROJECT,
        "DELETE /domains/{domain}/role-bindings/{binding}",
        "ckp role revoke",
        "POST /domains/{domain}/roles/{binding}/delete",
    ),
    Feature(
        "Take a role in a project", "roles.revoke", OF_PROJECT, "DELETE …/role-bindings/{binding}", "ckp role revoke", "POST …/access/roles/{binding}/delete"
    ),
    Feature("List service accounts", "accounts.list", AUDITOR, "GET …/service-accounts", "ckp serviceaccount list", "GET …/access"),
    Feature(
        "Create a service account", "accounts.create", OF_PROJECT, "POST …/service-accounts", "ckp serviceaccount create", "POST …/access/service-accounts"
    ),
    Feature(
        "Delete a service account",
        "accounts.delete",
        OF_PROJECT,
        "DELETE …/service-accounts/{name}",
        "ckp serviceaccount delete",
        "POST …/access/service-accounts/{name}/delete",
    ),
    Feature("List a service account's tokens", "accounts.tokens", AUDITOR, "GET …/service-accounts/{name}/tokens", "ckp serviceaccount tokens", "GET …/access"),
    Feature(
        "Make a token",
        "accounts.issue",
        OF_PROJECT,
        "POST …/service-accounts/{name}/tokens",
        "ckp serviceaccount token",
        "POST …/access/service-accounts/{name}/tokens",
    ),
    Feature(
        "Revoke a token",
        "accounts.revoke",
        OF_PROJECT,
        "DELETE …/service-accounts/{name}/tokens/{token_id}",
        "ckp serviceaccount revoke",
        "POST …/access/service-accounts/{name}/tokens/{token_id}/delete",
    ),
    Feature("List releases", "list_releases", SIGNED_IN, "GET /releases", "", "GET /releases"),
    Feature("Show a release", "get_release", SIGNED_IN, "GET /releases/{name}", "", ""),
    Feature("List versions of the agent", "releases.agents", SIGNED_IN, "GET /agents", "", "GET /releases"),
    Feature("Show the audit log", "audit.list", AUDITOR, "GET /audit", "ckp audit list", "GET /audit"),
    Feature("Show the audit log of a domain", "audit.list", AUDITOR, "GET /domains/{domain}/audit", "ckp audit list", ""),
    Feature("Show the audit log of a project", "audit.list", AUDITOR, "GET …/audit", "ckp audit list", "GET …/audit"),
    Feature("Show the pre-shared key", "keys.get", OF_PROJECT, "GET …/host-psk", "ckp host psk", ""),
    Feature("Make a new pre-shared key", "keys.reset", OF_PROJECT, "POST …/host-psk/reset", "ckp host psk", ""),
    Feature("Show the line by which machines enrol", "joining.get", VIEWER, "GET …/host-join", "ckp host join-command", "GET …/hosts"),
    Feature("List host requests", "requests.list", VIEWER, "GET …/host-requests", "ckp host requests", "GET …/requests"),
    Feature("Show a host request", "requests.get", VIEWER, "GET …/host-requests/{request_id}", "", ""),
    Feature(
        "Approve a host request", "requests.approve", OF_PROJECT, "POST …/host-requests/{request_id}/approve", "ckp host approve", "POST …/requests/decide"
    ),
    Feature("Reject a host request", "requests.reject", OF_PROJECT, "POST …/host-requests/{request_id}/reject", "ckp host reject", "POST …/requests/decide"),
    Feature("Decide about many host requests", "requests.bulk", OF_PROJECT, "POST …/host-requests/bulk", "ckp host approve", "POST …/requests/decide"),
    Feature("List approval rules", "approval.list", VIEWER, "GET …/host-approval-rules", "ckp host rule list", ""),
    Feature("Create an approval rule", "approval.create", OF_PROJECT, "POST …/host-approval-rules", "ckp host rule create", ""),
    Feature("Show an approval rule", "approval.get", VIEWER, "GET …/host-approval-rules/{name}", "", ""),
    Feature("Delete an approval rule", "approval.delete", OF_PROJECT, "DELETE …/host-approval-rules/{name}", "ckp host rule delete", ""),
    Feature("List hosts", "hosts.list", VIEWER, "GET …/hosts", "ckp host list", "GET …/hosts"),
    Feature("Show a host", "hosts.get", VIEWER, "GET …/hosts/{name}", "ckp host describe", "GET …/hosts/{name}"),
    Feature("List a host's events", "hosts.events", VIEWER, "GET …/hosts/{name}/events", "ckp host describe", "GET …/hosts/{name}"),
    Feature("Follow hosts live", "changes.follow", VIEWER, "", "", "GET …/hosts/-/stream"),
    Feature("Follow a host live", "changes.follow", VIEWER, "", "", "GET …/hosts/{name}/stream"),
    Feature("Follow host requests live", "changes.follow", VIEWER, "", "", "GET …/requests/-/stream"),
    Feature("Cordon, drain, label or taint a host", "operations.change", OF_PROJECT, "PATCH …/hosts/{name}", "ckp host cordon", ""),
    Feature("Revoke a host's certificate", "operations.revoke", OF_PROJECT, "POST …/hosts/{name}/revoke", "ckp host revoke", ""),
    Feature("Upgrade a host's agent", "operations.upgrade_agent", OF_PROJECT, "PUT …/hosts/{name}/agent", "ckp host upgrade-agent", ""),
    Feature("Take a host out of its cluster", "operations.leave", OF_PROJECT, "POST …/hosts/{name}/leave", "ckp host remove", ""),
    Feature("Remove a host", "hosts.delete", OF_PROJECT, "DELETE …/hosts/{name}", "ckp host delete", ""),
    Feature("List host groups", "groups.list", VIEWER, "GET …/host-groups", "ckp hostgroup list", "GET …/host-groups"),
    Feature("Create a host group", "groups.create", OF_PROJECT, "POST …/host-groups", "ckp hostgroup create", "POST …/host-groups"),
    Feature("Show a host group", "groups.get", VIEWER, "GET …/host-groups/{name}", "", "GET …/host-groups"),
    Feature("Change a host group's description", "groups.update", OF_PROJECT, "PATCH …/host-groups/{name}", "", ""),
    Feature("Delete a host group", "groups.delete", OF_PROJECT, "DELETE …/host-groups/{name}", "ckp hostgroup delete", ""),
    Feature("Add hosts to a group", "groups.add", OF_PROJECT, "POST …/host-groups/{name}/members", "ckp hostgroup add", "POST …/host-groups/{name}/members"),
    Feature(
        "Add one host to a group", "groups.add", OF_PROJECT, "PUT …/host-groups/{name}/members/{host}", "ckp hostgroup add", "POST …/host-groups/{name}/members"
    ),
    Feature(
        "Remove hosts from a group",
        "groups.remove",
        OF_PROJECT,
        "POST …/host-groups/{name}/members/remove",
        "ckp hostgroup remove",
        "POST …/host-groups/{name}/members",
    ),
    Feature(
        "Remove one host from a group",
        "groups.remove",
        OF_PROJECT,
        "DELETE …/host-groups/{name}/members/{host}",
        "ckp hostgroup remove",
        "POST …/host-groups/{name}/members",
    ),
    Feature("List clusters", "clusters.list", VIEWER, "GET …/clusters", "ckp cluster list", "GET …/clusters"),
    Feature("Show a cluster, its steps and machines", "clusters.get", VIEWER, "GET …/clusters/{name}", "ckp cluster describe", "GET …/clusters/{name}"),
    Feature("Follow clusters live", "changes.follow", VIEWER, "", "", "GET …/clusters/-/stream"),
    Feature("Follow a cluster live", "changes.follow", VIEWER, "", "", "GET …/clusters/{name}/stream"),
    Feature("Follow the checks before an upgrade live", "changes.follow", VIEWER, "", "", "GET …/clusters/{name}/upgrade/stream"),
    Feature("Try a request for a cluster (dry run)", "clusters.check", USER, "POST …/clusters/check", "", "POST …/new-cluster"),
    Feature("Create a cluster", "clusters.create", USER, "POST …/clusters", "ckp cluster create", "POST …/new-cluster"),
    Feature("Scale a cluster", "clusters.scale", USER, "PATCH …/clusters/{name}", "ckp cluster scale", "POST …/clusters/{name}/scale"),
    Feature("List a cluster's backups", "backups.list", VIEWER, "GET …/clusters/{name}/backups", "ckp cluster backups", "GET …/clusters/{name}"),
    Feature("Back a cluster up now", "backups.request", USER, "POST …/clusters/{name}/backups", "ckp cluster backup", ""),
    Feature("Restore a cluster in place", "backups.restore", OF_PROJECT, "POST …/clusters/{name}/restore", "ckp cluster restore", ""),
    Feature("Show a cluster's upgrade", "upgrades.get", VIEWER, "GET …/clusters/{name}/upgrade", "ckp cluster upgrade", "GET …/clusters/{name}"),
    *(
        Feature(
            title, f"upgrades.{verb}", OF_PROJECT, f"POST …/clusters/{{name}}/upgrade{tail}", "ckp cluster upgrade", f"POST …/clusters/{{name}}/upgrade{tail}"
        )
        for title, verb, tail in (
            ("Upgrade a cluster, or plan it (dry run)", "start", ""),
            ("Pause a cluster's upgrade", "pause", "/pause"),
            ("Resume a cluster's upgrade", "resume", "/resume"),
            ("Abort a cluster's upgrade", "abort", "/abort"),
            ("Commit what soaks of a cluster's upgrade", "commit", "/commit"),
            ("Roll back what soaks of a cluster's upgrade", "rollback", "/rollback"),
        )
    ),
    Feature("Change a cluster's timeouts, names and backups", "clusters.change", USER, "PATCH …/clusters/{name}", "ckp cluster set", ""),
    Feature(
        "Let workers be replaced again", "clusters.resume_replacement", USER, "POST …/clusters/{name}/resume-replacement", "ckp cluster resume-replacement", ""
    ),
    Feature("Get a kubeconfig", "clusters.kubeconfig", USER, "GET …/clusters/{name}/kubeconfig", "ckp cluster kubeconfig", "POST …/clusters/{name}/kubeconfig"),
    Feature("Delete a cluster", "clusters.delete", USER, "DELETE …/clusters/{name}", "ckp cluster delete", "POST …/clusters/{name}/delete"),
)

LEAST: dict[str, Least] = {feature.service: feature.least for feature in FEATURES}
"""By service. Features that have the same one ask for the same role; a test holds that."""

_SUBJECTS = {
    "accounts": "service-account",
    "approval": "approval-rule",
    "backups": "cluster-backup",
    "groups": "host-group",
    "keys": "host-psk",
    "operations": "host",
    "requests": "host-request",
    "roles": "role-binding",
    "upgrades": "cluster-upgrade",
}


def action_of(service: str) -> str:
    """How the audit log calls it: subject and verb, such as `cluster.create`."""
    subject, _, verb = service.rpartition(".")
    return f"{_SUBJECTS.get(subject, subject.removesuffix('s'))}.{verb.replace('_', '-')}"
