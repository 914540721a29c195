"""A site without a network: the release from one signed file, in a network namespace that has no way out, with empty caches and no signing key.

That the file brings what was built is always tested; `make up` from it in `make test-all`. That comes after the lab of the other tests is down
(test_4_deletion), because there is one lab on a machine.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckp.distribution.bundles import SIGNED_IMAGES
from ckp.distribution.carry.airgap import ImportedRelease
from ckp.distribution.registries.server import RegistryServer
from ckp.kits import paths
from ckp.kits.files import exclusive
from ckp.kits.processes import run
from ckp.lab.lab import Lab
from tests.e2e.conftest import STAMP, WORKERS, World, ckp, stream
from tests.support.checkout import REPO
from tests.support.control_plane import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.root("makes a network namespace")]

NAMESPACE = "ckp-airgap"
EXPORT_SECONDS = 900.0
UP_SECONDS = 1800.0


@pytest.fixture(scope="module")
def built(world: World) -> dict[str, str]:
    """What the main job has pushed: the digest of each image, and of the bundle for its hosts, as the registry gives them.

    The images of the agent's packages are others: the main job has packed debs only, and a file for a site holds debs and rpms.
    """
    found = {repository: digest for repository, digest in world.pushed.items() if repository not in SIGNED_IMAGES}
    assert found and all(found.values()), found
    return found


@pytest.fixture(scope="module")
def archive(built: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The release in a file, as the machine with a network writes it."""
    folder = tmp_path_factory.mktemp("archive")
    file = folder / "v1.35.1.ckp"
    done = ckp("dist", "export", "v1.35.1", str(file), "--profile", "lab", timeout=EXPORT_SECONDS)
    assert "signed by" in done.stdout
    yield file
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def island(tmp_path_factory: pytest.TempPathFactory, archive: Path) -> Iterator[dict[str, str]]:
    """A namespace with a loopback and nothing else, and the environment of a user who has only the maker's public keys."""
    home = tmp_path_factory.mktemp("island")
    run(["ip", "netns", "del", NAMESPACE], timeout=30, check=False)
    run(["ip", "netns", "add", NAMESPACE], timeout=30)
    run(["nsenter", f"--net=/run/netns/{NAMESPACE}", "ip", "link", "set", "lo", "up"], timeout=30)
    ckp("keys", "export", "--binary", str(home / "maker.gpg"))
    checkout = home / "checkout"
    shutil.copytree(REPO, checkout, symlinks=True, ignore=shutil.ignore_patterns(".venv", ".git", "build", "__pycache__", ".*_cache", ".hypothesis"))
    environment = {"CKP_CACHE": str(home / "cache"), "CKP_KEYS": str(home / "keys"), "XDG_CONFIG_HOME": str(home / "config"), "GOPROXY": "off"}
    try:
        yield {**environment, "KEYRING": str(home / "maker.gpg"), "CHECKOUT": str(checkout)}
    finally:
        if (checkout / ".venv").exists():
            inside(environment, str(checkout / "ckp"), "down", timeout=300, check=False)
        run(["ip", "netns", "del", NAMESPACE], timeout=30, check=False)
        run(["chmod", "-R", "u+w", home], timeout=60, check=False)
        run(["rm", "-rf", "--one-file-system", home], timeout=300, check=False)


def inside(environment: dict[str, str], *argv: str, timeout: float, check: bool = True) -> str:
    done = run(["nsenter", f"--net=/run/netns/{NAMESPACE}", *argv], env=environment, timeout=timeout, check=check)
    return done.stdout + done.stderr


def test_there_is_no_way_out(island: dict[str, str]) -> None:
    routes = inside(island, "ip", "route", timeout=10) + inside(island, "ip", "-6", "route", "show", "default", timeout=10)
    assert routes.strip() == ""
    assert [link["ifname"] for link in json.loads(inside(island, "ip", "-j", "link", timeout=10)) if link["ifname"] != "lo" and "UP" in link["flags"]] == []


