"""Compass' database in a site's file: read, checked, planned, applied; and that its password is nowhere but in the Secret."""

from __future__ import annotations

import base64
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from ckp.distribution.management import Management, overlaid
from ckp.kits.errors import InvalidInput
from ckp.site import database
from ckp.site.check import of_spec, remote
from ckp.site.spec.read import parse_site
from tests.worlds.applied_site import TEXT, AppliedSite
from tests.worlds.tls import make_authority

PASSWORD = "hunter2-of-the-site"
URL = f"postgresql://ckp:{PASSWORD}@db.example.test:5433/compass"
PLACE = "db.example.test:5433/compass"
CHOSEN = ("releases: [v1.35.1]", "releases: [v1.35.1]\ndatabase: {postgresql: {urlFile: database-url}}")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AppliedSite:
    made = AppliedSite(tmp_path, monkeypatch)
    url_file(made.root, URL)
    return made


def url_file(folder: Path, text: str, mode: int = 0o600) -> Path:
    file = folder / "database-url"
    file.write_text(text)
    file.chmod(mode)
    return file


def compass(site: AppliedSite) -> Any:
    return site.host.api.objects["Deployment", "ckp-system", "ckp-compass"]


def refused(site: AppliedSite) -> dict[str, str]:
    before = site.everything()
    code, rows = site.plan()
    assert code == 2 and rows["database"]["action"] == "refused"
    with pytest.raises(InvalidInput, match="nothing was changed") as caught:
        site.run("apply")
    assert rows["database"]["detail"] in caught.value.details and site.everything() == before
    return rows["database"]


def test_a_site_with_postgresql_gets_two_replicas_and_the_url_as_a_secret_and_nowhere_else(site: AppliedSite) -> None:
    site.write(CHOSEN)
    code, rows = site.plan()
    assert code == 1 and rows["database"]["detail"] == f"PostgreSQL {PLACE}" and PASSWORD not in json.dumps(rows)
    output = site.run("apply").output
    secret = site.host.api.objects["Secret", "ckp-system", "ckp-compass-database"]
    assert {name: base64.b64decode(value).decode() for name, value in secret["data"].items()} == {"url": URL}
    spec = compass(site)["spec"]
    assert spec["replicas"] == 2 and spec["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert ("PodDisruptionBudget", "ckp-system", "ckp-compass") in site.host.api.objects
    assert ("PersistentVolumeClaim", "ckp-system", "ckp-compass") not in site.host.api.objects
    everything = {path: text for path, text in site.everything().items() if "ckp-compass-database" not in path}
    encoded = base64.b64encode(URL.encode()).decode()
    assert PASSWORD not in output and not [path for path, text in everything.items() if PASSWORD in text or encoded in text]
    own = [path for path in site.root.rglob("*") if path.is_file() and path.name != "database-url"]
    assert not [path for path in own if PASSWORD.encode() in path.read_bytes() or encoded.encode() in path.read_bytes()]
    assert site.plan()[0] == 0
    site.run("apply")
    assert site.plan()[0] == 0


def test_a_new_password_is_brought_and_restarts_nothing(site: AppliedSite) -> None:
    site.write(CHOSEN)
    site.run("apply")
    before = json.dumps(compass(site), sort_keys=True)
    url_file(site.root, URL.replace(PASSWORD, "another"))
    site.run("apply")
    secret = site.host.api.objects["Secret", "ckp-system", "ckp-compass-database"]
    assert "another" in base64.b64decode(secret["data"]["url"]).decode() and json.dumps(compass(site), sort_keys=True) == before


def test_a_site_keeps_the_kind_of_database_that_it_was_made_with(site: AppliedSite) -> None:
    site.run("apply")
    assert compass(site)["spec"]["replicas"] == 1 and compass(site)["spec"]["strategy"] == {"type": "Recreate"}
    site.write(CHOSEN)
    row = refused(site)
    assert f"in SQLite, and applying moves none to PostgreSQL {PLACE}" in row["detail"] and "`sqlite: {}` back" in row["remedy"]


def test_postgresql_is_not_left_for_sqlite_either(site: AppliedSite) -> None:
    site.write(CHOSEN)
    site.run("apply")
    site.write()
    assert "`postgresql` with its URL back" in refused(site)["remedy"]


def test_another_server_is_refused_while_compass_runs_and_taken_once_it_is_scaled_down(site: AppliedSite) -> None:
    site.write(CHOSEN)
    site.run("apply")
    url_file(site.root, URL.replace("db.example", "db2.example"))
    row = refused(site)
    assert "at the same time" in row["detail"] and "--replicas=0" in row["remedy"]
    compass(site)["spec"]["replicas"] = 0
    code, rows = site.plan()
    assert code == 1 and rows["database"]["action"] == "change" and rows["ckp"]["action"] == "change"
    site.run("apply")
    assert compass(site)["spec"]["replicas"] == 2 and site.plan()[0] == 0


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        (URL, 0o644, "others than its owner may read or change it"),
        (f"postgresql://ckp:{PASSWORD}@/compass", 0o600, "its host is missing"),
        (f"{URL}?sslmode=verify-full", 0o600, "there is no CA to verify the server with"),
        ("", 0o600, "it is empty"),
    ],
)
def test_a_file_that_is_not_as_it_has_to_be_is_refused_with_its_line_before_anything_changes(site: AppliedSite, text: str, mode: int, said: str) -> None:
    site.write(CHOSEN)
    url_file(site.root, text, mode)
    before = site.everything()
    for command in ("plan", "apply"):
        with pytest.raises(InvalidInput, match=said) as caught:
            site.run(command)
        assert "site.yaml:16: database.postgresql.urlFile" in caught.value.brief and PASSWORD not in caught.value.render()
    assert site.everything() == before
    output = site.run("check").output
    assert said.split(" ", maxsplit=1)[0] in output and "database" in output and PASSWORD not in output


