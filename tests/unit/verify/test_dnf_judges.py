"""Dnf repositories: what CKP calls good, dnf takes too, and reads the same packages in it. dnf's own libraries (libdnf, librepo, libsolv) are the judges."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from ckp.clients.signing.openpgp import SigningKey
from ckp.hostkit.errors import VerificationFailed
from ckp.verify.packagefile import PackageInfo
from ckp.verify.repositories.dnf import REPOMD, _primary, _repomd, verify_dnf
from ckp.verify.repositories.tree import Packages, Tree
from ckp.verify.rpmtags import COMPARISONS, Relation
from tests.support.generated_apt import faults
from tests.support.generated_dnf import Built, Repository, pool, repositories
from tests.support.read_by_dnf import is_there, read_by_dnf
from tests.support.signing_keys import signing_key
from tests.unit.verify.test_attacks_on_indices import Dnf

pytestmark = pytest.mark.skipif(not is_there(), reason="dnf is not installed here (make setup-test installs it)")

AT_ONCE = 50
FAULTS = 1500
EXAMPLES = int(os.environ.get("CKP_JUDGED", "120"))
"""How many repositories are made; as many as are asked for are made otherwise each time."""
SIGNS = {"LT": "<", "GT": ">", "EQ": "=", "LE": "<=", "GE": ">=", "": ""}


@dataclass(frozen=True)
class World:
    key: SigningKey
    packages: Sequence[Built]
    folder: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("judged")
    key = signing_key(folder / "keys")
    return World(key, pool(key.sign), folder)


def good(world: World, repository: Repository) -> bool:
    """Whether CKP calls it good."""
    root = world.folder / "tried"
    shutil.rmtree(root, ignore_errors=True)
    repository.write(root, world.packages, world.key.sign)
    try:
        verify_dnf(str(root), str(world.key.keyring))
    except VerificationFailed:
        return False
    return True


def as_we_read_it(root: Path, keyring: Path) -> dict[str, dict[str, Any]]:
    """The packages of a verified repository by their paths: the index is compared with them, so they are what it says."""
    packages = Packages(Tree(str(root)), str(keyring))
    _primary(packages.tree, _repomd((root / REPOMD).read_bytes(), "")["primary"], packages)
    return {path: shown(path, digest, info, (root / path).stat().st_size) for path, (digest, info) in packages._known.items()}


def shown(path: str, digest: str, info: PackageInfo, size: int) -> dict[str, Any]:
    epoch, _, rest = info.version.rpartition(":")
    version, _, release = rest.partition("-")
    relations = {kind: sorted(map(in_words, found)) for kind, found in info.relations.items()}
    relations["provides"] = sorted({*relations["provides"], f"{info.name} = {info.version}"})  # libsolv adds it
    texts = {"name": info.name, "version": version, "release": release, "arch": info.fields["Architecture"], "location": path, "baseurl": ""}
    texts |= {"vendor": info.fields["Vendor"], "packager": info.fields["Packager"], "sourcerpm": info.fields["Source"]}
    numbers = {"epoch": int(epoch or 0), "size": size}
    return {**texts, **numbers, "digest": digest, "relations": relations, "files": sorted(f"/{name}" for name in info.files)}


def in_words(relation: Relation) -> str:
    """As dnf shows a relation."""
    epoch = f"{relation.epoch}:" if relation.epoch not in ("", "0") else ""
    release = f"-{relation.release}" if relation.release else ""
    return " ".join(part for part in (relation.name, SIGNS[relation.comparison], f"{epoch}{relation.version}{release}") if part)


def differences(ours: Mapping[str, dict[str, Any]], theirs: str | list[Mapping[str, Any]]) -> list[str]:
    if isinstance(theirs, str):
        return [theirs]
    found = [f"dnf has {len(theirs)} packages, and we {len(ours)}"] if len(theirs) != len(ours) else []
    for package in theirs:
        own = ours.get(str(package["location"]), {})
        for name, value in package.items():
            if name == "relations" and own:
                left_out = set(own[name]["requires"]) - set(value["requires"])
                allowed = {entry for entry in left_out if entry.startswith("rpmlib(") or entry in own[name]["provides"]}
                value = {**value, "requires": sorted([*value["requires"], *allowed])}
            if own.get(name) != value:
                found.append(f"{package['location']} {name}\n  ours:  {own.get(name)}\n  dnf's: {value}")
    return found


def judged(world: World, made: Sequence[Repository]) -> Iterator[str]:
    """What dnf says of these repositories, all of which are good, that is not what we read in them."""
    folder = world.folder / "now"
    shutil.rmtree(folder, ignore_errors=True)
    roots = [folder / f"repository{number}" for number in range(len(made))]
    for root, repository in zip(roots, made, strict=True):
        repository.write(root, world.packages, world.key.sign)
    for root, repository, theirs in zip(roots, made, read_by_dnf(folder / "work", roots), strict=True):
        differ = differences(as_we_read_it(root, world.key.keyring), theirs)
        if differ:
            plain = [path.read_bytes().decode(errors="replace") for path in (root / "repodata").glob("*.xml")]
            yield "\n".join([*differ, *plain, *(f"{path}: {content[:3000]!r}" for path, content in repository.files.items())])


def test_what_is_good_dnf_takes_and_reads_the_same(world: World) -> None:
    found: list[Repository] = []
    seen = 0

    @settings(
        max_examples=EXAMPLES, derandomize="CKP_JUDGED" not in os.environ, phases=[Phase.generate], database=None, suppress_health_check=list(HealthCheck)
    )
    @given(repository=repositories(world.packages, faults(FAULTS)))
    def collect(repository: Repository) -> None:
        nonlocal seen
        seen += 1
        if good(world, repository):
            found.append(repository)

    collect()
    assert seen / 5 < len(found) < seen, "some are good, some are not: else the judge is asked nothing, or the strategy makes no fault"
    wrong = [why for at in range(0, len(found), AT_ONCE) for why in judged(world, found[at : at + AT_ONCE])]
    assert not wrong, f"{len(wrong)} of {len(found)}, the first:\n{wrong[0]}"


def test_the_judge_can_say_no(world: World, tmp_path: Path) -> None:
    """What dnf reads in a repository that CKP refuses is not what is in its package."""
    for number, change in enumerate((lambda text: text, lambda text: text.replace("kubelet</name>", "kubelet<x/>evil</name>"))):
        Dnf(primary=change).write(tmp_path / str(number), world.key)
    ours = as_we_read_it(tmp_path / "0", world.key.keyring)
    same, other = read_by_dnf(tmp_path / "work", [tmp_path / "0", tmp_path / "1"])
    assert differences(ours, same) == []
    assert any("name\n  ours:  kubelet\n  dnf's: " in said for said in differences(ours, other))


def test_the_comparisons_are_all_shown() -> None:
    assert set(SIGNS) == set(COMPARISONS.values())
