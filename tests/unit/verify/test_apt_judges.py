"""Apt repositories: what CKP calls good, apt takes too, in whichever packing, and reads the same packages in it. apt-get and apt-cache are the judges."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from ckp.clients.signing.openpgp import SigningKey
from ckp.hostkit.errors import VerificationFailed
from ckp.verify.deb822 import Paragraph, parse_lines
from ckp.verify.repositories.apt import verify_apt
from ckp.verify.repositories.tree import Tree, open_index, packing_of
from tests.support.generated_apt import SUITE, Built, Repository, faults, pool, repositories
from tests.support.package_managers import AptRoot
from tests.support.signing_keys import signing_key

pytestmark = pytest.mark.skipif(shutil.which("apt-get") is None, reason="apt is not installed here")

AT_ONCE = 20
"""Repositories that one apt follows: it takes them all in half a second."""
FAULTS = 1500
EXAMPLES = int(os.environ.get("CKP_JUDGED", "80"))
"""How many repositories are made; as many as are asked for are made otherwise each time."""
RELATIONS = {"PreDepends": "Pre-Depends", **{name: name for name in ("Depends", "Conflicts", "Breaks", "Recommends", "Suggests", "Enhances", "Replaces")}}
Version = tuple[str, str, str]
"""Package, version, architecture (that of apt, `amd64`, for all)."""


@dataclass(frozen=True)
class Read:
    """What is known of a version: what is downloaded and its digest, and the relations, each as a set of alternatives."""

    file: str
    size: int
    digest: str
    relations: frozenset[tuple[str, tuple[str, ...]]]


@dataclass(frozen=True)
class World:
    key: SigningKey
    debs: Sequence[Built]
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
    repository.write(root, world.debs, world.key.sign_cleartext)
    try:
        verify_apt(str(root), str(world.key.keyring))
    except VerificationFailed:
        return False
    return True


# -- as we read it


def as_we_read_it(root: Path) -> dict[Version, Read]:
    """The packages of all indices of a verified repository."""
    tree, found = Tree(str(root)), {}

    def broken(why: str) -> VerificationFailed:
        return VerificationFailed(why)

    for name in sorted(tree.names):
        if name.rpartition("/")[2].startswith("Packages"):
            with open_index(tree, name, packing_of(name), broken) as pieces:
                for fields in parse_lines(pieces, broken):
                    found[version_of(fields)] = Read(fields["Filename"], int(fields["Size"]), strongest(fields), relations_of(fields))
    return found


def version_of(fields: Paragraph) -> Version:
    return fields["Package"], fields["Version"], "amd64" if fields["Architecture"] == "all" else fields["Architecture"]


def strongest(fields: Paragraph) -> str:
    """The digest that apt shows."""
    return f"SHA512:{fields['SHA512']}" if "SHA512" in fields else f"SHA256:{fields['SHA256']}"


def relations_of(fields: Paragraph) -> frozenset[tuple[str, tuple[str, ...]]]:
    found = set()
    for shown, label in RELATIONS.items():
        for group in fields.get(label, "").split(","):
            alternatives = tuple(plain(part) for part in group.split("|") if part.strip())
            if alternatives:
                found.add((shown, alternatives))
    return frozenset(found)


def plain(relation: str) -> str:
    """A relation without blanks."""
    match = re.fullmatch(r"\s*([a-z0-9+.:-]+)\s*(?:\(\s*([<>=]+)\s*([^ )\n]+)\s*\))?\s*", relation)
    assert match, relation
    return f"{match[1]} {match[2] or ''}{match[3] or ''}".strip()


# -- as apt reads it


class Refused(Exception):
    """apt can't read what it took."""


def as_apt_reads_it(apt: AptRoot, source: Path, root: Path) -> dict[Version, Read]:
    """The packages of one source, of those that apt has updated."""
    only = ("-o", f"Dir::Etc::sourcelist={source}", "-o", "Dir::Etc::sourceparts=-", "-o", "Dir::Cache::pkgcache=", "-o", "Dir::Cache::srcpkgcache=")
    dump = apt.run("apt-cache", *only, "dump")
    if dump.returncode != 0:
        raise Refused(dump.stderr)
    versions, name = [], ""
    for line in f"\n{dump.stdout}".partition("\nFile: ")[0].splitlines():
        if line.startswith("Package: "):
            name = line.removeprefix("Package: ")
        elif line.startswith(" Version: "):
            versions.append((name, line.removeprefix(" Version: ")))
    found: dict[Version, Read] = {}
    for name, version in versions:
        package, _, architecture = name.partition(":")
        asked = f"{name}={version}"
        got = apt.run("apt-get", *only, "download", "--print-uris", asked)
        uri = re.fullmatch(r"'file:([^']*)' (\S+) ([0-9]+) (\S+)\n", got.stdout)
        done = apt.run("apt-get", *only, "download", asked)
        for path in apt.archives.glob("*.deb"):
            path.unlink()  # apt asks for nothing that lies there
        if uri is None or done.returncode != 0:
            raise Refused(got.stderr + done.stderr)
        said = apt.run("apt-cache", *only, "-o", "APT::Cache::ShowVersion=true", "depends", asked)
        assert said.returncode == 0, said
        key = (package, version, architecture or "amd64")
        if key in found:
            raise Refused(f"apt has {asked} twice")
        found[key] = Read(unquote(uri[1]).removeprefix(f"{root}/"), int(uri[3]), uri[4], relations_shown(said.stdout, key[2]))
    return found


