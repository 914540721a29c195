"""apt and dnf themselves install from the repositories, and refuse what is not ours.

Each has a root of its own in a temporary folder: apt by its own configuration and `dpkg --root`, dnf by `--installroot`. Nothing of the
machine's own package managers is read or written, and no network is used.
"""

from __future__ import annotations

import http.server
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import BinaryIO

import pytest
from click.testing import CliRunner

from ckp import __version__
from ckp.catalog.load import Catalog
from ckp.cli.distribution.dist import dist_publish
from ckp.clients.signing import openpgp
from ckp.clients.signing.openpgp import SigningKey
from ckp.distribution.carry.airgap import tree
from ckp.distribution.carry.archive import write_archive
from ckp.distribution.packages.pack import Format, Package
from ckp.distribution.repositories.publish import COMMAND, Repositories
from ckp.kits.retry import wait_until
from ckp.verify.keyrings import armoured
from ckp.verify.path import verify_path
from tests.simulators.clock import ManualClock
from tests.support.package_managers import AptRoot
from tests.support.signing_keys import signing_key
from tests.support.small_packages import small_package

pytestmark = [
    pytest.mark.component,
    pytest.mark.skipif(shutil.which("apt-get") is None or shutil.which("dnf") is None, reason="apt-get and dnf are needed; `make setup` installs them"),
    pytest.mark.root("dpkg and rpm install into a root"),
]

CODENAME = "bookworm"
KEY_QUERY = "%{NAME}-%{VERSION}-%{RELEASE} %{PACKAGER}\\n"
"""As docs/how-to/install-packages.md has it."""


def said(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return signing_key(tmp_path_factory.mktemp("ours") / "keys")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return signing_key(tmp_path_factory.mktemp("stranger") / "keys", "stranger")


def release(folder: Path, key: SigningKey, version: str) -> list[Package]:
    """kubeadm, which needs cri-tools, and a helper of the distribution that comes from elsewhere."""
    debs = [
        small_package(folder, key, "kubeadm", f"{version}-ckp", "deb", depends=["cri-tools (>= 1.27.0)"]),
        small_package(folder, key, "cri-tools", "1.30.0-ckp", "deb"),
    ]
    rpms = [
        small_package(folder, key, "kubeadm", f"{version}-ckp", "rpm", depends=["cri-tools >= 1.27.0", "conntrack-tools"]),
        small_package(folder, key, "cri-tools", "1.30.0-ckp", "rpm"),
    ]
    return [*debs, *rpms]


@pytest.fixture(scope="module")
def packages(key: SigningKey, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Package]]:
    """The packages of two releases."""
    return {version: release(tmp_path_factory.mktemp("packages"), key, version) for version in ("1.35.1", "1.35.2")}


@pytest.fixture
def repositories(tmp_path: Path, key: SigningKey, packages: dict[str, list[Package]]) -> Repositories:
    made = Repositories(tmp_path / "root", key)
    made.publish(packages["1.35.1"], "v1.35", said)
    return made


# -- apt ---------------------------------------------------------------------------------------------------------------


@dataclass
class Apt(AptRoot):
    """An apt of its own that follows repositories of ours."""

    def follow(self, repositories: Repositories, address: str = "", *, keyring: Path | None = None, template: str = "ckp") -> None:
        """Do what docs/how-to/install-packages.md says: keyring and source list, from the repository's own templates."""
        ring = self.root / "usr/share/keyrings/ckp.gpg"
        shutil.copy(keyring or repositories.root / "keys/ckp.gpg", ring)
        text = (repositories.root / f"setup/{template}.sources").read_text().replace("/usr/share/keyrings/ckp.gpg", str(ring))
        for mark, value in (("@URL@", address or f"file:{repositories.root}"), ("@CODENAME@", CODENAME), ("@MINOR@ agent", "v1.35")):
            text = text.replace(mark, value)
        (self.root / f"etc/apt/sources.list.d/{template}.sources").write_text(text)

    def installed(self) -> dict[str, str]:
        argv = ["dpkg-query", f"--admindir={self.root}/var/lib/dpkg", "-W", "-f", "${Package} ${Version}\n"]
        said = subprocess.run(argv, capture_output=True, text=True, check=False).stdout
        return dict(line.split(" ") for line in said.splitlines())


