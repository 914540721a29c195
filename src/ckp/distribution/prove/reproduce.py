"""Proof that a release comes from its sources: rebuilt in another place and at another time, it is identical to the last bit.

What is expected comes from provenance: that of this machine's own build, or one that was published. Packages are compared without
their signatures, bundles with the published packages' hashes put in the place of those that were packed again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ckp.catalog.load import Catalog, Profile
from ckp.catalog.models import Release
from ckp.distribution.builder.gobuildinfo import Reader
from ckp.distribution.bundles import SIGNED_IMAGES
from ckp.kits import paths
from ckp.kits.errors import InvalidInput, NotFound
from ckp.kits.files import CHUNK, exclusive, require_free_space, sha256_bytes
from ckp.kits.processes import run
from ckp.verify.bundle import parse_manifest, write_manifest

COMPONENT_TIMEOUT = 4 * 3600.0
"""Seconds for one component from nothing: Kubernetes takes ten minutes on two cores, and a machine may be busy."""
OTHER_ENVIRONMENT = {"TZ": "XYZ-12:45", "LANG": "tr_TR.UTF-8", "LC_ALL": "C", "USER": "somebody", "LOGNAME": "somebody"}
DROPPED = ("SOURCE_DATE_EPOCH", "PYTHONPYCACHEPREFIX", "GOFLAGS", "GOCACHE", "GOMODCACHE")
DIFFOSCOPE_TIMEOUT = 900.0
Key = tuple[str, str]


@dataclass(frozen=True)
class Finding:
    """An artifact that was made again, or should have been.

    Args:
        kind: `binary`, `package`, `image` or `bundle`.
        expected: SHA-256; empty if nothing was published under that name.
        found: SHA-256 of what was made now; empty if nothing was.
    """

    kind: str
    component: str
    name: str
    expected: str
    found: str
    note: str = ""

    @property
    def verdict(self) -> str:
        """`identical`, `differs`, `not made again`: it does not come from the release; or `not published`: there is nothing to compare with."""
        if not self.expected:
            return "not published"
        if not self.found:
            return "not made again"
        return "identical" if self.expected == self.found else "differs"

    def to_json(self) -> dict[str, str]:
        """As `--format json` prints it."""
        return {**asdict(self), "verdict": self.verdict}


@dataclass
class Expected:
    """What provenance says was made: hashes by kind and name; for binaries the name is `component/program`."""

    hashes: dict[Key, str] = field(default_factory=dict)
    signed: dict[str, str] = field(default_factory=dict)
    """Unsigned hash of a package -> hash of the published, signed one."""
    files: dict[Key, Path] = field(default_factory=dict)
    """Path of an artifact on this machine, to find what differs."""
    debian: dict[str, set[str]] = field(default_factory=dict)
    """Debian's packages of an image, as `name version`."""
    registry: str = ""

    @classmethod
    def of(cls, statements: Iterable[Mapping[str, Any]]) -> Expected:
        """Gathered from statements. InvalidInput if one is not of our build type or two contradict each other."""
        found = cls()
        for statement in statements:
            try:
                found._add(statement)
            except (KeyError, TypeError, AttributeError, IndexError) as error:
                raise InvalidInput(f"this provenance is not what `ckp dist` writes: {error!r}") from error
        return found

    def _add(self, statement: Mapping[str, Any]) -> None:
        definition = statement["predicate"]["buildDefinition"]
        parameters, subjects = definition["externalParameters"], statement["subject"]
        first, last = (subject["digest"]["sha256"] for subject in (subjects[0], subjects[-1]))
        kind, name = parameters["kind"], parameters["name"]
        if kind == "binary":
            self._set(("binary", f"{parameters['component']}/{name}"), first)
        elif kind == "package":
            self._set(("package", f"{name}.{parameters['format']}"), last)
            self.signed[last] = first
        elif kind == "image" and name not in SIGNED_IMAGES:  # the packages in them are compared without their signatures
            self._set(("image", name), first)
        elif kind == "bundle":
            self._set(("bundle", name), last)
            self.registry = str(parameters["registry"]).rpartition("/")[0]
        for item in definition["resolvedDependencies"]:
            notes, digest = item.get("annotations", {}), item.get("digest", {})
            if notes.get("kind") == "program":
                self._set(("binary", f"{notes['component']}/{item['name']}"), digest["sha256"])
            elif notes.get("kind") == "package":
                self._set(("package", item["name"]), notes["unsignedSha256"])
                self.signed[notes["unsignedSha256"]] = digest["sha256"]
            elif notes.get("kind") == "image":
                self._set(("image", item["name"]), digest["sha256"])
            elif notes.get("kind") == "debian" and kind == "image":
                self.debian.setdefault(name, set()).add(item["name"])

    def _set(self, key: Key, digest: str) -> None:
        if self.hashes.setdefault(key, digest) != digest:
            raise InvalidInput(f"two statements have different digests of the {key[0]} {key[1]}: {self.hashes[key]} and {digest}")


