"""Binaries to signed packages, deb and rpm: nFPM packs, our key signs.

A package's name, files, dependencies and scripts are data below `packaging/<name>/package.toml`. What they share is here: licences, changelog,
completions, fixed times. One deb serves Ubuntu 22.04, 24.04 and Debian 12, one rpm RHEL 9: the programs are static, and all these package
managers read zstd.

Versions are `X.Y.Z-ckp`: of a deb, the revision `ckp`; of an rpm, the release `ckp`. Among themselves they sort as X.Y.Z does, under dpkg and
rpm alike. Against upstream's (pkgs.k8s.io: deb `1.35.1-1.1`, rpm `1.35.1-150500.1.1`) the two differ: to dpkg a letter sorts after a digit, so
`1.35.1-ckp` is newer; to rpm a digit sorts after a letter, so it is older. A move between the same version of both is thus an upgrade one way and
a downgrade the other, and kubernetes-cni and cri-tools, whose versions a release pins, may be downgrades in any case.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ckp.clients.signing.openpgp import SigningKey
from ckp.distribution.builder.component import Built
from ckp.distribution.packages import completions, debs, licences
from ckp.distribution.packages.debs import SOURCE_DATE, ar_member, ar_members, sign_deb
from ckp.distribution.packages.recipefile import Strict, read_recipe
from ckp.distribution.packages.rpm import sign_rpm
from ckp.distribution.packages.rpm_payload import with_relative_paths
from ckp.kits import paths
from ckp.kits.errors import InvalidInput
from ckp.kits.files import building_directory, exclusive, sha256_bytes, sha256_file
from ckp.kits.processes import run
from ckp.verify.packagefile import MAINTAINER

__all__ = ["SOURCE_DATE", "Format", "Package", "Recipe", "ar_member", "ar_members", "copy_packages", "make_package", "pack_unsigned", "sign_deb"]

Format = Literal["deb", "rpm"]
Script = Literal["preinstall", "postinstall", "preremove", "postremove", "posttrans"]
"""nFPM's names; `posttrans` is rpm's alone, and runs once the files of the version before are gone."""
RECIPE = "4"
MAIL = "support@coredge.io"
BUILD_HOST = "ckp.invalid"
"""An rpm names the machine that it was built on. Ours names an invalid one, since the same input must give the same bytes everywhere."""
MTIME = "2026-01-01T00:00:00Z"
VERSION = re.compile(r"([0-9]+(?:\.[0-9]+)*(?:\+[0-9]+)?)-([a-z][a-z0-9]*)")


@dataclass(frozen=True)
class Package:
    """A signed package on disk.

    `version` is written alike for both: deb's `upstream-revision`, rpm's `VERSION-RELEASE`.
    """

    name: str
    version: str
    path: Path
    sha256: str
    format: Format = "deb"

    @property
    def architecture(self) -> str:
        """As the package manager calls it."""
        return "amd64" if self.format == "deb" else "x86_64"

    @property
    def file_name(self) -> str:
        """The canonical name, as repositories have it: `kubelet_1.35.1-ckp_amd64.deb`, `kubelet-1.35.1-ckp.x86_64.rpm`."""
        if self.format == "deb":
            return f"{self.name}_{self.version}_{self.architecture}.deb"
        return f"{self.name}-{self.version}.{self.architecture}.rpm"


class Content(Strict):
    """A file, folder or link of a package, or a tree: all folders and files below a source.

    Sources are `<component>/bin/<program>`, `<component>/files/<path>`, `self/<file>` (beside the recipe) or `extra/<name>` (given by the
    caller); of a link, its target. A `config` keeps what the host's owner wrote into it.
    """

    dst: str
    src: str = ""
    type: Literal["file", "config", "dir", "symlink", "tree"] = "file"
    mode: str = ""

    @property
    def permissions(self) -> int:
        """The mode, 0644 for files and 0755 for folders unless given."""
        return int(self.mode or ("0755" if self.type == "dir" else "0644"), 8)


class Completion(Strict):
    """A program that writes shell completions for itself."""

    program: str
    shells: tuple[completions.Shell, ...]


class Note(Strict):
    """A finding of lintian that is unavoidable with upstream's layout, and why."""

    tag: str
    context: str
    reason: str


class Side(Strict):
    """What only the deb or only the rpm has. `{component}` in a relation becomes that component's version."""

    section: str = "admin"
    depends: tuple[str, ...] = ()
    recommends: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()
    replaces: tuple[str, ...] = ()
    provides: tuple[str, ...] = ()
    contents: tuple[Content, ...] = ()
    scripts: dict[Script, str] = {}
    lint: tuple[Note, ...] = ()


