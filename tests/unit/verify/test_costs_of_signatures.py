"""What an input may cost before its signature is trusted: two seconds of CPU time and 200 MiB, in all processes together."""

from __future__ import annotations

import base64
import bz2
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ckp.clients.signing.openpgp import SigningKey
from ckp.hostkit.errors import VerificationFailed
from ckp.hostkit.limits import limited
from ckp.hostkit.processes import PATH
from ckp.verify import openpgp, signatures
from ckp.verify.signatures import BEGIN, END, MAX_SIGNATURE, MIDDLE
from tests.support.costs import cost
from tests.support.signing_keys import signing_key
from tests.support.spoilt_packages import Deb, ar, packet

CPU_SECONDS = 2.0
MEMORY_MIB = 200
CALLED = "ckp.verify.signatures"


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return signing_key(tmp_path_factory.mktemp("costs") / "keys")


def check_file(data: str, signature: str, keyring: str) -> None:
    """As the checks of a bundle call it."""
    signatures.check_signature(iter([data.encode()]), Path(signature).read_bytes(), keyring, "file")


def check_text(text: str, keyring: str) -> None:
    """As the checks of a repository call it."""
    signatures.check_cleartext(Path(text).read_bytes(), keyring, "InRelease")


def packed_zeros(size: int) -> bytes:
    """One compressed packet that unpacks to `size` MiB of zeros."""
    return packet(8, b"\x03" + bz2.compress(bytes(size << 20)))


def deep() -> bytes:
    """Compressed packets within compressed packets."""
    inner = b"\xca\x03PGP" * 100
    for _ in range(200):
        inner = packet(8, b"\x03" + bz2.compress(inner))
    return inner[:MAX_SIGNATURE]