@pytest.fixture
def apt(tmp_path: Path) -> Apt:
    return Apt(tmp_path / "apt")


def test_apt_installs_with_dependencies_from_the_signed_repository(repositories: Repositories, apt: Apt) -> None:
    apt.follow(repositories)
    apt.update()
    done = apt.get("install", "kubeadm")
    assert done.returncode == 0, done.stdout + done.stderr
    assert apt.installed() == {"kubeadm": "1.35.1-ckp", "cri-tools": "1.30.0-ckp"}
    assert subprocess.run([apt.root / "usr/bin/kubeadm"], capture_output=True, text=True, check=True).stdout == "kubeadm 1.35.1-ckp\n"


def test_apt_upgrades_to_the_next_release_and_takes_a_chosen_version(repositories: Repositories, packages: dict[str, list[Package]], apt: Apt) -> None:
    apt.follow(repositories)
    apt.update()
    apt.get("install", "kubeadm")
    repositories.publish(packages["1.35.2"], "v1.35", said)
    apt.update()
    assert apt.get("upgrade").returncode == 0
    assert apt.installed()["kubeadm"] == "1.35.2-ckp"
    assert apt.get("install", "--allow-downgrades", "kubeadm=1.35.1-ckp").returncode == 0
    assert apt.installed()["kubeadm"] == "1.35.1-ckp"


@pytest.mark.parametrize("codename", ["bookworm", "jammy", "noble"])
def test_apt_reads_every_codename_without_a_warning(repositories: Repositories, apt: Apt, codename: str) -> None:
    apt.follow(repositories)
    sources = apt.root / "etc/apt/sources.list.d/ckp.sources"
    sources.write_text(sources.read_text().replace(CODENAME, codename))
    apt.update()
    assert "kubeadm" in apt.get("install", "--dry-run", "kubeadm").stdout


@pytest.fixture
def command_line(repositories: Repositories, key: SigningKey, tmp_path: Path) -> Repositories:
    """With the command line, in a component of its own."""
    kinds: tuple[Format, ...] = ("deb", "rpm")
    repositories.publish([small_package(tmp_path / "command", key, "ckp", "0.2.0+1-ckp", kind) for kind in kinds], COMMAND, said)
    return repositories


def test_apt_takes_the_command_line_from_a_component_of_its_own(command_line: Repositories, apt: Apt) -> None:
    apt.follow(command_line, template="ckp-command")
    apt.update()
    assert apt.get("install", "ckp").returncode == 0
    assert apt.installed() == {"ckp": "0.2.0+1-ckp"}
    assert apt.get("install", "kubeadm").returncode != 0, "a workstation gets nothing else"


def test_apt_reads_the_one_line_template_too(repositories: Repositories, apt: Apt) -> None:
    apt.follow(repositories)
    (apt.root / "etc/apt/sources.list.d/ckp.sources").unlink()
    text = (repositories.root / "setup/ckp.list").read_text().replace("/usr/share", f"{apt.root}/usr/share")
    for mark, value in (("@URL@", f"file:{repositories.root}"), ("@CODENAME@", CODENAME), ("@MINOR@ agent", "v1.35")):
        text = text.replace(mark, value)
    (apt.root / "etc/apt/sources.list.d/ckp.list").write_text(text)
    apt.update()
    assert apt.get("install", "kubeadm").returncode == 0


