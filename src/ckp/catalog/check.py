"""Whether a source lock is consistent: source.toml, go.mod and go.sum name the same versions.

A build takes what go.mod and go.sum say and stamps what source.toml says; with two different versions, the result would carry a wrong version.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ckp.catalog.models import Source, version_key

KUBERNETES = "kubernetes"
PSEUDO_VERSION = re.compile(r"-(?:.*\.)?\d{14}-[0-9a-f]{12}$")
"""The end of a version that names a commit (https://go.dev/ref/mod#pseudo-versions)."""


@dataclass(frozen=True)
class Finding:
    """One fault of a lock, and where."""

    file: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}"


@dataclass(frozen=True)
class Replacement:
    """A `replace` line of a go.mod; `old_version` is empty where it is for all versions."""

    old: str
    old_version: str
    new: str
    new_version: str
    line: int


@dataclass(frozen=True)
class GoMod:
    """What a go.mod requires and replaces, each with its line (https://go.dev/ref/mod#go-mod-file-grammar)."""

    required: dict[str, tuple[str, int]]
    replaced: tuple[Replacement, ...]

    @classmethod
    def parse(cls, text: str) -> GoMod:
        """Read a go.mod. Lines of other directives are skipped."""
        required: dict[str, tuple[str, int]] = {}
        replaced: list[Replacement] = []
        for verb, words, line in _directives(text):
            if verb == "require" and len(words) == 2:
                required[words[0]] = (words[1], line)
            elif verb == "replace" and "=>" in words:
                at = words.index("=>")
                old, new = [*words[:at], ""], [*words[at + 1 :], ""]
                replaced.append(Replacement(old[0], old[1], new[0], new[1], line))
        return cls(required, tuple(replaced))


def _directives(text: str) -> Iterator[tuple[str, list[str], int]]:
    block = ""
    for number, raw in enumerate(text.splitlines(), start=1):
        words = raw.partition("//")[0].split()
        if not words:
            continue
        if block:
            if words == [")"]:
                block = ""
            else:
                yield block, words, number
        elif words[1:] == ["("]:
            block = words[0]
        else:
            yield words[0], words[1:], number


def lock_findings(source: Source) -> list[Finding]:
    """The inconsistencies of a lock; none if it is consistent."""
    described, mod, sums = (source.folder / name for name in ("source.toml", "go.mod", "go.sum"))
    missing = [Finding(path, 1, "the file is missing") for path in (mod, sums) if not path.exists()]
    if missing:
        return missing
    text = described.read_text()
    go_mod = GoMod.parse(mod.read_text())
    return [
        *_module_findings(source, text, go_mod, mod),
        *_sum_findings(source, sums),
        *_stamp_findings(source, text, described),
        *(_staging_findings(source, go_mod, mod) if source.component == KUBERNETES else ()),
    ]


def _module_findings(source: Source, text: str, go_mod: GoMod, mod: Path) -> Iterator[Finding]:
    """Each of `modules` is required, or takes the place of what is required, in exactly this version."""
    described = source.folder / "source.toml"
    delivered = {item.new: (item.new_version, item.line) for item in go_mod.replaced}
    main = source.modules[0].partition("@")[2] if source.modules else ""
    if main != source.version and not PSEUDO_VERSION.search(main):
        yield Finding(described, _line(text, r"modules"), f"the main module is {main or 'missing'}, and the lock is of {source.component} {source.version}")
    for item in source.modules:
        path, _, version = item.partition("@")
        found = delivered.get(path) or go_mod.required.get(path)
        if found is None:
            yield Finding(mod, 1, f"does not require {path} {version}, which source.toml names")
        elif found[0] != version:
            yield Finding(mod, found[1], f"has {path} {found[0]}, and source.toml says {version}")


def _sum_findings(source: Source, sums: Path) -> Iterator[Finding]:
    """go.sum has both hashes of each of `modules`: that of its content and that of its go.mod."""
    known: dict[tuple[str, str], int] = {}
    for number, line in enumerate(sums.read_text().splitlines(), start=1):
        words = line.split()
        if len(words) != 3 or not words[2].startswith("h1:"):
            yield Finding(sums, number, "is not a line of a go.sum: module, version, h1:hash")
        else:
            known[words[0], words[1]] = number
    for item in source.modules:
        path, _, version = item.partition("@")
        for wanted in (version, f"{version}/go.mod"):
            if (path, wanted) not in known:
                yield Finding(sums, 1, f"has no hash of {path} {wanted}")


def _stamp_findings(source: Source, text: str, described: Path) -> Iterator[Finding]:
    """A version that is stamped in by its parts is the lock's own."""
    major, minor = version_key(source.version)[:2]
    for flag in source.ldflags:
        for name, expected in (("gitMajor", major), ("gitMinor", minor)):
            if (match := re.search(rf"\.{name}=(\S*)$", flag)) and match[1] != str(expected):
                line = _line(text, re.escape(flag), anywhere=True)
                yield Finding(described, line, f"ldflags: {name} is {match[1] or 'empty'}, and {source.version} has {expected}")


def _staging_findings(source: Source, go_mod: GoMod, mod: Path) -> Iterator[Finding]:
    """Kubernetes' staging modules, which it requires at v0.0.0, are those of its own version: v0.Y.Z with v1.Y.Z."""
    staging = "v0." + source.version.partition(".")[2]
    for item in go_mod.replaced:
        if item.old.startswith("k8s.io/") and item.old_version == "v0.0.0" and item.new_version != staging:
            yield Finding(mod, item.line, f"replaces {item.old} by {item.new_version}, and Kubernetes {source.version} goes with {staging}")
        required = go_mod.required.get(item.old)
        if item.old_version == "v0.0.0" and required and required[0] != item.new_version:
            yield Finding(mod, required[1], f"requires {item.old} {required[0]}, and replaces it by {item.new_version}")


def _line(text: str, pattern: str, *, anywhere: bool = False) -> int:
    found: Iterable[int] = (number for number, line in enumerate(text.splitlines(), start=1) if re.search(pattern if anywhere else rf"^\s*{pattern}\s*=", line))
    return next(iter(found), 1)
