"""What a Go program says of itself: the modules that are linked in, with their hashes, its toolchain and its build settings.

The go command of a pinned toolchain reads it (`go version -m -json`), so that nothing here parses ELF.
"""

from __future__ import annotations

import base64
import binascii
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckp.catalog.load import Catalog
from ckp.catalog.models import Source, version_key
from ckp.distribution.builder.component import Built
from ckp.distribution.builder.toolchain import ensure_toolchain, go_environment
from ckp.kits import paths
from ckp.kits.errors import CkpError, InvalidInput, NotFound
from ckp.kits.files import atomic_write, sha256_file
from ckp.kits.processes import ProcessFailed, run

READER_SINCE = (1, 25)
"""The first Go whose `go version` knows -json."""
READ_TIMEOUT = 120.0
CACHE_RECIPE = "1"


@dataclass(frozen=True)
class Module:
    """A Go module as it is linked in.

    Args:
        sum: its hash as go.sum has it (`h1:…`); empty for a module that came from a folder.
        replaces: `path@version` that it took the place of, by a replace directive.
    """

    path: str
    version: str
    sum: str = ""
    replaces: str = ""

    def __str__(self) -> str:
        return f"{self.path}@{self.version}"


@dataclass(frozen=True)
class BuildInfo:
    """The build info of one program; `settings` has what `go version -m` shows as `build` lines."""

    go: str
    package: str
    main: Module
    modules: tuple[Module, ...]
    settings: Mapping[str, str]

    def all_modules(self) -> list[Module]:
        """The main module and those linked in, by path."""
        return sorted((self.main, *self.modules), key=lambda module: (module.path, module.version))


@dataclass(frozen=True)
class Program:
    """A program of a component that is built, by its recorded hash."""

    name: str
    path: Path
    sha256: str
    built: Built

    @property
    def source(self) -> Source:
        """The lock that it was built from."""
        return self.built.chosen.source


@dataclass
class Reader:
    """Reads build info, with the newest toolchain that the catalog pins. What it read of a program is kept by the program's hash."""

    catalog: Catalog
    _go: Path | None = field(default=None, repr=False)

    def read(self, path: Path, sha256: str = "") -> BuildInfo:
        """The build info of the program at `path`.

        Args:
            sha256: its hash, if the caller knows it.

        Raises:
            InvalidInput: it is not a Go program, or one without build info.
        """
        record = paths.cache() / "sbom" / "buildinfo" / f"{CACHE_RECIPE}-{sha256 or sha256_file(path)}.json"
        if record.exists():
            return parse(json.loads(record.read_text()))
        argv: list[str | Path] = [self.go(), "version", "-m", "-json", path]
        try:
            text = run(argv, cwd=Path("/"), env=go_environment(), timeout=READ_TIMEOUT, what=f"reading the build info of {path}").stdout
            data = json.loads(text)
        except (ProcessFailed, json.JSONDecodeError) as error:
            raise InvalidInput(f"{path} is not a Go program with build info", details=str(error), resolution="name a program that Go has built") from error
        atomic_write(record, json.dumps(data, sort_keys=True))
        return parse(data)

    def program(self, program: Program) -> BuildInfo:
        """The build info of a program of ours."""
        return self.read(program.path, program.sha256)

    def go(self) -> Path:
        """The go command that reads."""
        if self._go is None:
            pinned = tomllib.loads((self.catalog.root / "toolchains.toml").read_text())
            versions = [version for version in pinned if version_key(version)[:2] >= READER_SINCE]
            if not versions:
                raise CkpError(f"{self.catalog.root}/toolchains.toml has no Go {'.'.join(map(str, READER_SINCE))} or newer, which reads build info")
            self._go = ensure_toolchain(self.catalog, max(versions, key=version_key))
        return self._go


def parse(data: Mapping[str, Any]) -> BuildInfo:
    """Build info from what `go version -m -json` prints. Raises InvalidInput if it is something else."""
    try:
        main = data.get("Main") or {"Path": "command-line-arguments", "Version": "(devel)"}
        return BuildInfo(
            go=str(data["GoVersion"]).removeprefix("go"),
            package=str(data.get("Path", "")),
            main=_module(main),
            modules=tuple(_module(item) for item in data.get("Deps") or ()),
            settings={item["Key"]: item["Value"] for item in data.get("Settings") or ()},
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(f"this is not build info of a Go program: {error!r}") from error


def _module(item: Mapping[str, Any]) -> Module:
    if replacement := item.get("Replace"):
        return Module(replacement["Path"], replacement.get("Version", ""), replacement.get("Sum", ""), f"{item['Path']}@{item.get('Version', '')}")
    return Module(item["Path"], item.get("Version", ""), item.get("Sum", ""))


def programs(built: Iterable[Built]) -> list[Program]:
    """Every program of these components, with the hash that its build recorded."""
    found = []
    for item in built:
        record = build_record(item)
        found += [Program(name, item.binary(name), str(facts["sha256"]), item) for name, facts in record["binaries"].items()]
    return found


def build_record(built: Built) -> dict[str, Any]:
    """What the build wrote down of itself (`build.json`). NotFound if it is not there."""
    try:
        record: dict[str, Any] = json.loads((built.folder / "build.json").read_text())
    except FileNotFoundError:
        raise NotFound(f"{built.folder} has no build.json", resolution="build it: ckp dist build") from None
    return record


def dirhash_hex(sum_: str) -> str:
    """A go.sum hash as in-toto's `dirHash` has it: lower-case hex without `h1:`.

    Rule: https://github.com/in-toto/attestation/blob/main/spec/v1/digest_set.md. Raises InvalidInput for another kind of hash.
    """
    kind, _, encoded = sum_.partition(":")
    try:
        raw = base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise InvalidInput(f"{sum_!r} is not a hash of a Go module: {error}") from error
    if kind != "h1" or len(raw) != 32:
        raise InvalidInput(f"{sum_!r} is not a hash of a Go module: it must be h1: and 32 bytes in base64")
    return raw.hex()


def read_sums(text: str) -> dict[tuple[str, str], str]:
    """A go.sum as (path, version) -> hash; the version of a go.mod's own hash ends in `/go.mod`. Raises InvalidInput naming a bad line."""
    sums: dict[tuple[str, str], str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 3 or not fields[2].startswith("h1:"):
            raise InvalidInput(f"line {number} of a go.sum is not `module version h1:…`: {line[:120]}")
        sums[fields[0], fields[1]] = fields[2]
    return sums


def read_mod(go: Path, file: Path) -> dict[str, Any]:
    """A go.mod as `go mod edit -json` prints it. Raises InvalidInput if go cannot read it."""
    try:
        data: dict[str, Any] = json.loads(run([go, "mod", "edit", "-json", file], cwd=Path("/"), env=go_environment(), timeout=60).stdout)
    except ProcessFailed as error:
        raise InvalidInput(f"{file} is not a go.mod", details=error.details) from error
    return data
