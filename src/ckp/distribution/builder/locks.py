"""Source locks of Kubernetes and the releases that go with them, made from what upstream published.

Kubernetes requires its staging modules (k8s.io/api and others) at v0.0.0 and replaces them by folders of its own repository, which a module
does not carry. Upstream publishes the same folders as modules of their own, k8s.io/* v0.Y.Z with Kubernetes v1.Y.Z; the lock names those.
"""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from ckp.catalog.check import KUBERNETES
from ckp.catalog.load import Catalog
from ckp.catalog.matrix import minor_of
from ckp.catalog.models import Source, version_key
from ckp.catalog.render import write_page
from ckp.distribution.builder.gofailures import explain
from ckp.distribution.builder.toolchain import ensure_toolchain, go_environment
from ckp.kits import paths
from ckp.kits.errors import CkpError, Conflict, InvalidInput, NotFound
from ckp.kits.files import atomic_write, building_directory, exclusive
from ckp.kits.processes import ProcessFailed, run

MODULE = "k8s.io/kubernetes"
STATUS = "Candidate"
VERSION = re.compile(r"v(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)")
GO_VERSION = re.compile(r"1\.\d+(\.\d+)?")
LOOKUP_SECONDS = 120.0
DOWNLOAD_SECONDS = 1800.0
UNCHANGED = "nothing was changed"


@dataclass(frozen=True)
class Upstream:
    """One version of Kubernetes, as the module proxy gives it.

    `go` is the toolchain that upstream builds it with (.go-version), `go_mod` the language version of its go.mod; `commit` is empty where the proxy
    does not say it; `date` is that of the commit.
    """

    version: str
    folder: Path
    go: str
    go_mod: str
    requires: tuple[tuple[str, str], ...]
    commit: str
    date: str


@dataclass(frozen=True)
class Added:
    """What `add_release` wrote; `toolchain` is the Go version that was added to the catalog, if one was."""

    release: Path
    lock: Path
    base: str
    toolchain: str
    page: Path | None


def add_release(catalog: Catalog, version: str, say: Callable[[str], None], *, base: str | None = None) -> Added:
    """Add a release of another version of Kubernetes: its file, its source lock, and the toolchain if the catalog lacks it. All or nothing.

    All is made and verified apart, then moved into the catalog; the release's file comes last. Whatever was cut short is done again.

    Args:
        say: takes lines of progress.
        base: the release that all other versions are taken from; by default the newest of the same minor, else of the nearest.

    Raises:
        InvalidInput: it is not a version, or it is outside the compatibility matrix.
        Conflict: the release is in the catalog already.
        NotFound: the module proxy does not serve it.
        CkpError: one of its modules can't be had, or what came does not hold together.
    """
    if not VERSION.fullmatch(version):
        raise InvalidInput(f"{version!r} is not a version of Kubernetes", resolution="write it as v1.35.2")
    with exclusive(paths.cache() / "release-add.lock", what="adding a release", timeout=DOWNLOAD_SECONDS):
        if version in catalog.names():
            raise Conflict(f"{version} is in the catalog already: {catalog.release_path(version)}", resolution=f"`ckp release show {version}` shows it")
        minors, minor = catalog.matrix().minors, minor_of(version)
        if minor not in minors:
            raise InvalidInput(
                f"{version} is outside the compatibility matrix, which has {', '.join(minors)}",
                resolution=f'if {minor} is to be supported, add "{minor}" to `minors` in {catalog.root / "matrix.toml"} and run it again',
            )
        base = base or nearest(catalog.names(), version)
        release = catalog.release(base)
        say(f"everything but Kubernetes is taken from {base}")
        upstream = fetch_upstream(catalog.source(KUBERNETES, release.name), version)
        work = paths.cache() / "release-add"
        shutil.rmtree(work, ignore_errors=True)  # what a killed run left
        work.mkdir()
        try:
            staged, toolchain = _staged(catalog, work, base, upstream, say)
            return _publish(catalog, staged, version, base, toolchain)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def nearest(names: list[str], version: str) -> str:
    """Of `names`, the newest release of the same minor, else of the nearest minor, the newer one of two."""
    if not names:
        raise NotFound("the catalog has no release to take the other versions from", resolution="restore catalog/releases")
    wanted = version_key(version)
    return min(names, key=lambda name: (abs(version_key(name)[1] - wanted[1]), [-part for part in version_key(name)]))