def test_apt_moves_from_upstreams_packages_and_back(repositories: Repositories, apt: Apt, tmp_path: Path) -> None:
    upstream = tmp_path / "upstream"
    for name, version in (("kubeadm", "1.35.1-1.1"), ("cri-tools", "1.30.0-1.1")):
        small_package(upstream, None, name, version, "deb")
    index = subprocess.run(["apt-ftparchive", "packages", "."], cwd=upstream, capture_output=True, check=True).stdout
    (upstream / "Packages").write_bytes(index)
    theirs = apt.root / "etc/apt/sources.list.d/kubernetes.list"
    theirs.write_text(f"deb [trusted=yes] file:{upstream} ./\n")
    apt.get("update")
    assert apt.get("install", "kubeadm", "cri-tools").returncode == 0
    assert apt.installed() == {"kubeadm": "1.35.1-1.1", "cri-tools": "1.30.0-1.1"}
    apt.follow(repositories)
    apt.update()
    assert apt.get("install", "kubeadm", "cri-tools").returncode == 0
    assert apt.installed() == {"kubeadm": "1.35.1-ckp", "cri-tools": "1.30.0-ckp"}, "an upgrade for apt: 1.35.1-1.1 < 1.35.1-ckp"
    assert apt.get("install", "--allow-downgrades", "kubeadm=1.35.1-1.1", "cri-tools=1.30.0-1.1").returncode == 0
    assert apt.installed() == {"kubeadm": "1.35.1-1.1", "cri-tools": "1.30.0-1.1"}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def apt_flipped_inrelease(repositories: Repositories, apt: Apt, stranger: SigningKey) -> str:
    path = repositories.root / "apt/dists" / CODENAME / "InRelease"
    path.write_bytes(path.read_bytes().replace(b"Origin: Coredge.io", b"Origin: Coredge.ia"))
    return "BADSIG|At least one invalid signature"


def apt_flipped_packages(repositories: Repositories, apt: Apt, stranger: SigningKey) -> str:
    for path in (repositories.root / "apt/dists" / CODENAME / "v1.35/binary-amd64").rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            path.unlink()
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    return "Hash Sum mismatch|Hashes of expected file"


def apt_other_key(repositories: Repositories, apt: Apt, stranger: SigningKey) -> str:
    apt.follow(repositories, keyring=stranger.keyring)
    return "NO_PUBKEY"


def apt_signed_by_a_stranger(repositories: Repositories, apt: Apt, stranger: SigningKey) -> str:
    folder = repositories.root / "apt/dists" / CODENAME
    body = (folder / "Release").read_bytes()
    (folder / "InRelease").write_bytes(stranger.sign_cleartext(body))
    (folder / "Release.gpg").write_bytes(stranger.sign(body, armor=True))
    return "NO_PUBKEY"


def apt_unsigned(repositories: Repositories, apt: Apt, stranger: SigningKey) -> str:
    folder = repositories.root / "apt/dists" / CODENAME
    (folder / "InRelease").unlink()
    (folder / "Release.gpg").unlink()
    return "is not signed"


@pytest.mark.parametrize("attack", [apt_flipped_inrelease, apt_flipped_packages, apt_other_key, apt_signed_by_a_stranger, apt_unsigned])
def test_apt_refuses(repositories: Repositories, apt: Apt, stranger: SigningKey, attack: Callable[[Repositories, Apt, SigningKey], str]) -> None:
    apt.follow(repositories)
    apt.refuses(attack(repositories, apt, stranger))
    assert apt.get("install", "kubeadm").returncode != 0
    assert apt.installed() == {}


def test_apt_refuses_a_package_that_was_changed_in_the_pool(repositories: Repositories, apt: Apt) -> None:
    apt.follow(repositories)
    apt.update()
    flip(next(repositories.root.glob("apt/pool/v1.35/kubeadm/*.deb")))
    done = apt.get("install", "kubeadm")
    assert done.returncode != 0
    assert re.search("Hash Sum mismatch|Hashes of expected file|unexpected size", done.stdout + done.stderr)
    assert apt.installed() == {}


