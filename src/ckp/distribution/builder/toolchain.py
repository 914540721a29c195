"""Go toolchains by version, from the module proxy, checked against the catalog's hash before their first use."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from ckp.catalog.load import Catalog
from ckp.kits import paths
from ckp.kits.disks import disk_full, says_full
from ckp.kits.errors import CkpError, VerificationFailed
from ckp.kits.files import exclusive
from ckp.kits.processes import run

DOWNLOAD_TIMEOUT = 900.0


def go_environment(*, cgo: bool = False) -> dict[str, str]:
    """What every go command of ours runs with: our own caches, no workspace, no surprise from the user's settings."""
    root = paths.cache() / "go"
    return {
        "GOMODCACHE": str(root / "mod"),
        "GOCACHE": str(root / "build"),
        "GOFLAGS": "-buildvcs=false",
        "GOWORK": "off",
        "GOTOOLCHAIN": "local",
        "GOOS": "linux",
        "GOARCH": "amd64",
        "GOAMD64": "v1",
        "CGO_ENABLED": "1" if cgo else "0",
    }


def ensure_toolchain(catalog: Catalog, version: str) -> Path:
    """The `go` program of Go `version`.

    Any Go that can download modules bootstraps it (the toolchains are modules: golang.org/toolchain).

    Raises:
        CkpError: there is no Go at all, or the proxy does not serve the toolchain.
        VerificationFailed: what came is not what the catalog pins.
    """
    expected = catalog.toolchain_sum(version)
    with exclusive(paths.cache() / "go" / f"toolchain-{version}.lock", what=f"fetching Go {version}", timeout=DOWNLOAD_TIMEOUT):
        goroot = paths.cache() / "go" / "mod" / "golang.org" / f"toolchain@v0.0.1-go{version}.linux-amd64"
        verified = paths.cache() / "go" / f"toolchain-{version}.verified"
        if verified.exists() and verified.read_text() == expected and (goroot / "bin" / "go").exists():
            return goroot / "bin" / "go"
        bootstrap = shutil.which("go")
        if bootstrap is None:
            raise CkpError("there is no Go on this machine to fetch the pinned toolchain with", resolution="run `make setup`, which installs one")
        result = run(
            [bootstrap, "mod", "download", "-json", f"golang.org/toolchain@v0.0.1-go{version}.linux-amd64"],
            cwd=Path("/"),
            env=go_environment(),
            timeout=DOWNLOAD_TIMEOUT,
            what=f"downloading Go {version}",
            check=False,
        )
        answer = json.loads(result.stdout or "{}")
        if result.code != 0 or "Dir" not in answer:
            said = str(answer.get("Error") or result.stderr)
            if says_full(said):
                raise disk_full(f"Go {version} could not be downloaded", details=said)
            raise CkpError(f"Go {version} could not be downloaded", details=said)
        if answer["Sum"] != expected:
            raise VerificationFailed(f"Go {version} has the hash {answer['Sum']}, the catalog pins {expected}")
        for program in [*Path(answer["Dir"]).glob("bin/*"), *Path(answer["Dir"]).glob("pkg/tool/*/*")]:
            # The module zip carries no modes; the go command sets these bits itself when it switches toolchains.
            os.chmod(program, 0o755)  # noqa: S103
        verified.write_text(expected)
        return Path(answer["Dir"]) / "bin" / "go"