class Data(Strict):
    """`package.toml`. `copyright` names the holders by component, `self` being CKP; `notices` are further licence texts beside the recipe."""

    summary: str
    description: str
    copyright: dict[str, str]
    contents: tuple[Content, ...] = ()
    completions: tuple[Completion, ...] = ()
    notices: tuple[str, ...] = ()
    deb: Side = Side()
    rpm: Side = Side()


@dataclass(frozen=True)
class Recipe:
    """`packaging/<name>/package.toml`: what goes in, and where it comes from."""

    name: str
    folder: Path
    data: Data

    @classmethod
    def read(cls, name: str) -> Recipe:
        """The recipe of the package `name`. InvalidInput names the file and the key that is wrong."""
        file = paths.data("packaging") / name / "package.toml"
        return cls(name, file.parent, read_recipe(file, Data, "a package"))

    def side(self, format: Format) -> Side:
        """What only this kind of package has."""
        return self.data.deb if format == "deb" else self.data.rpm

    def contents(self, format: Format) -> list[Content]:
        """All files of this kind of package, but for those that `pack_unsigned` adds to every package."""
        return [*self.data.contents, *self.side(format).contents]

    def source(self, reference: str, built: Mapping[str, Built], extra: Mapping[str, Path]) -> Path:
        """The file that a content's `src` names."""
        origin, _, rest = reference.partition("/")
        if origin == "self":
            return self.folder / rest
        if origin == "extra":
            return extra[rest]
        return built[origin].folder / rest

    def programs(self, format: Format) -> dict[str, list[str]]:
        """The programs in the package by the component that they are built from."""
        found: dict[str, list[str]] = {}
        for content in self.contents(format):
            origin, _, rest = content.src.partition("/")
            if content.type != "symlink" and rest.startswith("bin/"):
                found.setdefault(origin, []).append(rest.removeprefix("bin/"))
        return found


def make_package(
    recipe: Recipe,
    version: str,
    built: Mapping[str, Built],
    nfpm: Path,
    key: SigningKey,
    *,
    extra: Mapping[str, Path] | None = None,
    format: Format = "deb",
) -> Package:
    """Pack and sign a package, or find it in the cache, whose key covers the content, the recipe and the signing key's fingerprint.

    Raises:
        InvalidInput: the version is not `X.Y.Z-ckp`.
    """
    if not VERSION.fullmatch(version):
        raise InvalidInput(f"{version!r} is not a version of a package", resolution="write it as 1.35.1-ckp, which dpkg and rpm sort alike")
    name, inputs = recipe.name, extra or {}
    digest = _digest(recipe, version, built, inputs, format, key.subkey)
    final = paths.cache() / "packages" / f"{name}-{version}-{digest}"
    file = final / f"{name}.{format}"
    with exclusive(final.with_name(final.name + ".lock"), what=f"packing {name}", timeout=600):
        if not file.exists():
            with building_directory(final) as scratch:
                unsigned = scratch / f"unsigned.{format}"
                pack_unsigned(recipe, version, built, nfpm, unsigned, extra=inputs, format=format)
                (scratch / file.name).write_bytes(_sign(unsigned.read_bytes(), key, format))
                unsigned.unlink()
    return Package(name, version, file, sha256_file(file), format)


def _sign(unsigned: bytes, key: SigningKey, format: Format) -> bytes:
    return sign_deb(unsigned, key) if format == "deb" else sign_rpm(unsigned, key)


def _digest(recipe: Recipe, version: str, built: Mapping[str, Built], extra: Mapping[str, Path], format: Format, signer: str) -> str:
    """The content address of a package. Completions and licences follow from the programs, and so are not part of it."""
    parts = [RECIPE, version, format, signer, MAINTAINER, recipe.data.model_dump_json()]
    for content in recipe.contents(format):
        if content.src and content.type != "symlink":
            source = recipe.source(content.src, built, extra)
            parts.append(tree_digest(source) if content.type == "tree" else sha256_file(source))
    own = [*recipe.side(format).scripts.values(), *recipe.data.notices]
    parts += [sha256_file(recipe.folder / file) for file in own]
    return sha256_bytes("\n".join(parts).encode())[:20]


def tree_digest(folder: Path) -> str:
    """The content address of a folder: the names of what is in it, and each file's content."""
    return sha256_bytes("".join(f"{path.relative_to(folder)} {'' if path.is_dir() else sha256_file(path)}\n" for path in _below(folder)).encode())