def test_apt_keeps_what_it_has_when_an_older_state_is_replayed(tmp_path: Path, key: SigningKey, packages: dict[str, list[Package]], apt: Apt) -> None:
    clock = ManualClock(datetime.now(UTC) - timedelta(days=10))
    repositories = Repositories(tmp_path / "root", key, clock=clock)
    repositories.publish(packages["1.35.1"], "v1.35", said)
    older = tmp_path / "older"
    shutil.copytree(repositories.root / "apt/dists", older)
    clock.advance(86400)
    repositories.publish(packages["1.35.2"], "v1.35", said)
    apt.follow(repositories)
    apt.update()
    shutil.rmtree(repositories.root / "apt/dists")
    shutil.copytree(older, repositories.root / "apt/dists")
    assert apt.get("update").returncode == 0, "apt says nothing, and goes on with the newer state that it has"
    assert "kubeadm (1.35.2-ckp" in apt.get("install", "--dry-run", "kubeadm").stdout
    newcomer = Apt(tmp_path / "newcomer")
    newcomer.follow(repositories)
    newcomer.update()
    assert "kubeadm (1.35.1-ckp" in newcomer.get("install", "--dry-run", "kubeadm").stdout, "who never saw the newer state cannot know"


def test_apt_refuses_a_state_after_its_valid_until(tmp_path: Path, key: SigningKey, packages: dict[str, list[Package]], apt: Apt) -> None:
    clock = ManualClock(datetime.now(UTC) - timedelta(days=10))
    repositories = Repositories(tmp_path / "root", key, clock=clock, valid_days=7)
    repositories.publish(packages["1.35.1"], "v1.35", said)
    apt.follow(repositories)
    apt.refuses("is expired")
    clock.advance(10 * 86400)
    repositories.publish(packages["1.35.1"], "v1.35", said)
    apt.update()
    replace(repositories, valid_days=None).publish(packages["1.35.1"], "v1.35", said)
    apt.update()


# -- a site that has the maker's repositories of two releases, and no signing key ---------------------------------------


