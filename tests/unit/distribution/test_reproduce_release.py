"""A whole release made again in another process: what is the same, what is not, and what was expected and did not come."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from ckp.catalog.load import Catalog
from ckp.cli.distribution import evidence as transparency
from ckp.clients.signing.openpgp import SigningKey
from ckp.distribution.attest import provenance
from ckp.distribution.attest.builtrelease import BuiltRelease
from ckp.distribution.builder.gobuildinfo import Reader
from ckp.distribution.prove import reproduce
from ckp.distribution.prove.reproduce import Expected, Finding, Reproduction
from ckp.distribution.release import Distribution
from ckp.kits.errors import VerificationFailed
from tests.support import small_release
from tests.support.small_packages import nfpm
from tests.support.small_release import RELEASE

pytestmark = pytest.mark.release
SCRIPT = Path(small_release.__file__)
MADE_AGAIN = {
    *(("package", f"{name}.{kind}") for name in ("kubelet", "kubectl", "ckp-agent") for kind in ("deb", "rpm")),
    *(("image", name) for name in ("etcd", "kube-proxy", "local-path-provisioner")),
    *(("bundle", f"byoh-bundle-{system}_x86-64_k8s") for system in ("debian_12", "rhel_9")),
}


@dataclass
class World:
    """Somebody who publishes, and somebody who makes it again."""

    folder: Path
    patch: pytest.MonkeyPatch

    def published(self, name: str, *changed: str) -> Expected:
        """What the provenance of a release says; `changed` programs are not those that its sources give."""
        with self.patch.context() as patch:
            patch.setenv("CKP_CACHE", str(self.folder / name / "cache"))
            patch.setenv("CKP_KEYS", str(self.folder / "maker"))
            patch.setenv(small_release.CHANGED, ",".join(changed))
            (self.folder / name / "cache").mkdir(parents=True)
            catalog = Catalog()
            made = Distribution(catalog, catalog.release(RELEASE), "lab", lambda _: None)
            made.build()
            made.pack()
            made.make_images()
            made.make_bundles("registry.example:5000")
            built = BuiltRelease(Reader(catalog), made.release, "lab", {})  # its programs are no Go programs
            statements = [provenance.package_statement(built, package) for package in (*made.packages, *made.agents)]
            statements += [provenance.image_statement(built, image) for image in made.images]
            statements += [provenance.bundle_statement(built, bundle, made.packages, made.images) for bundle in made.bundles]
            expected = Expected.of(statements)
            for component in made.built.values():
                for binary, facts in json.loads((component.folder / "build.json").read_text())["binaries"].items():
                    expected.hashes["binary", f"{component.chosen.source.component}/{binary}"] = facts["sha256"]
            return expected

    @property
    def keyring(self) -> Path:
        return SigningKey(self.folder / "maker").keyring

    def made_again(self, expected: Expected, keyring: Path | None, roles: Sequence[str] = ()) -> dict[tuple[str, str], Finding]:
        catalog = Catalog()
        work = Reproduction(
            catalog, catalog.release(RELEASE), "lab", expected, self.folder / "elsewhere", lambda _: None, keyring=keyring, program=(str(SCRIPT),)
        )
        return {(finding.kind, finding.name): finding for finding in work.run(roles)}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv(small_release.NFPM, str(nfpm()))
    monkeypatch.setenv("CKP_CACHE", str(tmp_path / "nobody's"))
    small_release.install(monkeypatch.setattr)
    monkeypatch.setattr(reproduce, "require_free_space", lambda *_, **__: None)
    return World(tmp_path, monkeypatch)


def verdicts(findings: dict[tuple[str, str], Finding], verdict: str) -> set[tuple[str, str]]:
    return {key for key, finding in findings.items() if finding.verdict == verdict}


def test_all_of_a_release_is_made_again_the_agents_package_too(world: World) -> None:
    findings = world.made_again(world.published("honest"), world.keyring)
    assert verdicts(findings, "identical") == findings.keys(), [finding for finding in findings.values() if finding.verdict != "identical"]
    assert {key for key in findings if key[0] != "binary"} == MADE_AGAIN
    assert {("binary", "kubelet"), ("binary", "etcd"), ("binary", "imgpkg")} <= findings.keys()


def test_what_is_not_of_its_sources_is_found_in_package_image_and_bundle(world: World) -> None:
    expected = world.published("forged", "kubectl", "etcd")
    # Published as well, and no source of the release gives it.
    expected.hashes["package", "evil.deb"] = "ee" * 32
    expected.hashes["binary", "kubernetes/kube-miner"] = "ee" * 32
    findings = world.made_again(expected, world.keyring)
    assert verdicts(findings, "differs") == {
        *(("binary", name) for name in ("kubectl", "etcd")),
        *(("package", f"kubectl.{kind}") for kind in ("deb", "rpm")),
        ("image", "etcd"),
        *(("bundle", f"byoh-bundle-{system}_x86-64_k8s") for system in ("debian_12", "rhel_9")),
    }
    assert verdicts(findings, "not made again") == {("package", "evil.deb"), ("binary", "kube-miner")}
    assert {("package", "kubelet.deb"), ("package", "ckp-agent.rpm"), ("image", "kube-proxy"), ("binary", "kubelet")} <= verdicts(findings, "identical")


def test_without_the_published_keyring_the_agents_package_is_said_not_to_be_made(world: World) -> None:
    findings = world.made_again(world.published("honest"), None)
    assert verdicts(findings, "not made again") == {("package", "ckp-agent.deb"), ("package", "ckp-agent.rpm")}
    assert "--keyring" in findings["package", "ckp-agent.deb"].note
    assert verdicts(findings, "differs") == set()


def test_one_component_answers_for_its_own_programs_only(world: World) -> None:
    expected = world.published("honest")
    expected.hashes["binary", "etcd/etcd-miner"] = expected.hashes["binary", "kubernetes/kube-miner"] = "ee" * 32
    findings = world.made_again(expected, world.keyring, ["etcd"])
    assert verdicts(findings, "not made again") == {("binary", "etcd-miner")}
    assert {finding.component.partition(" ")[0] for finding in findings.values()} == {"etcd"}


@pytest.mark.parametrize("found", ["", "bb"])
def test_the_command_ends_with_code_3_if_anything_is_not_as_published(found: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    findings = [Finding("binary", "c v1", "same", "aa", "aa"), Finding("package", "s", "other.deb", "aa", found)]
    monkeypatch.setattr(Reproduction, "run", lambda *_: findings)
    monkeypatch.setattr(transparency, "_expected_here", lambda *_: Expected())
    monkeypatch.setenv("CKP_KEYS", str(tmp_path))
    done = CliRunner().invoke(transparency.reproduce, [RELEASE, "--profile", "lab"])
    assert isinstance(done.exception, VerificationFailed) and done.exception.exit_code == 3
    assert "package other.deb" in done.exception.details
    assert ("differs" if found else "not made again") in done.output


def test_the_command_hands_on_the_keyring_that_is_named_or_this_machines_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    handed: list[Path | None] = []

    def note(work: Reproduction, _: object) -> list[Finding]:
        handed.append(work.keyring)
        return [Finding("binary", "c", "n", "a", "a")]

    monkeypatch.setattr(Reproduction, "run", note)
    monkeypatch.setattr(transparency, "_expected_here", lambda *_: Expected())
    monkeypatch.setenv("CKP_KEYS", str(tmp_path))
    named = tmp_path / "published.gpg"
    named.touch()
    CliRunner().invoke(transparency.reproduce, [RELEASE], catch_exceptions=False)
    (tmp_path / "trusted.gpg").touch()
    CliRunner().invoke(transparency.reproduce, [RELEASE], catch_exceptions=False)
    CliRunner().invoke(transparency.reproduce, [RELEASE, "--keyring", str(named)], catch_exceptions=False)
    assert handed == [None, tmp_path / "trusted.gpg", named]