def pack_unsigned(
    recipe: Recipe, version: str, built: Mapping[str, Built], nfpm: Path, target: Path, *, extra: Mapping[str, Path] | None = None, format: Format
) -> None:
    """Write the package without a signature to `target`: the same input gives the same bytes.

    Raises:
        CkpError: a licence cannot be found, a program does not write its completions, or nFPM refuses.
    """
    inputs = extra or {}
    with tempfile.TemporaryDirectory(prefix="ckp-nfpm-") as name:
        work = Path(name)
        contents = [entry for content in recipe.contents(format) for entry in _entries(content, recipe, built, inputs)]
        for number, (content, text) in enumerate(_added(recipe, built, inputs, format)):
            if content.type == "dir":
                contents.append(_nfpm_entry(content, ""))
                continue
            file = work / f"added-{number}"
            file.write_text(text)
            contents.append(_nfpm_entry(content, str(file)) | ({"type": "license"} if "/licenses/" in content.dst else {}))
        changelog = work / "changelog.yaml"
        changelog.write_text(json.dumps(_changelog(recipe, version)))
        config = work / "nfpm.yaml"
        config.write_text(json.dumps(_config(recipe, version, built, format, contents, changelog)))  # JSON is YAML
        run(
            [nfpm, "package", "--config", config, "--packager", format, "--target", target],
            timeout=300,
            # One thread: its zstd and gzip writers cut their blocks by how many there are.
            env={"SOURCE_DATE_EPOCH": SOURCE_DATE, "GOMAXPROCS": "1"},
            what=f"packing {recipe.name}",
        )
        if format == "rpm":
            target.write_bytes(with_relative_paths(target.read_bytes()))


def _entries(content: Content, recipe: Recipe, built: Mapping[str, Built], extra: Mapping[str, Path]) -> list[dict[str, Any]]:
    if content.type == "symlink":
        return [_nfpm_entry(content, content.src)]
    source = recipe.source(content.src, built, extra) if content.src else None
    if content.type == "tree":
        assert source is not None
        return [_tree_entry(f"{content.dst}/{path.relative_to(source)}", path) for path in _below(source)]
    return [_nfpm_entry(content, str(source or ""))]


def _tree_entry(dst: str, path: Path) -> dict[str, Any]:
    """Scripts are executable, whatever the builder's own copies are."""
    if path.is_dir():
        return _nfpm_entry(Content(dst=dst, type="dir"), "")
    with path.open("rb") as stream:
        script = stream.read(2) == b"#!"
    return _nfpm_entry(Content(dst=dst, mode="0755" if script else "0644"), str(path))


def _below(folder: Path) -> list[Path]:
    """All folders and files below a folder."""
    return sorted(folder.rglob("*"))


def _nfpm_entry(content: Content, source: str) -> dict[str, Any]:
    entry: dict[str, Any] = {"dst": content.dst, "type": "config|noreplace" if content.type == "config" else content.type}
    if source:
        entry["src"] = source
    entry["file_info"] = {"owner": "root", "group": "root", "mtime": MTIME} | ({} if content.type == "symlink" else {"mode": content.permissions})
    return entry


def _added(recipe: Recipe, built: Mapping[str, Built], extra: Mapping[str, Path], format: Format) -> list[tuple[Content, str]]:
    """What every package carries beside its recipe's files: completions, licences, and lintian overrides with their reasons."""
    found: list[tuple[Content, str]] = []
    for item in recipe.data.completions:
        program = recipe.source(item.program, built, extra)
        for shell in item.shells:
            found.append((Content(dst=completions.FOLDERS[format][shell].format(program.name)), completions.completion(program, shell)))
    programs = recipe.programs(format)
    linked = {role: licences.of_programs(built[role], programs[role]) for role in sorted(programs)}
    texts = {role: paths.data("LICENSE").read_text() if role == "self" else licences.own_licence(linked[role]) for role in recipe.data.copyright}
    modules = [module for part in (*linked.values(), *(licences.of_python(path) for path in extra.values())) for module in part]
    third_party = licences.render(modules, [(recipe.folder / file).read_text() for file in recipe.data.notices])
    if format == "rpm":
        folder = f"/usr/share/licenses/{recipe.name}"
        names = {role: "LICENSE" if number == 0 else f"LICENSE.{role}" for number, role in enumerate(texts)}
        return [
            *found,
            (Content(dst=folder, type="dir"), ""),
            *((Content(dst=f"{folder}/{names[role]}"), text) for role, text in texts.items()),
            (Content(dst=f"{folder}/THIRD_PARTY"), third_party),
        ]
    folder = f"/usr/share/doc/{recipe.name}"
    origins = [_origin(role, holder, built, texts[role]) for role, holder in recipe.data.copyright.items()]
    found += [(Content(dst=f"{folder}/copyright"), debs.copyright_file(recipe.name, origins)), (Content(dst=f"{folder}/THIRD_PARTY"), third_party)]
    zstd = "dpkg of Debian 12, Ubuntu 22.04 and 24.04 reads zstd; this rule is older"
    signature = "the signature, where debsigs puts it and deb(5) allows it: behind the others, with an underscore"
    notes = [("malformed-deb-archive", "*data.tar.zst*", zstd), ("misplaced-extra-member-in-deb", "_gpgorigin *", signature)]
    notes += [(note.tag, note.context, note.reason) for note in recipe.data.deb.lint]
    for content in recipe.contents(format):
        if content.type == "file" and content.src.partition("/")[2].startswith("bin/"):
            static = "Go links its programs statically; upstream's own are too, and so one package serves every distribution"
            notes.append(("statically-linked-binary", f"[{content.dst.lstrip('/')}]", static))
    return [*found, (Content(dst=f"/usr/share/lintian/overrides/{recipe.name}"), debs.lintian_overrides(recipe.name, notes))]