# -- what upstream published -------------------------------------------------------------------------------------------


def fetch_upstream(base: Source, version: str) -> Upstream:
    """Fetch Kubernetes' module and read what the lock needs. `base` is the lock of another version.

    Raises:
        NotFound: the module proxy does not serve it.
    """
    answer = _download(f"{MODULE}@{version}")
    if "Dir" not in answer:
        said = str(answer.get("Error", ""))
        if not re.search(r": (403|404|410) |unknown revision|no matching versions|no such file", said):
            source = base.model_copy(update={"version": version})
            raise explain(ProcessFailed(f"{MODULE} {version} could not be fetched from {_proxy()}", details=said, resolution=UNCHANGED), source)
        listed = _listed(version)
        raise NotFound(
            f"Kubernetes {version} is not served by {_proxy()}",
            details=said,
            resolution=f"{UNCHANGED}; use a GOPROXY that serves it" + (f", or ask for one that it lists: {', '.join(listed)}" if listed else ""),
        )
    folder = Path(answer["Dir"])
    info = json.loads(Path(answer["Info"]).read_text())
    origin = answer.get("Origin") or info.get("Origin") or {}
    go = (folder / ".go-version").read_text().strip()
    if not GO_VERSION.fullmatch(go):
        raise CkpError(f"{MODULE} {version} names {go!r} in .go-version, which is not a version of Go")
    edited = run([_bootstrap(), "mod", "edit", "-json", folder / "go.mod"], env=go_environment(), timeout=LOOKUP_SECONDS, what="reading upstream's go.mod")
    parsed = json.loads(edited.stdout)
    requires = tuple(sorted((item["Path"], item["Version"]) for item in parsed["Require"]))
    return Upstream(version, folder, go, str(parsed["Go"]), requires, str(origin.get("Hash", "")), str(info["Time"]))


def _bootstrap() -> str:
    program = shutil.which("go")
    if program is None:
        raise CkpError("there is no Go on this machine to ask the module proxy with", resolution="run `make setup`, which installs one")
    return program


def _download(module: str) -> dict[str, Any]:
    """What the go command says of a module that it downloads; its sums are checked against the checksum database, unless GONOSUMDB says otherwise."""
    argv = [_bootstrap(), "mod", "download", "-json", module]
    ended = run(argv, cwd=Path("/"), env=go_environment(), timeout=DOWNLOAD_SECONDS, what=f"downloading {module}", check=False)
    answer: dict[str, Any] = json.loads(ended.stdout or "{}")
    return answer if ended.code == 0 else {"Error": answer.get("Error") or ended.stderr}


def _listed(version: str) -> list[str]:
    """Versions of the same minor that the proxy lists; a proxy need not list all that it serves."""
    argv = [_bootstrap(), "list", "-m", "-versions", "-json", MODULE]
    ended = run(argv, cwd=Path("/"), env=go_environment(), timeout=LOOKUP_SECONDS, check=False)
    found = json.loads(ended.stdout).get("Versions", []) if ended.code == 0 and ended.stdout else []
    return [name for name in found if VERSION.fullmatch(name) and minor_of(name) == minor_of(version)]


def _proxy() -> str:
    """GOPROXY as the go command sees it, without passwords."""
    value = run([_bootstrap(), "env", "GOPROXY"], timeout=LOOKUP_SECONDS, what="reading GOPROXY").stdout.strip()
    parts = [urlsplit(part) for part in value.replace("|", ",").split(",")]
    return "GOPROXY=" + ",".join(urlunsplit(part._replace(netloc=part.netloc.rpartition("@")[2])) for part in parts)


def _refusals(said: str) -> list[str]:
    """Modules that the go command could not get or check, each once, with the answer."""
    found: dict[str, str] = {}
    for match in re.finditer(r"(\S+?)@(v[\w.+-]+)(?:/go\.mod)?: reading (\S+): ((?:40[0-9]|410|5[0-9]{2}) [^\n]*)", said):
        lookup = "/lookup/" in match[3] or "/tile/" in match[3]
        found.setdefault(f"{match[1]} {match[2]}", f"the checksum database's answer is {match[4]}" if lookup else match[4])
    return [f"{module}: {answer}" for module, answer in sorted(found.items())]


# -- the lock ----------------------------------------------------------------------------------------------------------


