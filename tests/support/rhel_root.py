"""What the programs of RHEL 9 do, without RHEL: Debian's own dnf and rpm in a Debian 12, which says that it is a rebuild of RHEL 9."""

from __future__ import annotations

import shutil
from pathlib import Path

from ckp.kits import paths
from ckp.kits.files import building_directory, exclusive
from ckp.lab import base
from tests.support.debian_root import Debian, debian_root

RECIPE = 1
"""To be increased with every change of what lies in the layer."""
PACKAGES = ("dnf", "rpm", "createrepo-c", "gnupg")
OS_RELEASE = """\
NAME="Rebuilt Linux"
VERSION="9.4 (Test)"
ID="rebuilt"
ID_LIKE="rhel centos fedora"
VERSION_ID="9.4"
PRETTY_NAME="Rebuilt Linux 9.4 (Test)"
"""
RPM_DATABASE = "/var/lib/rpm"


def rhel_root(folder: Path) -> Debian:
    """One in `folder`, which is made. Its rpm has a database in RHEL's place (Debian's lies below the home folder); apt and dpkg are not to be found."""
    host = debian_root(folder, above=_layer())
    host.write("/etc/os-release", OS_RELEASE)
    host.write("/etc/rpm/macros", f"%_dbpath {RPM_DATABASE}\n")
    host.write("/etc/dnf/dnf.conf", "[main]\ngpgcheck=1\nskip_if_unavailable=False\n")
    hidden = "apt-get dpkg dpkg-deb dpkg-query update-ca-certificates"
    host.sh(f"for program in {hidden}; do rm -f /usr/bin/$program /usr/sbin/$program; done; mkdir -p /etc/yum.repos.d; rpm --initdb")
    return host


def _layer() -> Path:
    """What lies over the base: fetched once by the base's own apt."""
    final = paths.cache().absolute() / "lab" / f"rhel-{base.key()}-{RECIPE}"
    below = base.ensure(print)
    with exclusive(final.with_name(f"{final.name}.lock"), what="putting dnf and rpm over the base of the lab's hosts", timeout=900):
        if not final.exists():
            with building_directory(final) as scratch:
                maker = Debian(str(below), scratch)
                for name in ("resolv.conf", "hosts"):
                    maker.write(f"/etc/{name}", Path("/etc", name).read_text())
                maker.sh(f"apt-get -q update && apt-get -q install -y --no-install-recommends {' '.join(PACKAGES)}")
                maker.sh("apt-get clean && rm -rf /var/lib/apt/lists/*")
                for name in ("resolv.conf", "hosts"):
                    (scratch / "upper/etc" / name).unlink()
                shutil.rmtree(scratch / "work")
                (scratch / "root").rmdir()
    return final / "upper"