def _origin(role: str, holder: str, built: Mapping[str, Built], text: str) -> dict[str, str]:
    """A component as its paragraph of the copyright file needs it."""
    if role == "self":
        return {"name": "ckp", "version": "", "source": "https://coredge.io", "holder": holder, "licence": "Apache-2.0", "text": text}
    source = built[role].chosen.source
    origin = {"name": source.component, "version": source.version, "source": f"https://{source.upstream}"}
    return origin | {"holder": holder, "licence": source.license, "text": text}


def _changelog(recipe: Recipe, version: str) -> list[dict[str, Any]]:
    """One entry: upstream's changes are in upstream's changelog."""
    note = f"CKP's build of {recipe.name} from its source."
    entry = {"semver": version, "date": MTIME, "packager": f"{MAINTAINER} <{MAIL}>", "changes": [{"note": note}]}
    return [{**entry, "deb": {"urgency": "medium", "distributions": ["stable"]}}]


def _config(recipe: Recipe, version: str, built: Mapping[str, Built], format: Format, contents: list[dict[str, Any]], changelog: Path) -> dict[str, Any]:
    side, data = recipe.side(format), recipe.data
    upstream, _, revision = version.rpartition("-")
    versions = {role: item.chosen.source.version.removeprefix("v") for role, item in built.items()}

    scripts: dict[str, str] = {when: str(recipe.folder / file) for when, file in side.scripts.items()}

    def relations(items: tuple[str, ...]) -> list[str]:
        return [re.sub(r"\{([a-z0-9-]+)\}", lambda match: versions[match[1]], item) for item in items]

    config: dict[str, Any] = {
        "name": recipe.name,
        "arch": "amd64",
        "platform": "linux",
        "version": upstream,
        "release": revision,
        "version_schema": "none",
        "section": side.section,
        "priority": "optional",
        "maintainer": f"{MAINTAINER} <{MAIL}>",
        "vendor": MAINTAINER,
        "homepage": "https://coredge.io",
        "description": f"{data.summary}\n{data.description.strip()}" if format == "deb" else data.description.strip(),
        "depends": relations(side.depends),
        "recommends": relations(side.recommends),
        "conflicts": relations(side.conflicts),
        "replaces": relations(side.replaces),
        "provides": relations(side.provides),
        "mtime": MTIME,
        "contents": contents,
        "scripts": {when: file for when, file in scripts.items() if when != "posttrans"},
        "changelog": str(changelog),
        "disable_globbing": True,
    }
    if format == "deb":
        return config | {"deb": {"compression": "zstd"}}
    licence = " AND ".join(sorted({"Apache-2.0" if role == "self" else built[role].chosen.source.license for role in data.copyright}))
    packager = f"{MAINTAINER} <{MAIL}>"
    return config | {
        "license": licence,
        "rpm": {"compression": "zstd", "group": "System Environment/Base", "summary": data.summary, "packager": packager, "buildhost": BUILD_HOST}
        | ({"scripts": {"posttrans": scripts["posttrans"]}} if "posttrans" in scripts else {}),
    }


def copy_packages(packages: list[Package], folder: Path) -> None:
    """Copy packages into a folder under the names that bundles use, as hard links where the file system allows."""
    folder.mkdir(parents=True, exist_ok=True)
    for package in packages:
        target = folder / f"{package.name}.{package.format}"
        target.unlink(missing_ok=True)
        try:
            os.link(package.path, target)
        except OSError:
            shutil.copy(package.path, target)
