"""The licences that a package must carry: upstream's own, and those of every module that is linked into its programs.

Which modules those are, the programs themselves say (`go version -m`). Their files come from the module cache, whose content go has checked
against go.sum. A zip or folder of Python code names its packages by their `dist-info` folders.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckp.catalog.load import Catalog
from ckp.catalog.models import Source
from ckp.distribution.builder.component import Built
from ckp.distribution.builder.toolchain import ensure_toolchain, go_environment
from ckp.kits.errors import CkpError
from ckp.kits.files import sha256_bytes
from ckp.kits.processes import run

NAMES = re.compile(r"(LICEN[CS]E|COPYING|COPYRIGHT|NOTICE|PATENTS|UNLICENSE)([._-].*)?", re.I)
"""Names of licence files, as upstreams call them."""
NOT_TEXT = (".go", ".tpl", ".tmpl", ".json", ".yaml", ".yml", ".csv", ".sh", ".py", ".html")
PASSED_OVER = {"testdata", "test", "tests", "vendor", "third_party_test", "examples", "_examples", "node_modules", "LICENSES", "hack", "website", "docs"}
"""Folders of a source that are not linked into a program. LICENSES is Kubernetes' own collection of what is collected here."""


@dataclass(frozen=True)
class Module:
    """A module that is linked into a program, and its licence files: (path in the module, text)."""

    name: str
    version: str
    sum: str
    files: tuple[tuple[str, str], ...] = ()
    own: bool = False
    """It is the source of the program itself."""


def of_programs(built: Built, programs: Sequence[str]) -> list[Module]:
    """The modules that are linked into some programs of a component, Go's standard library among them, by name.

    Raises:
        CkpError: a module is not in the module cache and cannot be fetched, or has no licence file.
    """
    source = built.chosen.source
    go = ensure_toolchain(Catalog(), source.go)
    environment = go_environment(cgo=source.cgo)
    linked: dict[str, tuple[str, str]] = {}
    own: set[str] = set()
    for program in programs:
        said = run([go, "version", "-m", built.binary(program)], timeout=60, env=environment, what=f"reading the modules of {program}")
        linked |= linked_modules(said.stdout)
        own |= set(re.findall(r"^\tmod\t(\S+)", said.stdout, re.M))
    folders = _folders(go, environment, source, sorted(linked))
    modules = [Module(name, *linked[name], _texts(folders[name], f"{name} {linked[name][0]}"), name in own) for name in sorted(linked)]
    standard = Module("std", f"go{source.go}", "", _texts(go.parent.parent, f"Go {source.go}", deep=False))
    return [*modules, standard]


def linked_modules(said: str) -> dict[str, tuple[str, str]]:
    """Module, version and go.sum hash from the words of `go version -m`; of a replaced module, those of what replaces it."""
    found: dict[str, tuple[str, str]] = {}
    last = ""
    for line in said.splitlines():
        fields = line.strip("\n").split("\t")[1:]
        if len(fields) < 3 or fields[0] not in ("mod", "dep", "=>"):
            continue
        if fields[0] != "=>":
            last = fields[1]
        found[last] = (fields[2], fields[3] if len(fields) > 3 else "")
    return found


def of_python(place: Path) -> list[Module]:
    """The Python packages in a zip or a folder, by their `dist-info` folders; nothing for another file."""
    if place.is_dir():
        return _of_python(sorted(str(path.relative_to(place)) for path in place.glob("*.dist-info/**/*")), lambda name: (place / name).read_bytes())
    if not zipfile.is_zipfile(place):
        return []
    with zipfile.ZipFile(place) as content:
        return _of_python(sorted(content.namelist()), content.read)


def _of_python(names: Sequence[str], read: Callable[[str], bytes]) -> list[Module]:
    modules = []
    for folder in sorted({name.split("/")[0] for name in names if ".dist-info/" in name}):
        name, _, version = folder.removesuffix(".dist-info").partition("-")
        files = [(item, _clean(read(item))) for item in names if item.startswith(folder + "/") and NAMES.fullmatch(item.split("/")[-1])]
        modules.append(Module(f"pypi:{name}", version, "", tuple((item.split("/", 1)[1], text) for item, text in files)))
    return modules


