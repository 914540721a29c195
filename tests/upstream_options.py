"""catalog/options from upstream's source: `python -m tests.upstream_options [FOLDER…]` writes what it finds, a contract test holds the catalog against it.

FOLDERs hold Go modules as `go mod download` leaves them (default: those of the builds). A minor of which no source is there is left as it is.

Every program takes the same gates: each registers all in one set, by importing pkg/features (init in pkg/features/kube_features.go at v1.35.1). What a
release knows is in the maps `Name: {{Version: …, Default: …, LockToDefault: …}}`; of a gate, the last line counts whose version the release has reached.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckp.catalog.load import Catalog
from ckp.catalog.models import version_key
from ckp.kits import paths

GATES = {
    "kubernetes": ("pkg/features",),
    "apiserver": ("pkg/features",),
    "apiextensions-apiserver": ("pkg/features",),
    "client-go": ("features",),
    "component-base": ("logs/api/v1", "metrics/features", "zpages/features"),
    "controller-manager": ("pkg/features",),
}
"""Folders of Go files with gates, by module."""
EVERY = ("AllAlpha", "AllBeta")
"""Gates that stand for many (component-base/featuregate/feature_gate.go)."""
KUBELET_FLAGS = ("cmd/kubelet/app/options", "pkg/kubelet/config")
"""Where the kubelet's own flags are, in the module kubernetes."""
_NAME = re.compile(r'^\s*(\w+)(?:\s+(?:featuregate\.)?Feature)?\s*=\s*(?:(?:featuregate\.)?Feature\()?"(\w+)"', re.MULTILINE)
_ENTRY = re.compile(r"^(\s*)(?:\w+\.)?(\w+):\s*\{(.*)$")
_SPEC = re.compile(r"\{\s*Version:\s*version\.(?:MustParse|MajorMinor)\(([^)]*)\),[^\n]*?Default:\s*(true|false)([^\n]*)")
_FLAG = re.compile(r'\.\w*Var[P]?\(\s*[^"()]*(?:\([^"()]*\)[^"()]*)*"([a-z][a-z0-9-]+)"')


@dataclass(frozen=True)
class Gates:
    """What a release knows: gates, and of those that can't be changed any longer, what they are."""

    known: frozenset[str]
    locked: Mapping[str, bool]


def modules(folders: Sequence[Path], release: str) -> dict[str, Path]:
    """Where the source of a release lies, by module; empty if a module of it is missing."""
    found: dict[str, Path] = {}
    for name in GATES:
        version = release if name == "kubernetes" else f"v0{release.removeprefix('v1')}"
        there = [path for folder in folders if (path := folder / "k8s.io" / f"{name}@{version}").is_dir()]
        found |= {name: there[0]} if there else {}
    return found if found.keys() == GATES.keys() else {}


def gates(of: Mapping[str, Path], release: str) -> Gates:
    """The gates of a release, from its source."""
    texts = [text for name, folders in GATES.items() for folder in folders for text in sources(of[name] / folder)]
    names = dict(pair for text in texts for pair in _NAME.findall(text))
    reached = version_key(release)[:2]
    known, locked = set(EVERY), {}
    for text in texts:
        for name, every in entries(text):
            if not every:
                continue
            if name not in names:
                raise ValueError(f"{release}: no constant says what the gate {name} is called")
            known.add(names[name])
            specs = [spec for spec in every if _minor(spec[0]) <= reached]
            if specs and re.search(r"LockToDefault:\s*true", specs[-1][2]):
                locked[names[name]] = specs[-1][1] == "true"
    return Gates(frozenset(known), locked)


def entries(text: str) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """The entries of maps in a Go file: the name, and of each version its number, its default and what follows."""
    name, end, found = "", "", list[tuple[str, str, str]]()
    for line in text.splitlines():
        if name and line.startswith(end):
            yield name, found
            name = ""
        elif name:
            found += _SPEC.findall(line)
        elif match := _ENTRY.match(line):
            name, end, found = match[2], f"{match[1]}}}", _SPEC.findall(match[3])
            if match[3].rstrip().endswith("},") or match[3].strip() == "}":
                yield name, found
                name = ""


def kubelet_flags(of: Mapping[str, Path]) -> set[str]:
    """The kubelet's own flags; those of its libraries (logging, cAdvisor) are not among them."""
    return {flag for folder in KUBELET_FLAGS for text in sources(of["kubernetes"] / folder) for flag in _FLAG.findall(text)}


def sources(folder: Path) -> Iterator[str]:
    """The Go files of a folder, without tests and without what is for Windows."""
    for path in sorted(folder.glob("*.go")):
        if not path.name.endswith(("_test.go", "_windows.go")):
            yield path.read_text()


def _minor(version: str) -> tuple[int, ...]:
    return version_key(version)[:2]


def rendered(release: str, found: Gates, removed: Iterable[str]) -> str:
    """The file of a release's minor."""
    minor = ".".join(map(str, version_key(release)[:2]))
    flags = ", ".join(f'"{flag}"' for flag in sorted(removed))
    lines = [
        f"# What the programs of Kubernetes {minor} take: `python -m tests.upstream_options` makes it from upstream's source.",
        "# `removed_flags`: what the minor before still had. `locked`: gates that can only be what they are; any other value stops a program from starting.",
        f'minor = "{minor}"',
        f'read_from = "{release}"',
        "",
        "[removed_flags]",
        f"kubelet = [{flags}]",
        "",
        "[gates]",
        "free = [",
        *(f'    "{name}",' for name in sorted(found.known - found.locked.keys())),
        "]",
        "",
        "[gates.locked]",
        *(f"{name} = {str(found.locked[name]).lower()}" for name in sorted(found.locked)),
    ]
    return "\n".join(lines) + "\n"


def made(folders: Sequence[Path], release: str, before: str) -> str:
    """The file of a release's minor from source; "" without the source of it.

    Args:
        before: a release of the minor before; "" or one without source: flags that were removed are then those that the catalog has.
    """
    of, older = modules(folders, release), modules(folders, before) if before else {}
    if not of:
        return ""
    minor = ".".join(map(str, version_key(release)[:2]))
    known = Catalog().options(minor) if minor in Catalog().option_minors() else None
    removed = kubelet_flags(older) - kubelet_flags(of) if older else set(known.removed_flags["kubelet"]) if known else set[str]()
    return rendered(release, gates(of, release), removed)


def newest() -> list[str]:
    """The newest release of each minor in the catalog, oldest first."""
    return list({version_key(name)[:2]: name for name in Catalog().names()}.values())


def main() -> int:
    folders = [Path(argument) for argument in sys.argv[1:]] or [paths.cache() / "go" / "mod"]
    releases = newest()
    for before, release in zip(["", *releases], releases, strict=False):
        text = made(folders, release, before)
        path = Catalog().root / "options" / f"v{'.'.join(map(str, version_key(release)[:2]))}.toml"
        if text:
            path.write_text(text)
        print(f"{path}: {'written' if text else f'the source of {release} is not here'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