def test_a_missing_file_and_a_ca_that_is_none_are_named(tmp_path: Path) -> None:
    spec = parse_site(TEXT.replace(*CHOSEN).encode(), tmp_path / "site.yaml")
    with pytest.raises(InvalidInput, match="can't be read: No such file"):
        database.of_spec(spec)
    url_file(tmp_path, URL)
    (tmp_path / "ca.pem").write_text("no certificate")
    spec = parse_site(TEXT.replace(CHOSEN[0], CHOSEN[1].replace("database-url", "database-url, caFile: ca.pem")).encode(), tmp_path / "site.yaml")
    with pytest.raises(InvalidInput, match="holds no certificate"):
        database.of_spec(spec)
    (tmp_path / "ca.pem").write_text(make_authority("root").pem)
    found = database.of_spec(spec)
    assert found is not None and found.place == PLACE and PASSWORD not in repr(found)
    assert set(json.loads(database.secret(found))["data"]) == {"url", "ca.crt"}


def test_the_database_is_looked_for_from_the_management_host(tmp_path: Path) -> None:
    url_file(tmp_path, URL)
    spec = parse_site(TEXT.replace(*CHOSEN).encode(), tmp_path / "site.yaml")
    assert of_spec.describe(spec, []).database == ("db.example.test", 5433) and of_spec.files(spec) == []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        assert remote.connect("127.0.0.1", port) == ""
    assert "refused" in remote.connect("127.0.0.1", port)


# The manifests.


def objects(kind: str) -> dict[tuple[str, str], Any]:
    settings = dict.fromkeys(("COMPASS_ADDRESS", "HUB_ADDRESS", "LB_FIRST", "LB_LAST", "RESERVED_CIDRS", "RELEASES_DIGEST", "COMPASS_NAMES", "HUB_NAMES"), "")
    images = {f"ckp-{name}": "v1@sha256:0" for name in ("platform", "addons", "packages", "backup")}
    found = Management({}, "r.test/ckp", images).ckp({**settings, "DATABASE": PLACE}, kind)
    return {(each["kind"], each["metadata"]["name"]): each for each in found}


def test_compass_runs_once_on_sqlite_and_its_pods_follow_each_other() -> None:
    found = objects("sqlite")
    spec = found["Deployment", "ckp-compass"]["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    assert ("PersistentVolumeClaim", "ckp-compass") in found and ("PodDisruptionBudget", "ckp-compass") not in found
    assert {volume["name"] for volume in spec["template"]["spec"]["volumes"]} == {"tls", "token", "releases", "tmp", "data"}
    assert "ckp.coredge.io/database" not in spec["template"]["metadata"]["annotations"]


def test_on_postgresql_there_are_two_spread_over_hosts_without_a_volume_of_their_own() -> None:
    found = objects("postgresql")
    spec = found["Deployment", "ckp-compass"]["spec"]
    pod = spec["template"]["spec"]
    assert spec["replicas"] == 2 and spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    assert ("PersistentVolumeClaim", "ckp-compass") not in found and found["PodDisruptionBudget", "ckp-compass"]["spec"]["maxUnavailable"] == 1
    assert pod["topologySpreadConstraints"][0]["topologyKey"] == "kubernetes.io/hostname"
    [container] = pod["containers"]
    environment = {each["name"]: each["value"] for each in container["env"]}
    assert environment["COMPASS_DATABASE_URL_FILE"] == "/etc/compass/database/url" and "COMPASS_TLS_CERT" in environment
    assert container["image"].startswith("r.test/ckp/ckp-platform:") and "@" not in json.dumps(spec["template"]["metadata"])
    assert {volume["name"] for volume in pod["volumes"]} == {"tls", "token", "releases", "tmp", "database"}
    assert {mount["name"] for mount in container["volumeMounts"]} == {"tls", "token", "releases", "tmp", "database"}
    assert set(spec["template"]["metadata"]["annotations"]) == {"ckp.coredge.io/releases", "ckp.coredge.io/database"}
    drained, grace = float(environment["COMPASS_DRAIN_SECONDS"]), pod["terminationGracePeriodSeconds"]
    assert drained + 20 + 10 < grace, "drain, requests under way, and the rest"


def test_what_is_laid_over_keeps_what_it_does_not_name() -> None:
    under = {"a": 1, "list": [{"name": "x", "v": 1, "w": 1}, {"name": "y"}], "plain": [1], "map": {"b": 1}}
    over = {"list": [{"name": "z"}, {"name": "x", "v": 2}], "plain": [2], "map": {"c": 2}, "d": 3}
    assert overlaid(under, over) == {
        "a": 1,
        "list": [{"name": "x", "v": 2, "w": 1}, {"name": "y"}, {"name": "z"}],
        "plain": [1, 2],
        "map": {"b": 1, "c": 2},
        "d": 3,
    }
