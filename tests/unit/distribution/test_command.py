"""The Python environment of `ckp`: which wheels it takes, and how those of several Pythons share a folder. No network: the wheels are the tests' own."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner

from ckp import __version__
from ckp.cli.distribution.package import dist_package
from ckp.distribution.builder.wheels import install_locked
from ckp.distribution.packages import command
from ckp.distribution.packages.command import PYTHONS, build_wheel, command_version, environment
from ckp.distribution.packages.pack import VERSION, Recipe
from ckp.kits import paths
from ckp.kits.errors import CkpError, InvalidInput
from ckp.kits.files import sha256_file
from tests.support.checkout import REPO


def wheel(folder: Path, name: str, tag: str, files: Mapping[str, str]) -> Path:
    """A wheel of one distribution, version 1.0."""
    path = folder / f"{name}-1.0-{tag}.whl"
    about = f"{name}-1.0.dist-info"
    own = {f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", f"{about}/WHEEL": f"Wheel-Version: 1.0\nTag: {tag}\n"}
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in {**files, **own}.items():
            archive.writestr(file, text)
        archive.writestr(f"{about}/RECORD", "".join(f"{file},,\n" for file in (*files, *own, f"{about}/RECORD")))
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes wheels from, and from nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("CKP_CACHE", str(tmp_path / "cache"))
    return folder


def lock(folder: Path, *wheels: Path) -> Path:
    """Requirements that take these wheels and no others."""
    hashes: dict[str, list[str]] = {}
    for item in wheels:
        hashes.setdefault(item.name.partition("-")[0], []).append(f"--hash=sha256:{sha256_file(item)}")
    file = folder / "locked.txt"
    file.write_text("".join(f"{name}==1.0 {' '.join(found)}\n" for name, found in hashes.items()))
    return file


def compiled(index: Path, python: str, *, glibc: int = 34, shared: str = "shared = 1\n") -> Path:
    """A wheel with a module that is compiled for one Python."""
    abi = f"cp{python.replace('.', '')}"
    files = {"parts/__init__.py": shared, f"parts/fast.cpython-{abi[2:]}-x86_64-linux-gnu.so": python, "bin/run": "#!/bin/sh\n"}
    return wheel(index, "parts", f"{abi}-{abi}-manylinux_2_{glibc}_x86_64", files)


def test_pythons_share_what_is_the_same_and_keep_what_is_compiled_apart(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requirements = lock(tmp_path, *(compiled(index, python) for python in PYTHONS))
    monkeypatch.setattr(paths, "data", lambda *parts: requirements if parts == ("requirements", "site.txt") else REPO.joinpath(*parts))
    made = environment(wheel(tmp_path, "ckp", "py3-none-any", {"ckp/__init__.py": "", "ckp/_data/LICENSE": "x"}))
    found = {str(path.relative_to(made)) for path in made.rglob("*") if path.is_file()}
    extensions = {f"parts/fast.cpython-{python.replace('.', '')}-x86_64-linux-gnu.so" for python in PYTHONS}
    words = {f"{name}-1.0.dist-info/METADATA" for name in ("parts", "ckp")}
    assert found == {"parts/__init__.py", "ckp/__init__.py", "ckp/_data/LICENSE", *extensions, *words}
    assert environment(wheel(tmp_path, "ckp", "py3-none-any", {"ckp/__init__.py": "changed"})) != made


def test_wheels_that_differ_under_one_name_share_no_folder(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requirements = lock(tmp_path, *(compiled(index, python, shared=f"for = '{python}'\n") for python in PYTHONS))
    monkeypatch.setattr(paths, "data", lambda *parts: requirements if parts == ("requirements", "site.txt") else REPO.joinpath(*parts))
    with pytest.raises(CkpError, match=r"parts/__init__\.py differs between wheels"):
        environment(wheel(tmp_path, "ckp", "py3-none-any", {"ckp/__init__.py": ""}))


@pytest.mark.parametrize("glibc", [command.GLIBC, command.GLIBC + 1])
def test_a_wheel_for_a_newer_system_is_not_taken(index: Path, tmp_path: Path, glibc: int) -> None:
    requirements, target = lock(tmp_path, compiled(index, "3.11", glibc=glibc)), tmp_path / "target"
    if glibc > command.GLIBC:
        with pytest.raises(CkpError, match=r"fetching the Python packages of locked\.txt"):
            install_locked(requirements, target, python="3.11", glibc=command.GLIBC)
    else:
        install_locked(requirements, target, python="3.11", glibc=command.GLIBC)
        assert (target / "parts/__init__.py").exists() and not (target / "bin").exists()


def test_a_wheel_with_another_hash_than_is_locked_is_not_taken(index: Path, tmp_path: Path) -> None:
    requirements = lock(tmp_path, compiled(index, "3.11"))
    compiled(index, "3.11", shared="changed = 1\n")
    with pytest.raises(CkpError, match=r"fetching the Python packages of locked\.txt"):
        install_locked(requirements, tmp_path / "target", python="3.11", glibc=command.GLIBC)


def test_the_version_follows_the_content(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text("x = 1\n")
    first = command_version(tmp_path)
    assert VERSION.fullmatch(first) and first.startswith(f"{__version__}+") and command_version(tmp_path) == first
    (tmp_path / "module.py").write_text("x = 2\n")
    second = command_version(tmp_path)
    (tmp_path / "module.py").rename(tmp_path / "other.py")
    assert len({first, second, command_version(tmp_path)}) == 3


def test_the_packages_scripts_and_dependencies_know_the_same_pythons() -> None:
    recipe = Recipe.read("ckp")
    for script in ("ckp.sh", "compile.sh"):
        loop = re.search(r"^for python in (.*); do$", (recipe.folder / script).read_text(), re.M)
        assert loop and loop[1].split() == [f"/usr/bin/python{python}" for python in PYTHONS], script
    assert " | ".join(f"python{python}" for python in PYTHONS) in recipe.data.deb.depends
    assert f"python{PYTHONS[0]}" in recipe.data.rpm.depends, "RHEL 9 has this one"
    assert f"libc6 (>= 2.{command.GLIBC})" in recipe.data.deb.depends and f"glibc >= 2.{command.GLIBC}" in recipe.data.rpm.depends


def test_an_installed_ckp_makes_no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "checkout", lambda: None)
    with pytest.raises(InvalidInput, match="made from its source"):
        build_wheel()


def test_packages_need_a_place() -> None:
    with pytest.raises(InvalidInput, match="there is no place for the packages"):
        CliRunner().invoke(dist_package, [], catch_exceptions=False)