def own_licence(modules: Sequence[Module]) -> str:
    """The licence of the source that a component's programs lie in, from what `of_programs` found."""
    texts = dict(next(module for module in modules if module.own).files)
    return next(texts[file] for file in sorted(texts, key=lambda file: (file.count("/"), not file.upper().startswith("LICEN"), file)))


def render(modules: Iterable[Module], notices: Sequence[str] = ()) -> str:
    """The list for people and machines: a paragraph for each module (fields as in a Debian control file), then every text once."""
    merged: dict[tuple[str, str], Module] = {(module.name, module.version): module for module in modules}
    texts: dict[str, str] = {}
    users: dict[str, int] = {}
    lines = [
        "Software that is linked into the programs of this package, with its licences.",
        "Each paragraph names a module, its version, its hash as in go.sum, and its licence files; their texts follow under the names given.",
        "",
    ]
    for key in sorted(merged):
        module = merged[key]
        lines += [f"Module: {module.name}", f"Version: {module.version}"]
        if module.sum:
            lines.append(f"Sum: {module.sum}")
        lines.append("Licence-Files:")
        for file, text in module.files:
            name = sha256_bytes(text.encode())[:16]
            texts[name] = text
            users[name] = users.get(name, 0) + 1
            lines.append(f" {file} = text {name}")
        lines.append("")
    for notice in notices:
        lines += ["-" * 78, notice.strip(), ""]
    for name in sorted(texts, key=lambda name: (-users[name], name)):
        lines += ["-" * 78, f"Text {name}, of {users[name]} {'file' if users[name] == 1 else 'files'}:", "", texts[name].strip("\n"), ""]
    return "\n".join(lines)


def _folders(go: Path, environment: Mapping[str, str], source: Source, names: Sequence[str]) -> dict[str, Path]:
    """Where the module cache has these modules of a lock; missing ones are fetched, and checked by go against go.sum."""
    with tempfile.TemporaryDirectory(prefix="ckp-licences-") as work:
        for file in ("go.mod", "go.sum"):
            shutil.copy(source.folder / file, work)

        def ask() -> dict[str, Path]:
            argv: list[str | Path] = [go, "list", "-mod=readonly", "-m", "-f", "{{.Path}}\t{{.Dir}}", *names]
            said = run(argv, cwd=Path(work), env=environment, timeout=300, what=f"finding the modules of {source.component}").stdout
            rows = (line.split("\t") for line in said.splitlines())
            return {name: Path(folder) for name, folder in rows if folder}

        found = ask()
        if missing := [name for name in names if name not in found]:
            run(
                [go, "mod", "download", *missing],
                cwd=Path(work),
                env=environment,
                timeout=900,
                what=f"fetching the sources of {source.component} for their licences",
                resolution="the module cache was cleaned after the build, and the module proxy cannot be reached: try again with it",
            )
            found = ask()
    return found


def _texts(folder: Path, what: str, *, deep: bool = True) -> tuple[tuple[str, str], ...]:
    """The licence files of a source, those at its root first."""
    found: list[tuple[str, str]] = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in PASSED_OVER and not name.startswith(".")) if deep else []
        for file in sorted(files):
            path = Path(place) / file
            if NAMES.fullmatch(file) and not file.lower().endswith(NOT_TEXT) and path.stat().st_size < 1 << 20:
                found.append((str(path.relative_to(folder)), _clean(path.read_bytes())))
    if not found:
        raise CkpError(f"the source of {what} has no licence file", resolution="find out under which terms it may be distributed before it is packaged")
    return tuple(sorted(found, key=lambda item: (item[0].count("/"), item[0])))


def _clean(raw: bytes) -> str:
    """A text as UTF-8 with plain line ends."""
    return raw.decode(errors="replace").replace("\r\n", "\n").replace("\r", "\n").replace("\f", "")