@pytest.fixture
def site(tmp_path: Path, key: SigningKey, packages: dict[str, list[Package]], monkeypatch: pytest.MonkeyPatch) -> dict[str, Repositories]:
    """What `ckp dist publish --from FILE --repositories` makes of two files, by release."""
    monkeypatch.setenv("CKP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CKP_KEYS", str(tmp_path / "no-keys-here"))
    for version, found in packages.items():
        made = Repositories(tmp_path / f"made-{version}", key)
        made.publish(found, "v1.35", said)
        shown = Catalog().release("v1.35.1").model_dump(mode="json") | {"name": f"v{version}", "stamp": f"v{version}-ckp"}
        shown["pins"]["kubernetes"] = f"v{version}"
        about = {"kind": "ckp-release", "ckp": __version__, "release": shown}
        write_archive(tmp_path / f"v{version}.ckp", about, tree("repositories", made.root), key, said)
        arguments = ["--from", str(tmp_path / f"v{version}.ckp"), "--keyring", str(key.keyring), "--repositories", str(tmp_path / "site")]
        done = CliRunner().invoke(dist_publish, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output
    return {version: Repositories(tmp_path / "site" / f"v{version}", key) for version in packages}


def test_apt_follows_one_release_of_a_site_and_then_the_next(site: dict[str, Repositories], apt: Apt) -> None:
    apt.follow(site["1.35.1"])
    apt.update()
    assert apt.get("install", "kubeadm").returncode == 0
    assert apt.installed()["kubeadm"] == "1.35.1-ckp"
    apt.follow(site["1.35.2"])
    apt.update()
    assert apt.get("upgrade").returncode == 0
    assert apt.installed()["kubeadm"] == "1.35.2-ckp"


def test_apt_follows_both_releases_of_a_site_by_one_source(site: dict[str, Repositories], apt: Apt) -> None:
    """As docs/how-to/air-gap.md has it: two addresses after URIs."""
    apt.follow(site["1.35.1"], f"file:{site['1.35.1'].root}/apt file:{site['1.35.2'].root}")
    apt.update()
    assert apt.get("install", "kubeadm").returncode == 0
    assert apt.installed()["kubeadm"] == "1.35.2-ckp"
    assert apt.get("install", "--allow-downgrades", "kubeadm=1.35.1-ckp").returncode == 0
    assert apt.installed()["kubeadm"] == "1.35.1-ckp"


def test_dnf_follows_one_release_of_a_site_and_then_the_next(site: dict[str, Repositories], dnf: Dnf) -> None:
    for version, repositories in site.items():
        dnf.follow(repositories)
        done = dnf.install(f"kubeadm-{version}-ckp")
        assert done.returncode == 0, done.stdout + done.stderr
        assert dnf.installed()["kubeadm"] == f"{version}-ckp"


def test_a_sites_repositories_are_verified_by_the_makers_keys(site: dict[str, Repositories], key: SigningKey) -> None:
    for repositories in site.values():
        assert any("packages verified" in line for line in verify_path(str(repositories.root), str(key.keyring)))


# -- a publication in the middle of a client's update ------------------------------------------------------------------


@contextmanager
def served(root: Path, at: str, act: Callable[[], object], *, time: int = 1) -> Iterator[tuple[str, list[str]]]:
    """The folder over HTTP; `act` is called before the `time`th request for a path that ends with `at` gets what was there before."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def send_head(self) -> BinaryIO | None:
            opened = super().send_head()
            asked.append(self.path)
            if self.path.endswith(at) and len([path for path in asked if path.endswith(at)]) == time:
                act()
            return opened

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(root)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert len([path for path in asked if path.endswith(at)]) >= time, asked


def test_apt_finishes_an_update_in_whose_middle_a_release_is_published(repositories: Repositories, packages: dict[str, list[Package]], apt: Apt) -> None:
    with served(repositories.root, "/InRelease", lambda: repositories.publish(packages["1.35.2"], "v1.35", said)) as (address, asked):
        apt.follow(repositories, address)
        apt.update()
        assert any("/by-hash/SHA256/" in path for path in asked), asked
        assert "kubeadm (1.35.1-ckp" in apt.get("install", "--dry-run", "kubeadm").stdout
        assert apt.get("install", "kubeadm").returncode == 0
        apt.update()
        assert apt.get("upgrade").returncode == 0
    assert apt.installed()["kubeadm"] == "1.35.2-ckp"


# -- dnf ---------------------------------------------------------------------------------------------------------------


@dataclass
class Dnf:
    """A dnf of its own below `root`, with what RHEL brings as small packages in a repository of their own."""

    root: Path

    def __post_init__(self) -> None:
        for name in ("etc/yum.repos.d", "etc/pki/rpm-gpg", "var/cache"):
            (self.root / name).mkdir(parents=True)
        base = self.root / "base"
        small_package(base, None, "conntrack-tools", "1.4.7-1", "rpm")
        subprocess.run(["createrepo_c", "-q", base], check=True, capture_output=True)
        (self.root / "etc/dnf.conf").write_text(
            f"[main]\nreposdir={self.root}/etc/yum.repos.d\ncachedir={self.root}/var/cache\nlogdir={self.root}\npersistdir={self.root}/var/persist\n"
            f"varsdir=/nonexistent\npluginpath=/nonexistent\ninstall_weak_deps=False\nproxy=\nretries=1\n"
            "skip_if_unavailable=False\ngpgcheck=1\nlocalpkg_gpgcheck=1\n"
        )

    def follow(self, repositories: Repositories, address: str = "", *, certificates: Path | None = None, template: str = "ckp") -> None:
        """Do what docs/how-to/install-packages.md says: key file and repository file, from the repository's own template."""
        key_file = self.root / "etc/pki/rpm-gpg/RPM-GPG-KEY-ckp"
        shutil.copy(certificates or repositories.root / "keys/ckp.asc", key_file)
        text = (repositories.root / f"setup/{template}.repo").read_text().replace("/etc/pki/rpm-gpg/RPM-GPG-KEY-ckp", str(key_file))
        assert text.count("gpgcheck=1\nrepo_gpgcheck=1\n") == text.count("baseurl=") > 0
        text = text.replace("@URL@", address or f"file://{repositories.root}").replace("@MINOR@", "v1.35").partition("[ckp-agent]")[0]
        (self.root / "etc/yum.repos.d/ckp.repo").write_text(text)
        (self.root / "etc/yum.repos.d/base.repo").write_text(f"[base]\nname=base\nbaseurl=file://{self.root}/base\ngpgcheck=0\n")

    @property
    def environment(self) -> dict[str, str]:
        """The same for dnf and rpm: Debian's rpm keeps its database below the home folder."""
        return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": str(self.root)}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        argv = ["dnf", "-y", "-c", str(self.root / "etc/dnf.conf"), f"--installroot={self.root}/installed", "--releasever=9", "--forcearch=x86_64"]
        return subprocess.run([*argv, *arguments], env=self.environment, capture_output=True, text=True, timeout=180, check=False)

    def install(self, *names: str) -> subprocess.CompletedProcess[str]:
        return self.run("--refresh", "--disableexcludes=ckp", "install", *names)

    def installed(self) -> dict[str, str]:
        argv = ["rpm", "--root", f"{self.root}/installed", "-qa", "--qf", "%{NAME} %{VERSION}-%{RELEASE}\n"]
        said = subprocess.run(argv, env=self.environment, capture_output=True, text=True, check=True).stdout
        return {name: version for name, _, version in (line.partition(" ") for line in said.splitlines()) if name != "gpg-pubkey"}


@pytest.fixture
def dnf(tmp_path: Path) -> Iterator[Dnf]:
    yield Dnf(tmp_path / "dnf")
    # dnf starts a gpg-agent for each repository's keys, and leaves it
    for home in tmp_path.rglob("var/cache/*/pubring"):
        subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=False, capture_output=True, timeout=30)

    def alive() -> str:
        return subprocess.run(["pgrep", "-af", f"gpg-agent --homedir {tmp_path}"], capture_output=True, text=True, check=False).stdout

    wait_until(lambda: not alive(), what="the agents end", timeout=60, every=0.1, reason=alive)  # gpgconf does not wait for them