SIGNATURES: list[tuple[str, Callable[[], bytes]]] = [
    ("zeros that were packed", lambda: packed_zeros(64)),
    ("zeros that were packed, in armour", lambda: openpgp.armoured(packed_zeros(64), b"")[1]),
    ("packets in packets", deep),
    ("packets without content", lambda: b"\xca\0" * (MAX_SIGNATURE // 2)),
    ("empty signatures", lambda: b"\xc2\0" * (MAX_SIGNATURE // 2)),
    ("empty user IDs", lambda: b"\xb4\0" * (MAX_SIGNATURE // 2)),
    ("a signature of subpackets", lambda: packet(2, b"\x04\0\x01\x08\x3e\0" + b"\x01\x64" * 7936 + bytes(122))),
    ("the largest number", lambda: packet(2, b"\x04\0\x01\x08\0\0\0\0\0\0\xff\xff" + b"\xff" * 8192)),
    ("a long armour", lambda: b"\n".join([MIDDLE, b"", base64.b64encode(bytes(45 << 10)), END, b""])),
    ("an armour of empty lines", lambda: MIDDLE + b"\n" * 65000),
    ("an armour of headers", lambda: MIDDLE + b"\n" + b"a: b\n" * 13000),
]


@pytest.mark.parametrize(("name", "make"), SIGNATURES, ids=[name for name, _ in SIGNATURES])
def test_a_signature_costs_little_before_it_is_trusted(key: SigningKey, tmp_path: Path, name: str, make: Callable[[], bytes]) -> None:
    (tmp_path / "signature").write_bytes(make())
    found = cost(__name__, "check_file", "data", str(tmp_path / "signature"), str(key.keyring))
    assert "error: " in found.said and "file" in found.said
    assert found.cpu_seconds < CPU_SECONDS and found.memory_mib < MEMORY_MIB, found


TEXTS: list[tuple[str, Callable[[], bytes]]] = [
    ("lines", lambda: b"a: b\n" * 200_000),
    ("empty lines", lambda: b"\n" * (1 << 20)),
    ("escaped lines", lambda: b"- -\n" * 250_000),
    ("one line", lambda: b"x" * (1 << 20)),
    ("beginnings", lambda: (BEGIN + b"\n") * 25_000),
    ("lines with blanks", lambda: (b" " * 1000 + b"x\n") * 1000),
]


@pytest.mark.parametrize(("name", "make"), TEXTS, ids=[name for name, _ in TEXTS])
def test_a_signed_text_costs_little_before_it_is_trusted(key: SigningKey, tmp_path: Path, name: str, make: Callable[[], bytes]) -> None:
    armour = key.sign(b"something else", armor=True)
    (tmp_path / "text").write_bytes(BEGIN + b"\nHash: SHA512\n\n" + make() + armour)
    found = cost(__name__, "check_text", str(tmp_path / "text"), str(key.keyring))
    assert "error: " in found.said and "InRelease" in found.said
    assert found.cpu_seconds < CPU_SECONDS and found.memory_mib < MEMORY_MIB, found


def test_a_package_costs_little_before_its_signature_is_trusted(key: SigningKey, tmp_path: Path) -> None:
    (tmp_path / "kubelet.deb").write_bytes(ar([*Deb(extra={"./bomb": bytes(64 << 20)}, data=bytes(64 << 20)).members(), ("_gpgorigin", packed_zeros(64))]))
    found = cost("ckp.verify.packages", "verify_package", str(tmp_path / "kubelet.deb"), str(key.keyring))
    assert "is compressed data" in found.said
    assert found.cpu_seconds < CPU_SECONDS and found.memory_mib < MEMORY_MIB, found


@pytest.mark.parametrize("again", [b"\xb4\0", b"\x88\0", b"\xc2\x06\x04\x20\0\0\0\0"])
def test_a_keyring_costs_little(key: SigningKey, tmp_path: Path, again: bytes) -> None:
    (tmp_path / "ring").write_bytes(key.keyring.read_bytes() + again * ((1 << 20) // len(again)))
    (tmp_path / "signature").write_bytes(key.sign(b"data"))
    found = cost(__name__, "check_file", "data", str(tmp_path / "signature"), str(tmp_path / "ring"))
    assert "the keyring" in found.said
    assert found.cpu_seconds < CPU_SECONDS and found.memory_mib < MEMORY_MIB, found


# -- the limits of gpgv, for what the judgement of shapes overlooks


def test_a_program_gets_no_more_time_and_memory_than_its_limits() -> None:
    spin = limited([sys.executable, "-c", "while True: pass"], cpu_seconds=1, memory_mib=512)
    assert subprocess.run(spin, check=False, timeout=120).returncode in (-signal.SIGKILL, -signal.SIGXCPU)
    grow = [sys.executable, "-c", "import sys; sys.exit(len(bytes(400 << 20)) >> 20 != 400)"]
    assert subprocess.run(limited(grow, cpu_seconds=60, memory_mib=1024), check=False).returncode == 0
    assert subprocess.run(limited(grow, cpu_seconds=60, memory_mib=256), check=False, capture_output=True).returncode == 1


def test_a_limit_is_never_above_that_of_the_process_itself() -> None:
    """Then it could not be set, and nothing could be verified."""
    call = "subprocess.run(limited(['true'], cpu_seconds=60, memory_mib=512)).returncode"
    code = f"import subprocess; from ckp.hostkit.limits import limited; raise SystemExit({call})"
    argv = ["sh", "-c", 'ulimit -t 30; exec "$@"', "sh", sys.executable, "-c", code]
    assert subprocess.run(argv, check=False, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}).returncode == 0


def test_gpgv_that_uses_up_its_time_is_a_refusal(key: SigningKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gpgv").write_text("#!/bin/sh\nwhile :; do :; done\n")
    (tmp_path / "gpgv").chmod(0o755)
    monkeypatch.setattr(signatures, "PATH", f"{tmp_path}:{PATH}")
    monkeypatch.setattr(signatures, "GPGV_CPU_SECONDS", 1)
    with pytest.raises(VerificationFailed, match="gpgv was ended by the signal") as caught:
        signatures.check_signature(iter([b"data"]), key.sign(b"data"), str(key.keyring), "file")
    assert caught.value.check == "gpgv limits" and "file" in caught.value.brief
