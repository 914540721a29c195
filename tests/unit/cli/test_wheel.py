"""The wheel of this project works where there is no checkout: it is built, installed into an environment of its own, and used from there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ckp import __version__
from ckp.catalog.load import Catalog
from ckp.distribution.images.make import platform_code
from ckp.distribution.packages.agent import agent_version, write_zipapp
from ckp.distribution.packages.command import build_wheel
from ckp.kits import paths
from ckp.kits.errors import NotFound
from tests.support.checkout import REPO

DATA = ("catalog/", "deploy/", "packaging/", "requirements/")

# Run by the installed wheel's Python: reads all recipes and manifests, and copies its own code as a release does.
PROBE = """
import json, sys, tempfile
from pathlib import Path
import ckp
from ckp.distribution.images.make import platform_code
from ckp.distribution.management import Management
from ckp.distribution.packages.agent import agent_version, write_zipapp
from ckp.distribution.packages.pack import Recipe
from ckp.kits import paths

work = Path(sys.argv[1])
write_zipapp(work / "ckp-agent", [])
images = {"ckp-platform": "v1", "ckp-addons": "v1", "ckp-backup": "v1", "ckp-packages": "v1"}
names = ("COMPASS_ADDRESS", "HUB_ADDRESS", "LB_FIRST", "LB_LAST", "RESERVED_CIDRS", "RELEASES_DIGEST")
settings = dict.fromkeys(names, "x") | dict.fromkeys(("COMPASS_NAMES", "HUB_NAMES"), ', "x.test"')
management = Management({}, "registry.test/ckp", images)
recipes = sorted(path.parent.name for path in paths.data("packaging").glob("*/package.toml"))
print(json.dumps({
    "package": str(Path(ckp.__file__).parent),
    "path": sys.path,
    "recipes": {name: Recipe.read(name).data.summary for name in recipes},
    "objects": sorted({obj["kind"] for obj in management.foundation() + management.ckp(settings)}),
    "platform_code": platform_code().name,
    "agent": agent_version(work / "keyring"),
}))
"""


@dataclass(frozen=True)
class Installed:
    """The wheel and an environment with it, the project's own dependencies and no checkout."""

    wheel: Path
    root: Path

    @property
    def python(self) -> Path:
        """The environment's Python."""
        return self.root / "environment" / "bin" / "python"

    def run(self, *argv: str | Path, code: int = 0) -> str:
        """Run in an empty folder, without the PYTHONPATH of the tests."""
        here = self.root / "elsewhere"
        here.mkdir(exist_ok=True)
        env = {"PATH": os.environ["PATH"], "HOME": str(here), "CKP_CACHE": str(self.root / "cache"), "CKP_KEYS": str(self.root / "keys")}
        done = subprocess.run(list(map(str, argv)), cwd=here, env=env, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == code, f"{argv} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done.stdout if code == 0 else done.stderr

    def ckp(self, *arguments: str, code: int = 0) -> str:
        """The installed command."""
        return self.run(self.python.with_name("ckp"), *arguments, code=code)

    def names(self) -> set[str]:
        """The files of the wheel."""
        with zipfile.ZipFile(self.wheel) as archive:
            return set(archive.namelist())


def project_files() -> list[str]:
    """The files of the project: what git tracks, or would."""
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=REPO, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.split("\0") if name and (REPO / name).is_file()]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Build and install it. Nothing is downloaded: setuptools and all dependencies are those of the environment that the tests run in."""
    root = tmp_path_factory.mktemp("wheel")
    for name in project_files():
        target = root / "project" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPO / name, target)
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-w", root, root / "project"], check=True, timeout=300)
    shutil.rmtree(root / "project")
    (wheel,) = root.glob("ckp-*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root / "environment"], check=True, timeout=120)
    (site,) = (root / "environment" / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run([*pip, "--python", root / "environment/bin/python", "install", "--no-deps", "--no-index", wheel], check=True, timeout=300)
    return Installed(wheel, root)


def test_the_wheel_has_all_data_and_all_code(installed: Installed) -> None:
    data = [name for name in project_files() if name.startswith(DATA) and not name.startswith("packaging/setup/")]
    code = [name.removeprefix("src/") for name in project_files() if name.startswith("src/ckp/")]
    wanted = {*code, *(f"ckp/_data/{name}" for name in data), "ckp/_data/LICENSE"}
    assert len(data) > 100 and sorted(wanted - installed.names()) == []


def test_the_wheel_has_nothing_else(installed: Installed) -> None:
    known = {name.removeprefix("src/") for name in project_files() if name.startswith("src/ckp/")} | {f"ckp/_data/{name}" for name in project_files()}
    foreign = {name for name in installed.names() if name not in known and not name.startswith(f"ckp-{__version__}.dist-info/")}
    assert sorted(foreign) == []
    assert not any(name.startswith("ckp/_data/packaging/setup") for name in installed.names()), "a machine is prepared for a checkout, not for a wheel"


def test_what_is_released_is_the_same_wheel_and_the_same_twice(installed: Installed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for name in ("one", "two"):
        monkeypatch.setenv("CKP_CACHE", str(tmp_path / name))
        made.append(build_wheel())
    assert made[0].read_bytes() == made[1].read_bytes()
    with zipfile.ZipFile(made[0]) as archive:
        assert set(archive.namelist()) == installed.names()
    assert build_wheel() == made[1], "it is kept"


def test_the_command_answers_without_a_checkout(installed: Installed) -> None:
    assert installed.run(installed.python.with_name("kubectl-ckp"), "--version") == f"ckp, version {__version__}\n"
    site = ["--name", "berlin", "--host", "n=192.0.2.11", "--network", "192.0.2.0/24", "--pool", "192.0.2.200-192.0.2.249"]
    assert installed.ckp("site", "init", *site, "--force") == "wrote site.yaml\n"
    assert installed.ckp("--help").startswith("Usage: ckp [OPTIONS] COMMAND")
    assert installed.ckp("--version") == f"ckp, version {__version__}\n"
    assert [line.split()[0] for line in installed.ckp("release", "list").splitlines()[1:]] == Catalog().names()
    assert "v1.35.1" in installed.ckp("release", "show", "v1.35.1")
    assert installed.ckp("release", "check").startswith("consistent: ")
    assert "usage: " in installed.ckp("standalone", "install", "--help").lower()


def test_the_catalog_of_an_installation_is_not_changed(installed: Installed) -> None:
    error = installed.ckp("release", "add", "v1.35.2", code=2)
    assert "the catalog of an installed ckp is not changed" in error and "in a checkout" in error


def test_a_release_made_by_the_wheel_has_the_code_that_a_checkout_puts_in(installed: Installed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keyring").write_bytes(b"keys")
    found: dict[str, Any] = json.loads(installed.run(installed.python, "-c", PROBE, tmp_path))
    assert Path(found["package"]).is_relative_to(installed.root) and not any(Path(item).is_relative_to(REPO / "src") for item in found["path"])
    assert found["recipes"].keys() == {path.parent.name for path in (REPO / "packaging").glob("*/package.toml")}
    assert {"CustomResourceDefinition", "Deployment", "Namespace"} <= set(found["objects"])
    monkeypatch.setenv("CKP_CACHE", str(tmp_path / "cache"))
    assert found["platform_code"] == platform_code().name
    assert found["agent"] == agent_version(tmp_path / "keyring")
    write_zipapp(tmp_path / "ours", [])
    digests = {hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("ours", "ckp-agent")}
    assert len(digests) == 1, "equal sources give equal bytes, wherever they lie"
    assert installed.run("python3", "-I", tmp_path / "ckp-agent", "--version").startswith(__version__)


def test_data_that_are_missing_are_named(installed: Installed) -> None:
    (manifest,) = (installed.root / "environment" / "lib").glob("python*/site-packages/ckp/_data/catalog/matrix.toml")
    hidden = manifest.parent.with_name("hidden")
    manifest.parent.rename(hidden)
    try:
        error = installed.ckp("release", "list", code=1)
    finally:
        hidden.rename(manifest.parent)
    assert "/ckp/_data/catalog is missing from this installation of CKP" in error and "install ckp again" in error


def test_a_checkout_is_found_by_its_code() -> None:
    assert paths.checkout() == REPO and paths.source() == REPO / "src" / "ckp"
    assert paths.data("deploy") == REPO / "deploy"
    with pytest.raises(NotFound, match=r"deploy/99-nothing\.yaml is missing"):
        paths.data("deploy", "99-nothing.yaml")
