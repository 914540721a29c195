"""Upstream's busybox, linked statically, with all that its default configuration has; cached by a hash of all that decides it.

Not Debian's package: Debian takes back a change of busybox' shell, so that variables with a hyphen in their name do not reach a program, and four
conformance tests read such.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path

from ckp.catalog.models import DebianSource
from ckp.conformance.debiansource import fetch
from ckp.distribution.builder.debian import c_record, toolchain_here
from ckp.distribution.images.layers import EPOCH
from ckp.kits import paths
from ckp.kits.errors import CkpError
from ckp.kits.files import building_directory, exclusive, sha256_bytes
from ckp.kits.processes import run

RECIPE = "1"
C_PACKAGES = ("gcc", "libc6-dev", "make")
SETTINGS = {
    "CONFIG_STATIC": "y",
    # Linux 6.8 took away the class-based queueing that it configures, and with it the header's names (upstream's bug 15934).
    "CONFIG_TC": "n",
}
"""What differs from upstream's default configuration."""
BUILD_SECONDS = 1800.0


def build(source: DebianSource) -> Path:
    """A folder with the program `busybox` and a link to it for each applet, compiled if it is not in the cache.

    Raises:
        NotFound: the compiler or the C library is not installed, or Debian's mirror has no such source.
        VerificationFailed: the source is not what the catalog pins.
    """
    parts = [RECIPE, source.sha256, json.dumps(SETTINGS, sort_keys=True), *(f"{item.name} {item.version}" for item in toolchain_here(C_PACKAGES))]
    final = paths.cache() / "builds" / f"busybox-{source.version}-{sha256_bytes(chr(10).join(parts).encode())[:20]}"
    with exclusive(final.with_name(final.name + ".lock"), what="building busybox", timeout=BUILD_SECONDS):
        if not (final / "build.json").exists():
            archive = fetch(source)
            with building_directory(final) as scratch, tempfile.TemporaryDirectory(prefix="ckp-busybox-") as work:
                _compile(_unpacked(archive, Path(work)), scratch / "bin")
                (scratch / "build.json").write_text(json.dumps(c_record(C_PACKAGES), indent=1, sort_keys=True) + "\n")
    return final / "bin"


def _unpacked(archive: Path, work: Path) -> Path:
    run(["tar", "--no-same-owner", "-C", work, "-xf", archive], timeout=120, what=f"unpacking {archive.name}")
    folders = [path for path in work.iterdir() if path.is_dir()]
    if len(folders) != 1:
        raise CkpError(f"{archive.name} has {len(folders)} folders at its top, and must have one")
    return folders[0]


def configured(default: str) -> str:
    """Upstream's default configuration with SETTINGS. CkpError if it has no such setting."""
    for name, value in SETTINGS.items():
        line = f"# {name} is not set" if value == "n" else f"{name}={value}"
        default, count = re.subn(rf"^(# {name} is not set|{name}=.*)$", line, default, flags=re.MULTILINE)
        if count != 1:
            raise CkpError(f"the default configuration of busybox has {count} lines of {name}, and must have one")
    return default


def _compile(root: Path, target: Path) -> None:
    environment = {"KCONFIG_NOTIMESTAMP": "1", "SOURCE_DATE_EPOCH": str(EPOCH), "LC_ALL": "C"}

    def make(*arguments: str, stdin: str | None = None) -> None:
        run(["make", "-s", *arguments], cwd=root, env=environment, stdin=stdin, timeout=BUILD_SECONDS, what="building busybox")

    make("defconfig")
    config = root / ".config"
    config.write_text(configured(config.read_text()))
    make("oldconfig", stdin="\n" * 100)  # settings that depend on changed ones take their defaults
    make(f"-j{os.cpu_count() or 1}", "busybox")
    target.mkdir()
    program = target / "busybox"
    program.write_bytes((root / "busybox").read_bytes())
    program.chmod(0o755)
    for applet in run([program, "--list"], timeout=60, what="listing busybox' applets").stdout.split():
        if applet != program.name:
            (target / applet).symlink_to(program.name)