@dataclass
class Reproduction:
    """Makes a release again and compares.

    Args:
        folder: where to work; it is emptied. Its path must differ from the cache's.
        fresh_modules: download all sources again, instead of using this machine's module cache.
        keyring: the published keyring, which the agent's package brings.
        program: what makes it: arguments of Python.
    """

    catalog: Catalog
    release: Release
    profile: Profile
    expected: Expected
    folder: Path
    say: Callable[[str], None]
    fresh_modules: bool = False
    keyring: Path | None = None
    program: tuple[str, ...] = ("-m", "ckp.distribution.prove.rebuild")

    def run(self, roles: Collection[str] = ()) -> list[Finding]:
        """Make everything, or these components only, and compare. What was expected and not made is among the findings.

        Raises:
            NotFound: there is no such component.
            InvalidInput: the folder is the cache itself or holds something else.
            ProcessFailed: something could not be built.
        """
        known = [*self.release.tools, *self.release.pins]
        if unknown := sorted(set(roles) - set(known)):
            raise NotFound(f"{self.release.name} has no component {unknown[0]}", resolution=f"use one of: {', '.join(known)}")
        if self.folder.resolve().is_relative_to(paths.cache().resolve()):
            raise InvalidInput(f"{self.folder} lies in the cache that is compared with", resolution="name a folder elsewhere with --directory")
        lock = self.folder.with_name(self.folder.name + ".lock")
        with exclusive(lock, what=f"reproducing in {self.folder}", timeout=1):
            self._prepare(small=bool(roles))
            try:
                findings = [finding for role in (roles or known) for finding in self._component(role)]
                findings += [] if roles else self._rest()
                return findings + self._not_made(findings, roles)
            finally:
                remove_tree(self.folder)

    def _prepare(self, *, small: bool) -> None:
        marker = self.folder / ".ckp-reproduce"
        if self.folder.exists() and any(self.folder.iterdir()) and not marker.exists():
            raise InvalidInput(f"{self.folder} is not empty and not from an earlier run", resolution="name another with --directory")
        remove_tree(self.folder)
        require_free_space(self.folder.parent, 4 if small else 25, what=f"making {self.release.stamp} again")
        for name in ("tmp", "cache/go"):
            (self.folder / name).mkdir(parents=True, mode=0o755)
        marker.touch()
        if not self.fresh_modules:
            shared = paths.cache() / "go" / "mod"
            shared.mkdir(parents=True, exist_ok=True)
            (self.folder / "cache/go/mod").symlink_to(shared)

    def _order(self, what: str, **more: str) -> Any:
        order = {"catalog": str(self.catalog.root), "release": self.release.name, "profile": self.profile, **more}
        environment = {
            **OTHER_ENVIRONMENT,
            "CKP_CACHE": str(self.folder / "cache"),
            "CKP_KEYS": str(self.folder / "keys"),
            "TMPDIR": str(self.folder / "tmp"),
            "PYTHONPATH": str(paths.source().parent),
        }
        dropped = [part for name in DROPPED for part in ("--unset", name)]
        command = ["env", *dropped, *(f"{name}={value}" for name, value in environment.items()), sys.executable, *self.program, json.dumps(order)]
        return json.loads(run(command, cwd=self.folder / "tmp", timeout=COMPONENT_TIMEOUT, what=what).stdout)

    def _component(self, role: str) -> list[Finding]:
        chosen = self.catalog.choose(self.release, role, self.profile)
        component = chosen.source.component
        made = self._order(f"making {component} {chosen.source.version} again", role=role)
        findings = []
        for name, facts in made.items():
            key = ("binary", f"{component}/{name}")
            expected = self.expected.hashes.get(key, "")
            note = ""
            if expected and expected != facts["sha256"]:
                published = self.expected.files.get(key)
                note = where_differs(published, Path(facts["path"]), Reader(self.catalog)) if published else "name the published program to see where"
            findings.append(Finding("binary", f"{component} {chosen.source.version}", name, expected, facts["sha256"], note))
        same = sum(finding.verdict == "identical" for finding in findings)
        self.say(f"{component} {chosen.source.version}: {same} of {len(findings)} programs identical")
        return findings

    def _rest(self) -> list[Finding]:
        keyring = str(self.keyring.absolute()) if self.keyring else ""
        what = f"making packages and images of {self.release.stamp} again"
        made = self._order(what, registry=self.expected.registry or "registry.invalid", keyring=keyring)
        findings, signed = [], {}
        for name, facts in made["packages"].items():
            findings.append(self._finding("package", name, facts["unsigned"], "without its signature"))
            signed[facts["unsigned"]] = self.expected.signed.get(facts["unsigned"], "")
        for name, facts in made["images"].items():
            moved = sorted(self.expected.debian[name] ^ set(facts["debian"])) if name in self.expected.debian else []
            note = f"Debian has moved on: {', '.join(moved[:6])}" if moved else ""
            findings.append(self._finding("image", name, facts["digest"].removeprefix("sha256:"), note))
        unsigned = {Path(facts["path"]): facts["unsigned"] for facts in made["packages"].values()}
        for name, text in made["bundles"].items():
            findings.append(self._finding("bundle", name, sha256_bytes(with_published(text, unsigned, signed).encode()), "its list, bundle.json"))
        self.say(f"{sum(finding.verdict == 'identical' for finding in findings)} of {len(findings)} packages, images and bundles identical")
        return findings

    def _not_made(self, findings: Iterable[Finding], roles: Collection[str]) -> list[Finding]:
        """What was published and not made again: of everything, or of the components that were made again."""
        components = {self.catalog.choose(self.release, role, self.profile).source.component for role in roles}
        made = {(item.kind, f"{item.component.partition(' ')[0]}/{item.name}" if item.kind == "binary" else item.name) for item in findings}
        missing = []
        for kind, name in sorted(self.expected.hashes.keys() - made):
            component, _, program = name.partition("/") if kind == "binary" else (self.release.stamp, "", name)
            if roles and component not in components:
                continue
            no_keyring = kind == "package" and name.startswith("ckp-agent.") and self.keyring is None
            note = "it brings the published keyring: name that with --keyring" if no_keyring else "nothing of the release gives it"
            missing.append(Finding(kind, component, program, self.expected.hashes[kind, name], "", note))
        if missing:
            self.say(f"{len(missing)} that were published were not made again")
        return missing

    def _finding(self, kind: str, name: str, found: str, note: str = "") -> Finding:
        return Finding(kind, self.release.stamp, name, self.expected.hashes.get((kind, name), ""), found, note)


