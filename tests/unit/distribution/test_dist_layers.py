"""Layers: equal content gives equal bytes, whatever the order, and no layer breaks the system that it lies on."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path

import pytest

from ckp.distribution.images import layers
from ckp.distribution.images.layers import Entry, Layer, file_layer
from ckp.kits import paths
from ckp.kits.processes import run


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKP_CACHE", str(tmp_path / "cache"))


def members(layer: Layer, tmp_path: Path) -> list[tarfile.TarInfo]:
    tar = tmp_path / "layer.tar"
    subprocess.run(["zstd", "-q", "-f", "-d", layers.store().path(layer[0].digest), "-o", tar], check=True)
    with tarfile.open(tar) as archive:
        return archive.getmembers()


def test_the_same_entries_in_another_order_are_the_same_layer(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    entries = [Entry("/x/a", tmp_path / "a"), Entry("/x/b", content=b"b"), Entry("/x/c", link="b")]
    first = file_layer(entries)
    (paths.cache() / "layers").rename(tmp_path / "forgotten")
    assert file_layer(list(reversed(entries))) == first


def test_parents_come_before_what_is_in_them_and_everything_is_roots(tmp_path: Path) -> None:
    found = members(file_layer([Entry("/a/b/c", content=b"1", mode=0o755)]), tmp_path)
    assert [item.name for item in found] == ["a", "a/b", "a/b/c"]
    assert {(item.uid, item.gid, item.mtime) for item in found} == {(0, 0, layers.EPOCH)}
    assert found[-1].mode == 0o755


def test_a_programs_layer_names_nothing_below_lib_so_that_the_link_stays_a_link(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A layer with a folder `lib` took the place of Debian's link to usr/lib, and every program of the image lost its libraries."""

    def extract(_arguments: object, root: Path) -> None:
        files = ("usr/bin/p", "lib/x/libz.so.1.2", "usr/lib/libX.so")
        (root.parent / "packages").write_text("\n".join(["Package: p", "Version: 1", "Architecture: amd64", *(f"+./{path}" for path in files)]))
        for path in files:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(path)
        (root / "lib/x/libz.so.1").symlink_to("libz.so.1.2")

    class Listed:
        stdout = "\tlibz.so.1 => /lib/x/libz.so.1 (0x1)\n\tlibX.so => /usr/lib/p/../libX.so (0x2)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x3)\n"

    real = run
    monkeypatch.setattr(layers, "_mmdebstrap", extract)
    monkeypatch.setattr(layers, "run", lambda argv, **rest: Listed if argv[0] == "chroot" else real(argv, **rest))
    found = members(layers.program_layer("package", "/usr/bin/p", "/usr/bin/q"), tmp_path)
    assert {item.name for item in found if not item.isdir()} == {"usr/bin/p", "usr/bin/q", "usr/lib/x/libz.so.1", "usr/lib/libX.so"}