def test_dnf_installs_with_dependencies_from_the_signed_repository(repositories: Repositories, dnf: Dnf) -> None:
    dnf.follow(repositories)
    done = dnf.install("kubeadm")
    assert done.returncode == 0, done.stdout + done.stderr
    assert dnf.installed() == {"kubeadm": "1.35.1-ckp", "cri-tools": "1.30.0-ckp", "conntrack-tools": "1.4.7-1"}
    said = subprocess.run([dnf.root / "installed/usr/bin/kubeadm"], capture_output=True, text=True, check=True).stdout
    assert said == "kubeadm 1.35.1-ckp\n"


def test_dnf_takes_the_command_line_from_a_component_of_its_own(command_line: Repositories, dnf: Dnf) -> None:
    dnf.follow(command_line, template="ckp-command")
    done = dnf.install("ckp")
    assert done.returncode == 0, done.stdout + done.stderr
    assert dnf.installed() == {"ckp": "0.2.0+1-ckp"}
    assert dnf.install("kubeadm").returncode != 0


def test_dnf_upgrades_only_when_told_to(repositories: Repositories, packages: dict[str, list[Package]], dnf: Dnf) -> None:
    dnf.follow(repositories)
    dnf.install("kubeadm")
    repositories.publish(packages["1.35.2"], "v1.35", said)
    assert dnf.run("--refresh", "upgrade").returncode == 0
    assert dnf.installed()["kubeadm"] == "1.35.1-ckp", "the template keeps a general upgrade away from Kubernetes, as upstream's does"
    done = dnf.install("kubeadm-1.35.2-ckp")
    assert done.returncode == 0, done.stdout + done.stderr
    assert dnf.installed()["kubeadm"] == "1.35.2-ckp"


