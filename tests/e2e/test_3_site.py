"""A site that its file describes, on a server that is reached by SSH only: applied, applied again, looked at, and removed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress

import pytest

from ckp.kits.processes import ProcessFailed, run
from ckp.lab.lab import LabHost
from tests.support.site_place import NAME, REGISTRY, SERVER, Place, prepared, write_site

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.root("boots whole hosts")]

SNAPSHOT = """
import hashlib, os, stat
for top in ("/etc", "/usr", "/opt", "/root", "/home", "/var/lib", "/var/spool"):
    for folder, names, files in os.walk(top):
        for name in sorted(names + files):
            path = os.path.join(folder, name)
            seen = os.lstat(path)
            if not stat.S_ISSOCK(seen.st_mode):
                content = hashlib.sha256(open(path, "rb").read()).hexdigest() if stat.S_ISREG(seen.st_mode) else ""
                print(path, oct(seen.st_mode), seen.st_uid, seen.st_gid, content)
"""
MAY_DIFFER = ("/var/lib/dpkg/status-old", "/etc/.pwd.lock", "/etc/passwd-", "/etc/group-", "/etc/shadow-", "/etc/gshadow-", "/etc/subuid-", "/etc/subgid-")
"""What programs of the system keep for themselves, such as the copies that useradd makes."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with prepared(tmp_path_factory.mktemp("site")) as made:
        yield made


def snapshot(host: LabHost) -> dict[str, str]:
    listing = host.run(["python3", "-c", SNAPSHOT], timeout=120).stdout
    return {line.split(" ", 1)[0]: line for line in listing.splitlines() if not line.startswith(MAY_DIFFER)}


@pytest.fixture(scope="module")
def before(place: Place) -> dict[str, str]:
    return snapshot(place.host)


def test_a_site_is_applied_by_ssh_to_a_server(place: Place, before: dict[str, str]) -> None:
    write_site(place)
    assert before
    planned = place.ckp("site", "plan", "-f", str(place.file), "--profile", "lab", "-o", "json", check=False)
    assert planned.code == 1 and {item["action"] for item in json.loads(planned.stdout)["items"]} == {"create"}
    assert snapshot(place.host) == before, "planning changes nothing"
    done = place.ckp("site", "apply", "-f", str(place.file), "--profile", "lab", timeout=1500)
    print(done.stdout)
    assert f"The site {NAME} is up." in done.stdout
    parts = json.loads(place.ckp("site", "status", "-f", str(place.file), "-o", "json").stdout)
    assert {part["state"] for part in parts} == {"ok"} and len(parts) > 8
    groups = json.loads(place.ckp("hostgroup", "list", "-o", "json").stdout)["items"]
    assert [group["name"] for group in groups] == ["default"]


def test_applying_again_changes_nothing(place: Place) -> None:
    nodes = place.host.run(["systemctl", "show", "-p", "ActiveEnterTimestamp", "kubelet", "ckp-registry@pull", "ckp-registry@push"], timeout=30).stdout
    done = place.ckp("site", "apply", "-f", str(place.file), "--profile", "lab", timeout=600)
    print(done.stdout)
    assert "is a cluster already" in done.stdout and "ckp: unchanged" in done.stdout
    again = place.host.run(["systemctl", "show", "-p", "ActiveEnterTimestamp", "kubelet", "ckp-registry@pull", "ckp-registry@push"], timeout=30).stdout
    assert again == nodes, "nothing was started again"


def test_its_only_release_is_listed_and_not_removed(place: Place) -> None:
    listed = json.loads(place.ckp("site", "release", "list", "-f", str(place.file), "-o", "json").stdout)["items"]
    assert [(item["state"], item["management"], item["clusters"]) for item in listed] == [("offered", True, [])]
    text = place.file.read_text()
    refused = place.ckp("site", "release", "remove", listed[0]["name"], "-f", str(place.file), check=False)
    assert refused.code == 1 and f"the management cluster runs {listed[0]['name']}" in refused.stderr and "nothing was changed" in refused.stderr
    assert place.file.read_text() == text


