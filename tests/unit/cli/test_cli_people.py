"""`ckp login|logout|whoami|user|role|domain|project|serviceaccount|audit` through click's runner against a whole Compass in memory."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from ckp.cli.hosts.groups import hostgroup
from ckp.cli.people.audit import audit
from ckp.cli.people.login import login, logout, whoami
from ckp.cli.people.role import role
from ckp.cli.people.serviceaccount import serviceaccount
from ckp.cli.people.tenancy import domain, project
from ckp.cli.people.user import user
from ckp.clients.compass import Unauthorized, config_path, read_config
from ckp.kits.errors import CkpError, InvalidInput, NotFound
from tests.unit.cli.test_cli_session import Desk, desk
from tests.worlds.compass import ADMIN
from tests.worlds.people import PASSWORD

OTHER = "other words of the same person"

__all__ = ["desk"]


@click.group()
def root() -> None:
    """As the real root: only a parent."""


for command in (audit, login, logout, whoami, role, serviceaccount, domain, project, user, hostgroup):
    root.add_command(command)


def ckp(desk: Desk, *arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(root, list(arguments), obj=desk.bridge, input=stdin)


def good(desk: Desk, *arguments: str, stdin: str = "") -> str:
    result = ckp(desk, *arguments, stdin=stdin)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def bad(desk: Desk, *arguments: str, stdin: str = "") -> CkpError:
    result = ckp(desk, *arguments, stdin=stdin)
    assert isinstance(result.exception, CkpError), (result.output, result.exception)
    return result.exception


def test_the_first_administrator_is_logged_in_and_makes_a_domain_with_people(desk: Desk) -> None:
    assert "user/root created" in good(desk, "user", "create", "--first", "root", "--password-stdin", stdin=PASSWORD + "\n")
    assert read_config().token.startswith("ckpse_") and config_path().stat().st_mode & 0o077 == 0
    assert "platform-administrator in the platform" in good(desk, "whoami")
    good(desk, "domain", "create", "acme", "--display-name", "Acme Ltd")
    good(desk, "project", "create", "web", "--domain", "acme")
    good(desk, "user", "create", "pat@acme", "--password-stdin", stdin=PASSWORD + "\n")
    good(desk, "role", "grant", "project-administrator", "pat@acme", "--in", "acme/web")
    assert re.search(r"acme +Acme Ltd +1", good(desk, "domain", "list"))
    assert [line.split()[:2] for line in good(desk, "project", "list").splitlines()[1:]] == [["acme", "web"], ["default", "default"]]
    listed = good(desk, "role", "list", "--in", "acme")
    assert "pat@acme" in listed and "acme/web" in listed
    good(desk, "login", "pat@acme", "--password-stdin", stdin=PASSWORD + "\n")
    assert "No host groups found" in ckp(desk, "hostgroup", "list", "--domain", "acme", "-p", "web").stderr
    assert isinstance(bad(desk, "hostgroup", "list"), NotFound)
    assert "may not do this" in str(bad(desk, "domain", "create", "mine"))
    assert "project-administrator" in good(desk, "role", "list", "--in", "acme/web")


def test_passwords_are_changed_and_sessions_end(desk: Desk) -> None:
    good(desk, "user", "create", "--first", "root", "--password-stdin", stdin=PASSWORD + "\n")
    good(desk, "user", "passwd", "--password-stdin", stdin=f"{PASSWORD}\n{OTHER}\n")
    assert "root" in good(desk, "whoami")
    good(desk, "user", "create", "pat", "--password-stdin", stdin=PASSWORD + "\n")
    good(desk, "user", "passwd", "pat", "--password-stdin", stdin=OTHER + "\n")
    good(desk, "user", "disable", "pat")
    assert "Disabled" in good(desk, "user", "list")
    assert isinstance(bad(desk, "login", "pat", "--password-stdin", stdin=OTHER + "\n"), Unauthorized)
    good(desk, "user", "enable", "pat")
    good(desk, "user", "delete", "pat")
    assert isinstance(bad(desk, "user", "get", "pat"), NotFound)
    good(desk, "logout")
    assert read_config().token == ""
    refused = bad(desk, "whoami")
    assert isinstance(refused, Unauthorized) and "ckp login" in refused.resolution


def test_a_service_account_s_token_is_printed_alone_and_can_be_used_and_revoked(desk: Desk) -> None:
    good(desk, "serviceaccount", "create", "ci")
    good(desk, "role", "grant", "user", "default/default/ci")
    made = ckp(desk, "serviceaccount", "token", "ci", "--expires", "24h")
    token = made.stdout.strip()
    assert token.startswith("ckpsa_") and len(made.stdout.splitlines()) == 1 and "shown only now" in made.stderr
    [row] = json.loads(good(desk, "serviceaccount", "tokens", "ci", "-o", "json"))["items"]
    assert row["token"] is None
    assert "default/default/ci" in ckp(desk, "login", "--token-stdin", stdin=token + "\n").stderr
    assert "user in default/default" in good(desk, "whoami")
    assert isinstance(bad(desk, "login", "--token-stdin", stdin="ckpsa_nonsense\n"), Unauthorized)
    assert read_config().token == token, "one that is refused takes no place"
    good(desk, "login", "--token-stdin", stdin=ADMIN + "\n")
    good(desk, "serviceaccount", "revoke", "ci", row["id"])
    assert isinstance(bad(desk, "login", "--token-stdin", stdin=token + "\n"), Unauthorized)
    good(desk, "serviceaccount", "delete", "ci")


def test_the_audit_log_is_listed_page_by_page(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckp.cli.people.audit.AT_ONCE", 3)
    for number in range(8):
        good(desk, "hostgroup", "create", f"g{number}")
    found = json.loads(good(desk, "audit", "list", "--limit", "7", "-o", "json"))["items"]
    assert [entry["target"] for entry in found] == [f"g{number}" for number in range(7, 0, -1)]
    head, first, *_ = good(desk, "audit", "list", "--in", "platform").splitlines()
    assert head.split() == ["AT", "WHO", "ACTION", "ON", "IN", "DOOR", "FROM", "RESULT"]
    assert first.split()[1:] == ["admin", "host-group.create", "g7", "default/default", "cli", "127.0.0.1", "Done"]


def test_what_is_missing_is_said_before_anything_is_asked(desk: Desk, tmp_path: Path) -> None:
    assert isinstance(bad(desk, "login"), InvalidInput)
    assert isinstance(bad(desk, "user", "create", "pat", "--password-stdin"), InvalidInput)
    assert isinstance(bad(desk, "user", "create", "--first", "pat@acme", "--password-stdin", stdin=PASSWORD), InvalidInput)
    assert "15 are the least" in str(bad(desk, "user", "create", "pat", "--password-stdin", stdin="short\n"))