def test_dnf_moves_from_upstreams_packages_and_back(repositories: Repositories, dnf: Dnf, tmp_path: Path) -> None:
    upstream = tmp_path / "upstream"
    for name, version in (("kubeadm", "1.35.1-150500.1.1"), ("cri-tools", "1.30.0-150500.1.1")):
        small_package(upstream, None, name, version, "rpm")
    subprocess.run(["createrepo_c", "-q", upstream], check=True, capture_output=True)
    dnf.follow(repositories)
    theirs = dnf.root / "etc/yum.repos.d/kubernetes.repo"
    theirs.write_text(f"[kubernetes]\nname=kubernetes\nbaseurl=file://{upstream}\ngpgcheck=0\n")
    assert dnf.run("--disablerepo=ckp", "install", "kubeadm", "cri-tools").returncode == 0
    assert dnf.installed() == {"kubeadm": "1.35.1-150500.1.1", "cri-tools": "1.30.0-150500.1.1"}
    done = dnf.run("--refresh", "--disablerepo=kubernetes", "--disableexcludes=ckp", "distro-sync", "kubeadm", "cri-tools")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {name: version for name, version in dnf.installed().items() if name != "conntrack-tools"} == {"kubeadm": "1.35.1-ckp", "cri-tools": "1.30.0-ckp"}
    assert dnf.run("--disablerepo=ckp", "distro-sync", "kubeadm", "cri-tools").returncode == 0
    assert dnf.installed()["kubeadm"] == "1.35.1-150500.1.1"


def test_after_a_rotation_hosts_need_the_new_key_file_and_rpm_must_forget_the_old_one(tmp_path: Path, apt: Apt, dnf: Dnf) -> None:
    key = signing_key(tmp_path / "rotated")
    repositories = Repositories(tmp_path / "root", key)
    repositories.publish(release(tmp_path / "first", key, "1.35.1"), "v1.35", said)
    apt.follow(repositories)
    apt.update()
    dnf.follow(repositories)
    assert dnf.install("kubeadm").returncode == 0
    openpgp.add_signing_subkey(key, (key.folder / openpgp.PRIMARY).read_bytes())
    repositories.publish(release(tmp_path / "second", key, "1.35.2"), "v1.35", said)
    apt.refuses("NO_PUBKEY")
    assert dnf.install("kubeadm-1.35.2-ckp").returncode != 0
    apt.follow(repositories)
    apt.update()
    dnf.follow(repositories)
    done = dnf.install("kubeadm-1.35.2-ckp")
    assert done.returncode != 0
    assert "GPG check FAILED" in done.stderr, "rpm does not merge a certificate that it has with a newer state of it"
    rpm = ["rpm", "--root", f"{dnf.root}/installed"]
    listed = subprocess.run([*rpm, "-q", "gpg-pubkey", "--qf", KEY_QUERY], env=dnf.environment, capture_output=True, text=True, check=True).stdout
    (name,) = (line.partition(" ")[0] for line in listed.splitlines() if "Coredge.io" in line)
    subprocess.run([*rpm, "-e", name], env=dnf.environment, capture_output=True, check=True)
    assert dnf.install("kubeadm-1.35.2-ckp").returncode == 0
    assert dnf.installed()["kubeadm"] == "1.35.2-ckp"
    assert dnf.installed()["cri-tools"] == "1.30.0-ckp"


def dnf_flipped_repomd(repositories: Repositories, dnf: Dnf, stranger: SigningKey) -> str:
    path = repositories.root / "rpm/el9/v1.35/x86_64/repodata/repomd.xml"
    path.write_bytes(path.read_bytes().replace(b"<revision>", b"<revision>1"))
    return "GPG verification is enabled and GPG signature|repomd.xml GPG signature verification error"


def dnf_flipped_primary(repositories: Repositories, dnf: Dnf, stranger: SigningKey) -> str:
    flip(next(repositories.root.glob("rpm/el9/v1.35/x86_64/repodata/*-primary.xml.gz")))
    return "Checksum error|checksum doesn't match|All mirrors were tried"


