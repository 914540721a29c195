"""What pyproject.toml declares, what requirements/ locks and what the code imports are one and the same."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import packages_distributions

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.checkout import REPO

PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]

PLATFORM_ROOMS = ("api", "catalog", "clients", "compass", "controllers", "hub", "kits", "rules", "runtime")
"""What the image of the management layer is made of."""
COMMAND_ROOMS = ("api", "catalog", "cli", "clients", "distribution", "kits", "lab", "rules", "site")
HOST_ROOMS = ("agent", "hostkit", "hosttool", "standalone", "verify")
TRANSITIVE = {"httpx2": "lightkube", "h11": "uvicorn", "starlette": "fastapi"}
"""Distributions that are part of another one's interface, and come with it."""


def declared(items: Iterable[str]) -> dict[str, Requirement]:
    """By name, with extras: `sqlalchemy[asyncio]`."""
    requirements = [Requirement(item) for item in items]
    return {f"{canonicalize_name(item.name)}[{','.join(sorted(item.extras))}]": item for item in requirements}


def of_file(name: str) -> set[str]:
    """The requirements that requirements/<name>.in has itself, without those of the files that it includes."""
    lines = [line.partition("#")[0].strip() for line in (REPO / "requirements" / f"{name}.in").read_text().splitlines()]
    return set(declared(line for line in lines if line and not line.startswith("-")))


def locked(name: str) -> dict[str, str]:
    """Of requirements/<name>.txt: name -> version."""
    found = re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==(\S+)", (REPO / "requirements" / f"{name}.txt").read_text(), re.MULTILINE)
    return {canonicalize_name(project): version for project, version in found}


def imported(rooms: Iterable[str]) -> dict[str, set[str]]:
    """The top-level modules of others that the rooms import -> the distributions that have such a module."""
    owners = packages_distributions()
    modules: set[str] = set()
    for path in [path for room in rooms for path in sorted((REPO / "src" / "ckp" / room).rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module.partition(".")[0])
    found = {module: {str(canonicalize_name(owner)) for owner in owners[module]} for module in modules - {"ckp"} - sys.stdlib_module_names}
    return {module: {TRANSITIVE.get(owner, owner) for owner in distributions} for module, distributions in found.items()}


def names(*groups: Iterable[str]) -> set[str]:
    """Names without extras."""
    return {str(canonicalize_name(Requirement(item).name)) for group in groups for item in group}


def test_the_declared_dependencies_are_those_of_the_locked_files() -> None:
    command, build, platform = (set(declared(items)) for items in (PROJECT["dependencies"], EXTRAS["build"], EXTRAS["platform"]))
    assert platform == of_file("platform")
    assert command == of_file("site")
    assert build == of_file("tool")
    assert set(declared(EXTRAS["dev"])) == of_file("dev")
    assert not command & build, "what the command always needs is no part of an extra"


@pytest.mark.parametrize("lock", ["dev", "tool", "site", "platform"])
def test_the_locked_versions_are_among_the_declared(lock: str) -> None:
    versions = locked(lock)
    command = PROJECT["dependencies"]
    own = {
        "dev": command + EXTRAS["build"] + EXTRAS["platform"] + EXTRAS["dev"],
        "tool": command + EXTRAS["build"] + EXTRAS["platform"],
        "site": command,
        "platform": EXTRAS["platform"],
    }[lock]
    for item in declared(own).values():
        version = versions[canonicalize_name(item.name)]
        assert item.specifier.contains(version), f"{item} is declared, and {version} is locked in requirements/{lock}.txt"
        (bound,) = item.specifier
        assert bound.operator == ">=", f"{item}: an upper bound would keep out what may well work"


@pytest.mark.parametrize(
    ("rooms", "allowed"),
    [
        (COMMAND_ROOMS, names(PROJECT["dependencies"], EXTRAS["build"], EXTRAS["platform"])),
        (PLATFORM_ROOMS, names(EXTRAS["platform"], EXTRAS["build"])),  # ckp.clients.signing is in the image as well, and no pod imports it
        (HOST_ROOMS, {"websockets"}),
    ],
    ids=["command", "platform", "hosts"],
)
def test_what_the_code_imports_is_declared(rooms: tuple[str, ...], allowed: set[str]) -> None:
    assert {module: owners for module, owners in imported(rooms).items() if not owners & allowed} == {}


def test_imports_are_seen() -> None:
    found = imported(["cli", "clients"])
    assert found["click"] == {"click"} and found["yaml"] == {"pyyaml"} and found["pysequoia"] == {"pysequoia"}
    assert found["httpx2"] == {"lightkube"} and "lightkube" in found["lightkube"]
