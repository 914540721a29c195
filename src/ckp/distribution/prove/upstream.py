"""What upstream declares of a component: its go.mod, go.sum, Go version and build script, out of the module zip whose hash the lock pins."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckp.distribution.builder.gobuildinfo import Module, read_mod, read_sums
from ckp.distribution.builder.toolchain import go_environment
from ckp.kits import paths
from ckp.kits.errors import CkpError, InvalidInput, VerificationFailed
from ckp.kits.files import CHUNK, atomic_write
from ckp.kits.processes import run

DOWNLOAD_TIMEOUT = 900.0
RECIPE = "1"
WANTED = ("go.mod", "go.sum", ".go-version", "hack/lib/golang.sh", "hack/lib/version.sh")
KUBERNETES = "k8s.io/kubernetes"
FILE_LIMIT = 16 << 20


@dataclass(frozen=True)
class Upstream:
    """What upstream's tree says at the version of `module`.

    Args:
        requires: path -> version, of go.mod.
        replaces: path -> (path, version) that takes its place, as far as it applies to what is required; the version is empty for a folder
            of upstream's tree.
        go: the release of Go that upstream builds with, where the tree says so (`.go-version`, or go.mod's toolchain).
        godebug: the Go version whose run-time defaults its programs have (go.mod's godebug or go line).
        files: the text of other files, by path in the tree.
    """

    module: Module
    requires: Mapping[str, str]
    replaces: Mapping[str, tuple[str, str]]
    sums: Mapping[tuple[str, str], str]
    go: str
    godebug: str
    files: Mapping[str, str]

    def expected(self, path: str) -> tuple[str, str, bool]:
        """Path and version that upstream links for a module, and whether it is a folder of upstream's tree; empty if its go.mod does not say."""
        required = self.requires.get(path, "")
        other, version = self.replaces.get(path, (path, required))
        return (other, version, False) if version or path not in self.replaces else (path, self.published(path, required), True)

    def published(self, path: str, required: str) -> str:
        """The version under which a folder of upstream's tree is published by itself: it is tagged with the tree's own version.

        Two exceptions: Kubernetes' staging modules, which are v0.X.Y for v1.X.Y, and a module of another major version (etcd's client/v2),
        whose version go.mod requires.
        """
        if self.module.path == KUBERNETES:
            return re.sub(r"^v1\.", "v0.", self.module.version)
        major = re.search(r"/v(\d+)$", path)
        own = self.module.version.split(".")[0]
        return self.module.version if own in ((f"v{major[1]}",) if major else ("v0", "v1")) else required


def read_upstream(go: Path, module: Module) -> Upstream:
    """Upstream's files of a module, which must have the hash that it was linked with.

    Raises:
        VerificationFailed: the zip has another hash.
        CkpError: it cannot be fetched.
    """
    if not module.sum:
        raise InvalidInput(f"{module} was linked without a hash, so there is nothing to compare it with")
    record = paths.cache() / "sbom" / "upstream" / f"{RECIPE}-{hashlib.sha256(f'{module} {module.sum}'.encode()).hexdigest()[:40]}.json"
    if record.exists():
        texts: dict[str, str] = json.loads(record.read_text())
    else:
        texts = _verified_texts(go, module)
        atomic_write(record, json.dumps(texts, sort_keys=True))
    return parse_upstream(go, module, texts)


def parse_upstream(go: Path, module: Module, texts: Mapping[str, str]) -> Upstream:
    """From the texts of upstream's files."""
    with tempfile.TemporaryDirectory(prefix="ckp-mod-") as work:
        file = Path(work) / "go.mod"
        file.write_text(texts["go.mod"])
        mod = read_mod(go, file)
    requires = {item["Path"]: item["Version"] for item in mod.get("Require") or ()}
    replaces = {
        item["Old"]["Path"]: (item["New"]["Path"], item["New"].get("Version", ""))
        for item in mod.get("Replace") or ()
        if item["Old"].get("Version", "") in ("", requires.get(item["Old"]["Path"], ""))
    }
    return Upstream(
        module,
        requires,
        replaces,
        read_sums(texts.get("go.sum", "")),
        texts.get(".go-version", "").strip() or str(mod.get("Toolchain") or "").removeprefix("go"),
        run_time_defaults(mod),
        {name: text for name, text in texts.items() if name.startswith("hack/")},
    )


def run_time_defaults(mod: Mapping[str, Any]) -> str:
    """The Go version whose GODEBUG defaults a main module's programs have, as `1.25` (https://go.dev/doc/godebug)."""
    explicit = [item["Value"] for item in mod.get("Godebug") or () if item["Key"] == "default"]
    version = str(explicit[0]).removeprefix("go") if explicit else str(mod.get("Go") or "1.20")
    major, minor = [*re.findall(r"\d+", version), "0", "0"][:2]
    return f"{major}.{max(int(minor), 20)}" if major == "1" else f"{major}.{minor}"


def _verified_texts(go: Path, module: Module) -> dict[str, str]:
    archive = download(go, module)
    prefix = f"{module.path}@{module.version}/"
    with zipfile.ZipFile(archive) as opened:
        names = {name for name in opened.namelist() if name.removeprefix(prefix) in WANTED and opened.getinfo(name).file_size <= FILE_LIMIT}
        return {name.removeprefix(prefix): opened.read(name).decode() for name in sorted(names)}


def download(go: Path, module: Module) -> Path:
    """The zip of a module, from the module cache or the proxy, with the hash that `module` says."""
    # The hash is checked below, against the one that was linked, so no other database of hashes is asked.
    environment = {**go_environment(), "GOSUMDB": "off"}
    argv: list[str | Path] = [go, "mod", "download", "-json", str(module)]
    answer = run(argv, cwd=Path("/"), env=environment, timeout=DOWNLOAD_TIMEOUT, what=f"fetching {module}", check=False)
    try:
        data = json.loads(answer.stdout or "{}")
    except json.JSONDecodeError:
        data = {}
    if answer.code != 0 or "Zip" not in data:
        raise CkpError(f"the source of {module} cannot be fetched", details=str(data.get("Error") or answer.stderr), resolution="check GOPROXY")
    found = zip_sum(Path(data["Zip"]))
    if found != module.sum:
        raise VerificationFailed(f"the source of {module} has the hash {found}, and the program was linked from {module.sum}")
    return Path(data["Zip"])


def zip_sum(archive: Path) -> str:
    """The go.sum hash of a module's zip: `h1:` and the SHA-256 of the list of its files' SHA-256, in base64.

    Rule: golang.org/x/mod/sumdb/dirhash, Hash1.
    """
    lines = []
    with zipfile.ZipFile(archive) as opened:
        for name in sorted(opened.namelist()):
            digest = hashlib.sha256()
            with opened.open(name) as stream:
                while chunk := stream.read(CHUNK):
                    digest.update(chunk)
            lines.append(f"{digest.hexdigest()}  {name}\n")
    return "h1:" + base64.b64encode(hashlib.sha256("".join(lines).encode()).digest()).decode()


def tree_differences(archive: Path, folder: Path) -> list[str]:
    """Files of a published module (its zip) that are not the same in a folder of upstream's tree, or of which one side has none.

    go.mod, go.sum and texts for people are published with changes; nothing of them is linked.
    """
    with zipfile.ZipFile(archive) as opened:
        published = {name.split("/", name.split("@")[0].count("/") + 1)[-1]: name for name in opened.namelist()}
        differing = []
        for path, name in sorted(published.items()):
            other = folder / path
            if _linked(path) and (not other.is_file() or other.read_bytes() != opened.read(name)):
                differing.append(path)
    nested = {item.parent for item in folder.rglob("go.mod") if item.parent != folder}
    for item in sorted(folder.rglob("*.go")):
        path = str(item.relative_to(folder))
        if path not in published and not nested & set(item.parents) and "vendor" not in item.relative_to(folder).parts:
            differing.append(path)
    return differing


def _linked(path: str) -> bool:
    name = path.rsplit("/", 1)[-1]
    return name not in ("go.mod", "go.sum", "OWNERS", "LICENSE", "CODEOWNERS") and not name.endswith(".md") and not path.startswith(".github/")