def go_mod_text(upstream: Upstream) -> str:
    """The lock's go.mod: upstream's own requirements, the staging modules at v0.Y.Z."""
    staging = "v0." + upstream.version.partition(".")[2]
    replaced = [path for path, version in upstream.requires if version == "v0.0.0"]
    lines = [f"module ckp.coredge.io/lock/{KUBERNETES}", "", f"go {upstream.go_mod}", "", "require (", f"\t{MODULE} {upstream.version}", ")", "", "require ("]
    lines += [f"\t{path} {staging if version == 'v0.0.0' else version} // indirect" for path, version in upstream.requires]
    lines += [")", "", "replace (", *(f"\t{path} v0.0.0 => {path} {staging}" for path in replaced), ")", ""]
    return "\n".join(lines)


def source_text(base: str, upstream: Upstream) -> str:
    """The lock's source.toml: that of another version, with what is this version's own."""
    major, minor = version_key(upstream.version)[:2]
    text = _with_lines(
        base,
        "lock",
        "correct its source.toml",
        (
            (r'^version = ".*"$', f'version = "{upstream.version}"'),
            (r"^modules = \[.*\]$", f'modules = ["{MODULE}@{upstream.version}"]'),
            (r'^go = ".*"$', f'go = "{upstream.go}"'),
            (r'^commit = ".*"$', f'commit = "{upstream.commit}"'),
            (r'^date = ".*"$', f'date = "{upstream.date}"'),
        ),
    )
    return re.sub(r"\.gitMinor=\d+", f".gitMinor={minor}", re.sub(r"\.gitMajor=\d+", f".gitMajor={major}", text))


def release_text(base: str, version: str) -> str:
    """A release's file: that of another release, with this version of Kubernetes, and without a stand-in for Kubernetes: this lock was verified."""
    text = _with_lines(
        base,
        "release",
        "correct its file",
        (
            (r'^name = ".*"$', f'name = "{version}"'),
            (r'^stamp = ".*"$', f'stamp = "{version}-ckp"'),
            (r'^status = ".*"$', f'status = "{STATUS}"'),
            (rf'^{KUBERNETES} = ".*"$', f'{KUBERNETES} = "{version}"'),
        ),
    )
    return re.sub(rf"(^#[^\n]*\n)*^{KUBERNETES} = \{{[^\n]*\n", "", text, flags=re.MULTILINE)


def _with_lines(text: str, what: str, resolution: str, lines: Iterable[tuple[str, str]]) -> str:
    """The text with each line that a pattern finds replaced. CkpError unless each finds exactly one."""
    for pattern, line in lines:
        text, count = re.subn(pattern, line, text, flags=re.MULTILINE)
        if count != 1:
            raise CkpError(f"the {what} that this one is made from has {count} lines like {pattern}, and must have one", resolution=resolution)
    return text


def toolchains_text(base: str, go: str, checksum: str) -> str:
    """toolchains.toml with one more toolchain, in the order of versions."""
    entry = f'["{go}"]  # {KUBERNETES}\nsum = "{checksum}"\n'
    for match in re.finditer(r'^\["([\d.]+)"\]', base, flags=re.MULTILINE):
        if version_key(match[1]) > version_key(go):
            return f"{base[: match.start()]}{entry}\n{base[match.start() :]}"
    return f"{base.rstrip()}\n\n{entry}"


