"""What setup.sh takes out of a release's file before any signature was looked at: plain wheels, bounded, and nothing beside them."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from tests.support.checkout import REPO
from tests.support.spoilt_packages import special, tar_of

SETUP = REPO / "packaging" / "setup"
WHEEL = ("wheels/one-1.0-py3-none-any.whl", b"a wheel")
OTHERS = (("index.json", b"{}"), ("blobs/sha256/00", b"x" * 5000), ("trusted.gpg", b"x"))


def unpack(folder: Path, raw: bytes, *, packed: bool = True) -> subprocess.CompletedProcess[str]:
    data = subprocess.run(["zstd", "-q", "-c"], input=raw, capture_output=True, check=True).stdout if packed else raw
    folder.mkdir(exist_ok=True)
    (folder / "release.ckp").write_bytes(data)
    argv = [sys.executable, "-I", str(SETUP / "wheels.py"), str(folder / "release.ckp"), str(folder / "wheels")]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, env={"PATH": "/usr/bin:/bin"}, cwd=folder)


def left(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.name != "release.ckp")


def test_the_wheels_come_and_nothing_else(tmp_path: Path) -> None:
    done = unpack(tmp_path / "x", tar_of(*OTHERS, WHEEL, ("wheels/two-2.0+ckp.1-cp311-cp311-manylinux_2_17_x86_64.whl", b"two"), ("wheels-not/x.whl", b"x")))
    assert done.returncode == 0, done.stderr
    assert left(tmp_path) == ["x", "x/wheels", "x/wheels/one-1.0-py3-none-any.whl", "x/wheels/two-2.0+ckp.1-cp311-cp311-manylinux_2_17_x86_64.whl"]
    for path in (tmp_path / "x/wheels").iterdir():
        assert path.is_file() and not path.is_symlink() and path.stat().st_mode & 0o7777 == 0o644
    assert (tmp_path / "x/wheels" / WHEEL[0][7:]).read_bytes() == b"a wheel"


def huge(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(4096)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (tar_of(WHEEL, special("wheels/x.whl", tarfile.SYMTYPE, target="/etc/passwd")), "no regular file"),
        (tar_of(special("wheels/x.whl", tarfile.SYMTYPE, target="/etc"), ("wheels/x.whl/cron.d", b"x")), "no regular file"),
        (tar_of(WHEEL, special("wheels/x.whl", tarfile.LNKTYPE, target=WHEEL[0])), "no regular file"),
        (tar_of(special("wheels/x.whl", tarfile.CHRTYPE)), "no regular file"),
        (tar_of(special("wheels/x.whl", tarfile.FIFOTYPE)), "no regular file"),
        (tar_of(special("wheels/x.whl", tarfile.DIRTYPE)), "no regular file"),
        (tar_of(("wheels/../evil.whl", b"x")), "no plain name"),
        (tar_of(("wheels/../../evil.whl", b"x")), "no plain name"),
        (tar_of(("wheels//evil.whl", b"x")), "no plain name"),
        (tar_of(("wheels/sub/evil.whl", b"x")), "no plain name"),
        (tar_of(("wheels/.evil.whl", b"x")), "no plain name"),
        (tar_of(("wheels/evil.pth", b"x")), "no plain name"),
        (tar_of(("wheels/-r.whl", b"x")), "no plain name"),
        (tar_of(WHEEL, WHEEL), "is there twice"),
        (huge("wheels/bomb.whl", 3 << 30), "larger than"),
        (tar_of(*((f"wheels/w{number}.whl", b"") for number in range(2001))), "more than"),
        (tar_of(*OTHERS), "has no wheels"),
        (tar_of(WHEEL)[:700], "can't be read"),
        (b"no tar at all" * 200, "can't be read"),
    ],
)
def test_anything_else_in_their_place_stops_it(tmp_path: Path, raw: bytes, words: str) -> None:
    done = unpack(tmp_path / "x", raw)
    assert done.returncode == 1
    assert words in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (tmp_path / "x/wheels").exists() and left(tmp_path) == ["x"]


def test_a_file_that_is_cut_off_or_not_packed_stops_it(tmp_path: Path) -> None:
    packed = subprocess.run(["zstd", "-q", "-c"], input=tar_of(*OTHERS, WHEEL), capture_output=True, check=True).stdout
    for number, raw in enumerate((packed[:-9], tar_of(WHEEL))):
        done = unpack(tmp_path / str(number), raw, packed=False)
        assert done.returncode == 1 and "can't be read" in done.stderr and "Traceback" not in done.stderr, done.stderr
        assert left(tmp_path / str(number)) == []


def test_what_is_outside_of_the_wheels_is_not_looked_into(tmp_path: Path) -> None:
    """Its signature is checked later, when it is read."""
    raw = tar_of(special("lab/link", tarfile.SYMTYPE, target="/etc"), ("/etc/evil", b"x"), ("../evil", b"x"), WHEEL)
    done = unpack(tmp_path / "x", raw)
    assert done.returncode == 0, done.stderr
    assert left(tmp_path / "x") == ["wheels", f"wheels/{WHEEL[0][7:]}"]


def test_a_header_that_asks_for_gigabytes_of_memory_stops_it(tmp_path: Path) -> None:
    """A long name is read as a whole, before its length could be checked."""
    name = tarfile.TarInfo("././@LongLink")
    name.type, name.size = tarfile.GNUTYPE_LONGNAME, 2 << 30
    folder = tmp_path / "x"
    folder.mkdir()
    with (folder / "release.ckp").open("wb") as out:
        child = subprocess.Popen(["zstd", "-q", "-c"], stdin=subprocess.PIPE, stdout=out)
        assert child.stdin is not None
        child.stdin.write(name.tobuf(tarfile.GNU_FORMAT))
        for _ in range(2 << 10):
            child.stdin.write(bytes(1 << 20))
        child.stdin.close()
        assert child.wait() == 0
    argv = [sys.executable, "-I", str(SETUP / "wheels.py"), str(folder / "release.ckp"), str(folder / "wheels")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1 and "can't be read" in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_setup_unpacks_by_nothing_else() -> None:
    text = (SETUP / "setup.sh").read_text()
    assert '"$python" -I "$here/packaging/setup/wheels.py" "$CKP_FROM" "$environment/wheels"' in text
    assert "tar " not in text and "zstd -" not in text
    assert "--require-hashes" in text


def test_a_second_setup_waits_for_the_first_one(tmp_path: Path) -> None:
    """Two checkouts share the cache: both at once would make the same Python environment in one folder."""
    copy = tmp_path / "checkout" / "packaging" / "setup"
    copy.mkdir(parents=True)
    (tmp_path / "checkout" / "requirements").mkdir()
    (copy / "setup.sh").write_bytes((SETUP / "setup.sh").read_bytes())
    for name in ("apt-packages.txt", "apt-packages-test.txt"):
        (copy / name).write_text("# nothing\n")
    cache = tmp_path / "cache"
    cache.mkdir()
    holder = subprocess.Popen(["flock", str(cache / "setup.lock"), "cat"], stdin=subprocess.PIPE)
    while subprocess.run(["flock", "-n", str(cache / "setup.lock"), "true"], check=False).returncode == 0:
        time.sleep(0.05)
    argv, env = ["sh", str(copy / "setup.sh")], {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(tmp_path), "CKP_CACHE": str(cache), "CKP_FROM": "none"}
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=env) as second:
        assert second.stderr is not None
        said = second.stderr.readline()
        assert holder.stdin is not None
        holder.stdin.close()
        rest = second.stderr.read()
    holder.wait(30)
    assert said == "setup: waiting for another setup on this machine\n", "it was not alone, and says so at once"
    assert second.returncode != 0 and "dev.txt" in rest, "once it is alone it goes on, here to the lock of requirements, which is missing"