def test_its_registry_lets_everybody_read_and_nobody_write_without_the_password(place: Place) -> None:
    ca = str(place.state / "registry" / "ca.pem")
    asked = ["curl", "-sS", "--cacert", ca, "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "20"]
    read = run([*asked, f"https://{SERVER.address}:5000/v2/ckp/etcd/tags/list"], timeout=40).stdout
    pushes = {port: run([*asked, "-X", "POST", f"https://{SERVER.address}:{port}/v2/ckp/etcd/blobs/uploads/"], timeout=40).stdout for port in (5000, 5001)}
    assert (read, pushes) == ("200", {5000: "405", 5001: "401"})
    for secret in ("ca.key", "credentials.json", "htpasswd", "tls.pem"):
        assert (place.state / "registry" / secret).stat().st_mode & 0o777 == 0o600


def test_a_collection_in_its_registry_leaves_what_is_named_and_the_services_running(place: Place) -> None:
    """The transient unit of a real systemd: pulls go on, and pushes are taken again, also when the command that waits for it is killed."""
    ca = str(place.state / "registry" / "ca.pem")
    pull = ["systemctl", "show", "-p", "ActiveEnterTimestamp", "ckp-registry@pull"]
    read = ["curl", "-sS", "--cacert", ca, "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "20", f"https://{SERVER.address}:5000/v2/ckp/etcd/tags/list"]
    before = place.host.run(pull, timeout=30).stdout
    done = place.ckp("site", "registry", "gc", "-f", str(place.file), timeout=600)
    assert "MB freed on 1 host." in done.stdout
    for seconds in (2.0, 3.0, 4.0):
        with suppress(ProcessFailed):  # killed with all of its processes, wherever it is
            place.ckp("site", "registry", "gc", "-f", str(place.file), timeout=seconds)
    assert "MB freed on 1 host." in place.ckp("site", "registry", "gc", "-f", str(place.file), timeout=600).stdout
    assert (place.host.run(pull, timeout=30).stdout, run(read, timeout=40).stdout) == (before, "200")
    states = place.host.run(["systemctl", "is-active", "ckp-registry@pull", "ckp-registry@push"], timeout=30, check=False).stdout.split()
    assert states == ["active", "active"]
    units = place.host.run(["systemctl", "list-units", "--all", "--plain", "--no-legend", "ckp-registry-gc*"], timeout=30).stdout
    assert units.strip() == ""


def test_nothing_is_left_to_plan_and_what_would_be_done_by_half_is_refused(place: Place) -> None:
    done = place.ckp("site", "plan", "-f", str(place.file), "--profile", "lab", "-o", "json", check=False)
    assert (done.code, [item for item in json.loads(done.stdout)["items"] if item["action"] != "none"]) == (0, [])
    assert place.ckp("site", "check", "-f", str(place.file), check=False).code == 0, "what is the site's own is no finding"
    other = place.folder / "moved.yaml"
    other.write_text(place.file.read_text().replace(REGISTRY, f"other.{NAME}.internal"))
    planned = place.ckp("site", "plan", "-f", str(other), "--profile", "lab", check=False)
    applied = place.ckp("site", "apply", "-f", str(other), "--profile", "lab", check=False)
    assert planned.code == applied.code == 2 and "all that runs in it is pulled from there" in planned.stdout and "nothing was changed" in applied.stderr
    assert "all that runs in it is pulled from there" in applied.stderr


def test_a_site_that_this_version_cannot_apply_is_refused(place: Place) -> None:
    other = place.folder / "other.yaml"
    other.write_text(f"{place.file.read_text()}\nbackup:\n  to: {{path: /mnt}}\n  encryptFor: [a.pgp]\n")
    done = place.ckp("site", "apply", "-f", str(other), check=False)
    assert done.code == 2 and "backups are not made by themselves yet" in done.stderr and "nothing was changed" in done.stderr


def test_removing_a_site_leaves_its_server_as_it_was(place: Place, before: dict[str, str]) -> None:
    refused = place.ckp("site", "remove", "-f", str(place.file), check=False)
    assert refused.code == 2 and f"--confirm {NAME}" in refused.stderr
    done = place.ckp("site", "remove", "-f", str(place.file), "--confirm", NAME, timeout=900)
    print(done.stdout)
    after = snapshot(place.host)
    differ = sorted(path for path in {*before, *after} if before.get(path) != after.get(path))
    assert differ == [], [(before.get(path), after.get(path)) for path in differ[:40]]
    units = place.host.run(
        ["systemctl", "list-units", "--all", "--plain", "--no-legend", "ckp-agent*", "ckp-registry*", "kubelet*", "containerd*"], timeout=30
    ).stdout
    assert units.strip() == ""
    assert not (place.state / "registry").exists()
    place.ckp("site", "remove", "-f", str(place.file), "--confirm", NAME, timeout=300)