def _staged(catalog: Catalog, root: Path, base: str, upstream: Upstream, say: Callable[[str], None]) -> tuple[Catalog, str]:
    """A catalog apart, with the new release only, checked as a build would check it; and the Go version that is new, if one is."""
    staged, toolchain = Catalog(root), ""
    shutil.copy(catalog.root / "matrix.toml", root)
    toolchains = (catalog.root / "toolchains.toml").read_text()
    if upstream.go not in tomllib.loads(toolchains):
        answer = _download(f"golang.org/toolchain@v0.0.1-go{upstream.go}.linux-amd64")
        if "Sum" not in answer:
            raise NotFound(
                f"Go {upstream.go}, which upstream builds {upstream.version} with, is not served by {_proxy()}",
                details=str(answer.get("Error", "")),
                resolution=f"{UNCHANGED}; use a GOPROXY that serves it",
            )
        toolchain, toolchains = upstream.go, toolchains_text(toolchains, upstream.go, answer["Sum"])
        say(f"Go {upstream.go} is new to the catalog: {answer['Sum']}")
    (root / "toolchains.toml").write_text(toolchains)
    (root / "releases").mkdir()
    staged.release_path(upstream.version).write_text(release_text(catalog.release_path(base).read_text(), upstream.version))
    (root / "sources").mkdir()
    for folder in (catalog.root / "sources").iterdir():
        if folder.name != KUBERNETES:
            (root / "sources" / folder.name).symlink_to(folder.resolve())
    kept, lock = catalog.source_path(KUBERNETES, upstream.version), staged.source_path(KUBERNETES, upstream.version)
    if kept.exists():
        say(f"the lock {kept} exists, and is kept")
        shutil.copytree(kept, lock)
        source = catalog.source(KUBERNETES, upstream.version)
    else:
        _make_lock(staged, (catalog.source_path(KUBERNETES, base) / "source.toml").read_text(), upstream, lock, say)
        source = staged.source(KUBERNETES, upstream.version)
    _verify(staged, source, upstream)
    if findings := staged.check(upstream.version):
        raise CkpError(f"{upstream.version} is inconsistent", details="\n".join(findings), resolution=UNCHANGED)
    say(f"verified: every package of {', '.join(binary.name for binary in source.binaries)} resolves from the lock")
    return staged, toolchain


def _make_lock(staged: Catalog, base: str, upstream: Upstream, lock: Path, say: Callable[[str], None]) -> None:
    """Upstream's own go.sum comes first, since not everybody can look up all of its hashes; the go command adds the staging modules' hashes,

    which it checks against the checksum database.
    """
    lock.mkdir(parents=True)
    (lock / "source.toml").write_text(source_text(base, upstream))
    (lock / "go.mod").write_text(go_mod_text(upstream))
    (lock / "go.sum").write_bytes((upstream.folder / "go.sum").read_bytes())
    say(f"{MODULE} {upstream.version} of {upstream.date}, commit {upstream.commit or 'not named by the proxy'}, Go {upstream.go}; fetching its modules")
    parsed = Source(**tomllib.loads((lock / "source.toml").read_text()), folder=lock)
    _list_packages(staged, parsed, "mod")


def _list_packages(staged: Catalog, source: Source, mode: str) -> None:
    go = ensure_toolchain(staged, source.go)
    argv: list[str | Path] = [go, "list", f"-mod={mode}", "-deps", "-tags", ",".join(source.tags), *(binary.package for binary in source.binaries)]
    what = f"resolving the packages of {source.component} {source.version}"
    ended = run(argv, cwd=source.folder, env=go_environment(cgo=source.cgo), timeout=DOWNLOAD_SECONDS, what=what, check=False)
    if ended.code == 0:
        return
    said = "\n".join(line for line in ended.stderr.splitlines() if not line.startswith("go: downloading "))
    if refused := _refusals(said):
        raise NotFound(
            f"Kubernetes {source.version} can't be locked: {len(refused)} of its modules cannot be fetched or checked by {_proxy()}",
            details="\n".join(refused),
            resolution=f"{UNCHANGED}; use a GOPROXY (and a GOSUMDB) that has them: a hash that was not checked is not written to a lock",
        )
    raise explain(ProcessFailed(f"{what} failed with exit code {ended.code}", details=said, resolution=UNCHANGED), source)


def _verify(staged: Catalog, source: Source, upstream: Upstream) -> None:
    """A build could take every package and file from the lock as it is."""
    _list_packages(staged, source, "readonly")
    for item in source.files:
        if item.module == MODULE and not (upstream.folder / item.path).exists():
            raise CkpError(f"{MODULE} {upstream.version} has no {item.path}, which the lock names", resolution=f"{UNCHANGED}; use another release with --from")


def _publish(catalog: Catalog, staged: Catalog, version: str, base: str, toolchain: str) -> Added:
    """Move what is verified into the catalog; what names the others comes last."""
    if toolchain:
        atomic_write(catalog.root / "toolchains.toml", (staged.root / "toolchains.toml").read_text())
    lock = catalog.source_path(KUBERNETES, version)
    if not lock.exists():
        with building_directory(lock) as scratch:
            for name in ("go.mod", "go.sum", "source.toml"):
                (scratch / name).write_bytes((staged.source_path(KUBERNETES, version) / name).read_bytes())
    release = catalog.release_path(version)
    atomic_write(release, staged.release_path(version).read_text())
    return Added(release, lock, base, toolchain, write_page(catalog))