def test_a_stranger_s_keyring_is_refused_before_anything_is_unpacked(island: dict[str, str], archive: Path, tmp_path: Path) -> None:
    stranger = tmp_path / "keys"
    run([REPO / "ckp", "keys", "make"], env={"CKP_KEYS": str(stranger)}, timeout=60)
    done = run(
        [REPO / "ckp", "dist", "import", archive, "--keyring", stranger / "trusted.gpg"], env={"CKP_CACHE": str(tmp_path / "c")}, timeout=300, check=False
    )
    assert done.code == 3
    assert "not trusted here" in done.stderr
    assert list((tmp_path / "c").rglob("*.json")) == []


def test_an_import_without_a_network_gives_the_digests_that_were_built(
    island: dict[str, str], archive: Path, built: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Into a registry that has nothing: the digests are those that a registry computes of what came."""
    cache, keyring = tmp_path / "cache", Path(island["KEYRING"])
    shown = inside({**island, "CKP_CACHE": str(cache)}, str(REPO / "ckp"), "dist", "import", str(archive), "--keyring", str(keyring), timeout=600)
    assert STAMP in shown
    monkeypatch.setenv("CKP_CACHE", str(cache))
    site = ImportedRelease.read(archive, keyring, lambda _line: None)
    server = RegistryServer(site.built["distribution"].binary("registry"), "127.0.0.1", "localhost", free_port(), tmp_path / "state", tmp_path / "content")
    client = server.start()
    try:
        brought = site.push(client, f"127.0.0.1:{server.port}", server.ca)
        assert built.keys() <= brought.keys(), "and bundles for other systems"
        tags = {**site.tags, **{target.repository: STAMP for target in site.targets}}
        assert {repository: client.digest(f"ckp/{repository}", tags[repository]) for repository in built} == built
    finally:
        server.stop()


@pytest.mark.long
def test_make_up_from_the_file_alone(island: dict[str, str], archive: Path, pytestconfig: pytest.Config) -> None:
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    if Lab().hosts():
        ckp("down", timeout=300)  # test_4_deletion has failed: there is one lab on a machine
    environment = [f"{name}={value}" for name, value in island.items()]
    command = [
        "nsenter",
        f"--net=/run/netns/{NAMESPACE}",
        "env",
        "-C",
        island["CHECKOUT"],
        *environment,
        "make",
        "up",
        f"FROM={archive}",
        f"KEYRING={island['KEYRING']}",
    ]
    with capture.global_and_fixture_disabled():
        print("\nwithout a network: make up FROM=v1.35.1.ckp")
        output = stream([*command, f"WORKERS={WORKERS}"], UP_SECONDS)
    assert "demo is ready" in output
    assert "STAND-IN" in output, "what takes a pin's place is loud on a site too"
    assert not (Path(island["CKP_CACHE"]) / "go").exists(), "nothing was built"
    assert not (Path(island["CKP_KEYS"]) / "signing.pgp").exists(), "the site holds no signing key"
    kubeconfig = Path(island["XDG_CONFIG_HOME"]) / "ckp" / "demo.kubeconfig"
    kubectl = next((Path(island["CKP_CACHE"]) / "imported").glob("*/builds/kubernetes/bin/kubectl"))
    nodes = json.loads(inside(island, str(kubectl), f"--kubeconfig={kubeconfig}", "get", "nodes", "-o", "json", timeout=60))["items"]
    assert {node["status"]["nodeInfo"]["kubeletVersion"] for node in nodes} == {STAMP}
    assert len(nodes) == WORKERS


@pytest.mark.long
def test_down_in_there_leaves_nothing(island: dict[str, str]) -> None:
    inside(island, f"{island['CHECKOUT']}/ckp", "down", timeout=300)
    with exclusive(paths.state() / "up.lock", what="the lab", timeout=5):
        assert Lab().hosts() == []
    assert "systemd-nspawn" not in run(["ps", "-eww", "-o", "args"], timeout=10).stdout