def with_published(bundle: str, packages: Mapping[Path, str], signed: Mapping[str, str]) -> str:
    """A bundle's list with the hashes of the published packages, where those are the same but for their signature.

    Args:
        packages: path of each package that was packed again -> its hash without the signature.
        signed: such a hash -> the published package's.
    """
    manifest = parse_manifest(bundle.encode(), "", "")
    by_hash = {_hash(path): unsigned for path, unsigned in packages.items()}
    published = (replace(item, sha256=signed.get(by_hash.get(item.sha256, ""), "") or item.sha256) for item in manifest.packages)
    return write_manifest(replace(manifest, packages=tuple(published))).decode()


def _hash(path: Path) -> str:
    return sha256_bytes(path.read_bytes())


# -- what differs ------------------------------------------------------------------------------------------------------


def where_differs(published: Path, made: Path, reader: Reader) -> str:
    """Where two programs differ, in words: their modules or settings if those do, the first byte and its section."""
    said = []
    try:
        first, second = reader.read(published), reader.read(made)
    except InvalidInput as error:
        return error.brief
    if first.go != second.go:
        said.append(f"Go {first.go} and {second.go}")
    modules = sorted({str(item) for item in set(first.all_modules()) ^ set(second.all_modules())})
    said += [f"modules {', '.join(modules[:5])}"] if modules else []
    settings = sorted(name for name in {*first.settings, *second.settings} if first.settings.get(name) != second.settings.get(name))
    said += [f"settings {', '.join(settings)}"] if settings else []
    offset, count = _first_difference(published, made)
    said.append(f"{count} bytes differ, the first at offset {offset:#x}{_section(published, offset)}")
    if shutil.which("diffoscope"):
        with tempfile.TemporaryDirectory(prefix="ckp-diff-") as work:
            report = Path(work) / "report.txt"
            run(["diffoscope", "--max-text-report-size", "20000", "--text", report, published, made], timeout=DIFFOSCOPE_TIMEOUT, check=False)
            said.append(report.read_text(errors="replace") if report.exists() else "")
    return "; ".join(part for part in said if part)


def _first_difference(one: Path, other: Path) -> tuple[int, int]:
    """Offset of the first byte that differs, and how many do; what one has and the other has not counts as well."""
    offset, count, position = -1, 0, 0
    with one.open("rb") as left, other.open("rb") as right:
        while True:
            first, second = left.read(CHUNK), right.read(CHUNK)
            if not first and not second:
                return offset, count
            if first != second:
                differing = [index for index, (a, b) in enumerate(zip(first, second, strict=False)) if a != b]
                shorter = min(len(first), len(second))
                if offset < 0:
                    offset = position + (differing[0] if differing else shorter)
                count += len(differing) + max(len(first), len(second)) - shorter
            position += max(len(first), len(second))


def _section(program: Path, offset: int) -> str:
    """The section of an ELF file that an offset lies in, by readelf (binutils); empty if that cannot tell."""
    if not shutil.which("readelf"):
        return ""
    listed = run(["readelf", "--sections", "--wide", program], timeout=60, check=False).stdout
    for name, start, size in re.findall(r"^\s*\[\s*\d+\]\s+(\S+)\s+\S+\s+[0-9a-f]+\s+([0-9a-f]+)\s+([0-9a-f]+)", listed, re.MULTILINE):
        if name != ".bss" and int(start, 16) <= offset < int(start, 16) + int(size, 16):
            return f" in {name}"
    return ""


def remove_tree(folder: Path) -> None:
    """Remove a folder with what go's module cache made read-only; links are not followed. Not there is fine."""
    if folder.is_symlink():
        folder.unlink()
    if not folder.exists():
        return
    for root, _, _ in os.walk(folder):
        Path(root).chmod(0o700)
    shutil.rmtree(folder)