def dnf_other_key(repositories: Repositories, dnf: Dnf, stranger: SigningKey) -> str:
    other = dnf.root / "other.asc"
    other.write_bytes(armoured(stranger.keyring.read_bytes()))
    dnf.follow(repositories, certificates=other)
    return "repomd.xml GPG signature verification error"


def dnf_signed_by_a_stranger(repositories: Repositories, dnf: Dnf, stranger: SigningKey) -> str:
    folder = repositories.root / "rpm/el9/v1.35/x86_64/repodata"
    (folder / "repomd.xml.asc").write_bytes(stranger.sign((folder / "repomd.xml").read_bytes(), armor=True))
    return "repomd.xml GPG signature verification error"


def dnf_unsigned(repositories: Repositories, dnf: Dnf, stranger: SigningKey) -> str:
    (repositories.root / "rpm/el9/v1.35/x86_64/repodata/repomd.xml.asc").unlink()
    return "repomd.xml.asc|GPG signature"


def dnf_changed_package(repositories: Repositories, dnf: Dnf, stranger: SigningKey) -> str:
    flip(next(repositories.root.glob("rpm/el9/v1.35/x86_64/Packages/kubeadm-*.rpm")))
    return "incorrect checksum"


def dnf_package_of_a_stranger_in_metadata_that_we_signed(repositories: Repositories, dnf: Dnf, stranger: SigningKey) -> str:
    """What `publish` would never do: gpgcheck is the last line."""
    folder = repositories.root / "rpm/el9/v1.35/x86_64"
    made = small_package(dnf.root / "strange", stranger, "kubeadm", "1.35.1-ckp", "rpm", depends=["cri-tools"])
    shutil.copy(made.path, folder / "Packages" / made.file_name)
    subprocess.run(["createrepo_c", "-q", "--no-database", folder], check=True, capture_output=True)
    (folder / "repodata/repomd.xml.asc").write_bytes(repositories.key.sign((folder / "repodata/repomd.xml").read_bytes(), armor=True))
    return "GPG check FAILED|is not correct|not installed|is not signed"


@pytest.mark.parametrize(
    "attack",
    [
        dnf_flipped_repomd,
        dnf_flipped_primary,
        dnf_other_key,
        dnf_signed_by_a_stranger,
        dnf_unsigned,
        dnf_changed_package,
        dnf_package_of_a_stranger_in_metadata_that_we_signed,
    ],
)
def test_dnf_refuses(repositories: Repositories, dnf: Dnf, stranger: SigningKey, attack: Callable[[Repositories, Dnf, SigningKey], str]) -> None:
    dnf.follow(repositories)
    words = attack(repositories, dnf, stranger)
    done = dnf.install("kubeadm")
    assert done.returncode != 0, done.stdout
    assert re.search(words, done.stdout + done.stderr), done.stdout + done.stderr
    assert dnf.installed() == {}


def test_dnf_finishes_a_refresh_in_whose_middle_a_release_is_published(repositories: Repositories, packages: dict[str, list[Package]], dnf: Dnf) -> None:
    # The first time dnf stops to import the key, and begins again.
    publish = partial(repositories.publish, packages["1.35.2"], "v1.35", said)
    with served(repositories.root, "/repomd.xml.asc", publish, time=2) as (address, asked):
        dnf.follow(repositories, address)
        done = dnf.run("--refresh", "makecache")
        assert done.returncode == 0, done.stdout + done.stderr
        done = dnf.run("-C", "--disableexcludes=ckp", "list", "kubeadm")
        assert "1.35.1-ckp" in done.stdout, done.stdout + done.stderr
        assert "1.35.2-ckp" not in done.stdout
        assert dnf.install("kubeadm").returncode == 0
        assert len([path for path in asked if path.endswith("repomd.xml")]) >= 2
    assert dnf.installed()["kubeadm"] == "1.35.2-ckp"
