"""The unit of a site's registry, as systemd itself judges it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from ckp.kits.processes import run
from ckp.site.registries.unit import PROGRAM, drop_in_text, unit_text

NEWER_THAN_249 = ("ImportCredential", "PrivateUsersEx", "MemoryPressure", "ExtensionDirectories", "RestartSteps", "BindNetworkInterface", "LogFilterPatterns")
"""What Ubuntu 22.04 does not know."""


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """An instance as systemd reads it, with what it may do beyond the template; its program is one that every machine has."""
    for program in ("systemd-analyze",):
        if shutil.which(program) is None:
            pytest.skip(f"there is no {program} on this machine")
    file = tmp_path / "ckp-registry@push.service"
    file.write_text(unit_text().replace(PROGRAM, "/bin/true") + drop_in_text("/var/lib/ckp-registry"))
    return file


def test_systemd_reads_every_setting(unit: Path) -> None:
    done = run(["systemd-analyze", "verify", "--man=no", unit], timeout=60, check=False)
    assert unit.name not in done.stdout + done.stderr


def test_its_exposure_is_low(unit: Path) -> None:
    done = run(["systemd-analyze", "security", "--offline=true", "--no-pager", unit], timeout=60, check=False)
    found = re.search(r"exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found is not None and float(found.group(1)) < 3, done.stdout[-300:]


def test_the_storage_is_open_to_the_service_that_takes_pushes_only() -> None:
    assert "ReadWritePaths" not in unit_text() and "ReadWritePaths=/srv/images\n" in drop_in_text("/srv/images")
    assert "ProtectSystem=strict" in unit_text() and not re.search(f"(?m)^({'|'.join(NEWER_THAN_249)})=", unit_text())