def relations_shown(text: str, architecture: str) -> frozenset[tuple[str, tuple[str, ...]]]:
    """Those of `apt-cache depends`: a bar before all but the last alternative, brackets around what no package is called, and providers below."""
    found, alternatives = set(), []
    for line in text.splitlines()[1:]:
        match = re.fullmatch(r" ([ |])([A-Za-z]+): <?([^ >]+)>?(?: \(([<>=]+) ([^)]+)\))?", line)
        if match is None:
            assert line.startswith("    "), text
            continue
        alternatives.append(f"{match[3].removesuffix(f':{architecture}')} {match[4] or ''}{match[5] or ''}".strip())
        if match[1] == " ":
            found.add((match[2], tuple(alternatives)))
            alternatives = []
    return frozenset(found)


def judged(world: World, made: Sequence[Repository], order: Sequence[str]) -> Iterator[str]:
    """What apt says of these repositories, all of which are good, that is not what we read in them."""
    folder = world.folder / "now"
    shutil.rmtree(folder, ignore_errors=True)
    apt = AptRoot(folder / "apt", ("amd64", "arm64"))
    with (apt.root / "apt.conf").open("a") as stream:
        stream.write("".join(f'Acquire::CompressionTypes::Order:: "{packing}";\n' for packing in order))
    roots = {folder / f"repository{number}": repository for number, repository in enumerate(made)}
    for root, repository in roots.items():
        repository.write(root, world.debs, world.key.sign_cleartext)
        source = f"deb [signed-by={world.key.keyring}] file:{root} {SUITE} {' '.join(repository.components)}\n"
        (apt.sources / f"{root.name}.list").write_text(source)
    done = apt.get("update", "-q", "--error-on=any")
    for root, repository in roots.items():
        ours, theirs = as_we_read_it(root), {}
        words = [line for line in done.stderr.splitlines() if line.startswith(("E:", "W:")) and (f"{root}/" in line or f"{root} " in line)]
        if not words:
            try:
                theirs = as_apt_reads_it(apt, apt.sources / f"{root.name}.list", root)
            except Refused as error:
                words.append(str(error))
        if words or ours != theirs:
            differ = [f"{key}\n  ours:  {ours.get(key)}\n  apt's: {theirs.get(key)}" for key in sorted({*ours, *theirs}) if ours.get(key) != theirs.get(key)]
            yield "\n".join([*words, *differ, repository.release, *(f"{path}: {content[:3000]!r}" for path, content in repository.files.items())])
    assert done.returncode == 0 or "W:" in done.stderr or "E:" in done.stderr, done


def test_what_is_good_apt_takes_and_reads_the_same(world: World) -> None:
    found: list[Repository] = []
    seen = 0

    @settings(
        max_examples=EXAMPLES, derandomize="CKP_JUDGED" not in os.environ, phases=[Phase.generate], database=None, suppress_health_check=list(HealthCheck)
    )
    @given(repository=repositories(world.debs, faults(FAULTS)))
    def collect(repository: Repository) -> None:
        nonlocal seen
        seen += 1
        if good(world, repository):
            found.append(repository)

    collect()
    assert seen / 5 < len(found) < seen, "some are good, some are not: else the judge is asked nothing, or the strategy makes no fault"
    orders = [["gz", "xz", "zst"], ["zst", "gz", "xz"], ["xz", "zst", "gz"]]
    wrong = [why for at in range(0, len(found), AT_ONCE) for why in judged(world, found[at : at + AT_ONCE], orders[at // AT_ONCE % 3])]
    assert not wrong, f"{len(wrong)} of {len(found)}, the first:\n{wrong[0]}"


def test_the_judge_can_say_no(world: World) -> None:
    """Of repositories that CKP refuses: what apt says is not what we would read."""
    stanza = f"Package: x\nVersion: 1\nArchitecture: amd64\nFilename: pool/x.deb\nSize: 1\nSHA256: {'0' * 64}\n".encode()
    index, digest = "main/binary-amd64/Packages", hashlib.sha256(stanza).hexdigest()
    text = f"Suite: {SUITE}\nCodename: {SUITE}\nDate: Thu, 01 Jan 2026 00:00:00 UTC\nArchitectures: amd64\nComponents: main\n"
    text += f"SHA256:\n {digest} {len(stanza)} {index}\n"
    made = Repository({f"dists/{SUITE}/{index}": stanza}, text, ["main"], ["amd64"])
    for bad, words in (
        (made, "pool/x.deb"),
        (replace(made, release=text.replace("Components: main", "Components: other")), "apt's: None"),
        (replace(made, release=f"{text}MD5Sum:\n {'0' * 32} {len(stanza)} {index}\n"), "Hash Sum mismatch"),
    ):
        assert not good(world, bad)
        (said,) = judged(world, [bad], ["gz"])
        assert words in said
