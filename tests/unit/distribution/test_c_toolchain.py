"""What C programs are made with decides their key and stands in their provenance: the packages named, and what those depend on.

dpkg's database is a small one of the test's own (DPKG_ADMINDIR).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ckp.catalog.load import Catalog, Chosen
from ckp.catalog.models import Source
from ckp.distribution.attest import provenance, sbom
from ckp.distribution.attest.builtrelease import BuiltRelease
from ckp.distribution.builder.component import Built, build_key, is_built
from ckp.distribution.builder.debian import installed_here, toolchain_here
from ckp.distribution.builder.gobuildinfo import Reader
from ckp.distribution.images import pause
from ckp.kits.errors import NotFound

STAMP = "v1.35.1-ckp"
PACKAGES = {
    "gcc": ("4:12.2.0-3", "cpp (= 4:12.2.0-3), gcc-12 (>= 12.2.0-1~)"),
    "gcc-12": ("12.2.0-14", "libgcc-12-dev (= 12.2.0-14), binutils (>= 2.40) | nothing, virtual-libs"),
    "libgcc-12-dev": ("12.2.0-14", "gcc-12"),
    "binutils": ("2.40-2", ""),
    "libisl23": ("0.25-1", ""),
    "libc6-dev": ("2.36-9", ""),
    "libseccomp-dev": ("2.5.4-1", "libc6-dev"),
    "pkg-config": ("1.8.1-1", ""),
    "vim": ("9.0", "libc6-dev"),
}
Install = Callable[..., None]


@pytest.fixture(autouse=True)
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Set versions of packages; None takes one away."""
    monkeypatch.setenv("CKP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DPKG_ADMINDIR", str(tmp_path / "dpkg"))
    for name in ("info", "updates", "triggers"):
        (tmp_path / "dpkg" / name).mkdir(parents=True)
    have: dict[str, tuple[str, str]] = dict(PACKAGES)

    def write(changes: Mapping[str, str | None] = {}) -> None:
        for name, version in changes.items():
            if version is None:
                del have[name]
            else:
                have[name] = (version, have[name][1])
        text = ""
        for name, (version, depends) in have.items():
            text += f"Package: {name}\nStatus: install ok installed\nMaintainer: x <x@example.org>\nArchitecture: amd64\nVersion: {version}\nDescription: x\n"
            text += f"Depends: {depends}\n" if depends else ""
            text += "Provides: virtual-libs\n" if name == "libisl23" else ""
            text += "\n"
        (tmp_path / "dpkg" / "status").write_text(text)

    write()
    return write


def runc() -> tuple[Catalog, Source]:
    return Catalog(), Catalog().source("runc", "v1.1.10")


def test_the_toolchain_is_what_is_named_and_all_that_it_depends_on() -> None:
    """`gcc` depends on the compiler, and its own version stays when that is fixed."""
    assert [item.name for item in toolchain_here(("gcc", "libc6-dev"))] == ["binutils", "gcc", "gcc-12", "libc6-dev", "libgcc-12-dev", "libisl23"]
    assert [(item.name, item.version, item.architecture) for item in installed_here(("gcc",))] == [("gcc", "4:12.2.0-3", "amd64")]


@pytest.mark.parametrize("changed", ["libc6-dev", "libseccomp-dev", "gcc", "gcc-12", "binutils"])
def test_another_version_of_a_c_package_is_another_build(install: Install, changed: str) -> None:
    catalog, source = runc()
    before = build_key(catalog, source, STAMP)
    assert build_key(catalog, source, STAMP) == before
    install({changed: "99-1"})
    assert build_key(catalog, source, STAMP) != before


def test_other_packages_and_programs_without_c_are_left_alone(install: Install) -> None:
    catalog, source = runc()
    coredns = catalog.choose(catalog.release("v1.35.1"), "coredns", "lab").source
    before = build_key(catalog, source, STAMP), build_key(catalog, coredns, STAMP)
    install({"vim": "99-1"})
    assert (build_key(catalog, source, STAMP), build_key(catalog, coredns, STAMP)) == before
    install({"libc6-dev": "99-1"})
    assert build_key(catalog, coredns, STAMP) == before[1]


def test_without_the_c_packages_it_counts_as_not_built_and_the_build_names_them(install: Install) -> None:
    catalog, source = runc()
    install({"libseccomp-dev": None})
    assert not is_built(catalog, Chosen("runc", source), STAMP)
    with pytest.raises(NotFound, match="not installed: libseccomp-dev"):
        build_key(catalog, source, STAMP)


# -- pause


@pytest.fixture
def source_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its source, and a gcc that takes its arguments down."""
    gcc = tmp_path / "bin" / "gcc"
    gcc.parent.mkdir()
    gcc.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done; echo made > "$2"\n')
    gcc.chmod(0o755)
    monkeypatch.setenv("PATH", f"{gcc.parent}:/usr/bin:/bin")
    file = tmp_path / "build" / "files" / "pause.c"
    file.parent.mkdir(parents=True)
    file.write_text("int main(void) { return 0; }\n")
    return file


def test_pause_is_made_once_for_each_source_tag_flags_and_toolchain(install: Install, source_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = pause.build(source_file, "3.10")
    assert first.read_text() == "made\n"
    first.write_text("kept")
    assert pause.build(source_file, "3.10") == first and first.read_text() == "kept"
    places = {first, pause.build(source_file, "3.11")}
    source_file.write_text("int main(void) { return 1; }\n")
    places.add(pause.build(source_file, "3.10"))
    install({"gcc-12": "99-1"})
    places.add(pause.build(source_file, "3.10"))
    monkeypatch.setattr(pause, "pause_flags", lambda _tag: ["-O2"])
    places.add(pause.build(source_file, "3.10"))
    assert len(places) == 5


def release_with(source_file: Path, kubernetes: Source) -> BuiltRelease:
    catalog = Catalog()
    component = Built(Chosen("kubernetes", kubernetes), source_file.parent.parent, "key", fresh=False)
    return BuiltRelease(Reader(catalog), catalog.release("v1.35.1"), "lab", {"kubernetes": component})


def test_provenance_lists_the_whole_toolchain_and_the_sbom_what_is_named(source_file: Path) -> None:
    catalog = Catalog()
    built = release_with(source_file, catalog.choose(catalog.release("v1.35.1"), "kubernetes", "lab").source)
    pause.build(source_file, "3.10")
    inputs = provenance._Inputs()
    provenance._add_pause(inputs, built, "3.10")
    listed = [item for item in inputs.sources.values() if item["annotations"]["kind"] == "c-toolchain"]
    assert sorted(item["name"] for item in listed) == sorted(f"{item.name} {item.version}" for item in toolchain_here(("gcc", "libc6-dev")))
    assert {"gcc-12 12.2.0-14", "libc6-dev 2.36-9"} <= {item["name"] for item in listed}
    assert "pkg:deb/debian/gcc-12@12.2.0-14?arch=amd64" in {item["uri"] for item in listed}
    assert [item["name"] for item in pause.recorded(source_file, "3.10")["c_packages"]] == ["gcc", "libc6-dev"]
    bom: Any = SimpleNamespace(incomplete=set(), add=lambda item, **_: names.append(item["name"]))
    names: list[str] = []
    sbom._add_pause(bom, built, "3.10", "00" * 32, "layer")
    assert {"gcc", "libc6-dev"} <= set(names) and "binutils" not in names
    assert bom.incomplete == set()
