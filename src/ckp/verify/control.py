"""What the control file of a .deb may say: names, versions and relations as dpkg reads them (deb-control(5), deb-version(7)), and no field of dpkg's own."""

from __future__ import annotations

import re
from typing import Callable, Mapping

MAX_NAME = 200
MAX_VERSION = 200
RELATIONS = ("Pre-Depends", "Depends", "Recommends", "Suggests", "Enhances", "Conflicts", "Breaks", "Replaces", "Provides")
OF_INDICES = ("Filename", "Size", "MD5sum", "SHA1", "SHA256", "SHA512", "MSDOS-Filename", "Description-md5")
OF_DPKG = ("Status", "Config-Version", "Conffiles", "Triggers-Pending", "Triggers-Awaited", "Revision", "Package-Revision", "Package_Revision")
"""Fields that indices or dpkg's own database have: in a control file, dpkg refuses them, or reads them in place of another field."""
OLD_NAMES = {"Class": "Priority", "Optional": "Suggests", "Recommended": "Recommends"}
_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]+")
_VERSION = re.compile(r"(?:[0-9]{1,9}:)?[0-9](?:[A-Za-z0-9.+~-]*[A-Za-z0-9.+~])?")
_ARCHITECTURE = re.compile(r"[a-z0-9][a-z0-9-]*")
_RELATION = re.compile(
    r"[a-z0-9][a-z0-9+.-]+(?::[a-z0-9][a-z0-9-]*)?"
    r"(?:[ \t\n]*\([ \t\n]*(<<|<=|=|>=|>>)[ \t\n]*((?:[0-9]{1,9}:)?[0-9](?:[A-Za-z0-9.+~-]*[A-Za-z0-9.+~])?)[ \t\n]*\))?"
)
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9+./_-]*")
Wrong = Callable[[str], Exception]


def is_package_name(name: str) -> bool:
    """Whether it is a name of a Debian package: of lower-case letters, digits and `+ - .`, and no path."""
    return len(name) <= MAX_NAME and _NAME.fullmatch(name) is not None


def is_deb_version(version: str) -> bool:
    """Whether it is `[epoch:]upstream[-revision]` (deb-version(7)), in what a file name can hold."""
    return len(version) <= MAX_VERSION and _VERSION.fullmatch(version) is not None


def check_control(fields: Mapping[str, str], wrong: Wrong) -> None:
    """Check the fields of a control file, so far as dpkg, apt or CKP act by them.

    Args:
        fields: found in any letter case.

    Raises:
        Exception: made by `wrong`, for the first that dpkg would refuse, or that it would read otherwise than CKP.
    """
    name, version, architecture = (fields.get(label, "") for label in ("Package", "Version", "Architecture"))
    if not is_package_name(name):
        raise wrong(f"its Package {name[:80]!r} is not a name of a package")
    if not is_deb_version(version):
        raise wrong(f"its Version {version[:80]!r} is not a version of a package")
    if not _ARCHITECTURE.fullmatch(architecture) or len(architecture) > MAX_NAME:
        raise wrong(f"its Architecture {architecture[:80]!r} is not a name of an architecture")
    for label in (*OF_INDICES, *OF_DPKG):
        if label in fields:
            raise wrong(f"it has the field {label}, which only an index or dpkg itself may write")
    for label, now in OLD_NAMES.items():
        if label in fields:
            raise wrong(f"it has the field {label}, which dpkg takes for {now}, and others pass over")
    if not list(fields.values())[-1].strip():
        raise wrong(f"its last field, {list(fields)[-1]}, is empty, which dpkg takes for a file that is cut off")
    for label in ("Essential", "Protected", "Important", "Build-Essential"):
        if fields.get(label, "no") not in ("yes", "no"):
            raise wrong(f"its {label} is neither yes nor no")
    if fields.get("Multi-Arch", "no") not in ("no", "same", "foreign", "allowed"):
        raise wrong(f"its Multi-Arch {fields['Multi-Arch'][:80]!r} is none that dpkg knows")
    if fields.get("Multi-Arch") == "same" and architecture == "all":
        raise wrong("its Multi-Arch is same, but its Architecture is all")
    for label in ("Maintainer", "Section", "Priority", "Source", "Installed-Size", "Homepage", "Origin", "Bugs"):
        if "\n" in fields.get(label, ""):
            raise wrong(f"its {label} has more than one line")
    if fields.get("Priority") and not _WORD.fullmatch(fields["Priority"]):
        raise wrong(f"its Priority {fields['Priority'][:80]!r} is not a word")
    if not re.fullmatch(r"[0-9]{0,15}", fields.get("Installed-Size", "")):
        raise wrong("its Installed-Size is not a number")
    for label in RELATIONS:
        if label in fields:
            _check_relations(label, fields[label], wrong)


def _check_relations(label: str, value: str, wrong: Wrong) -> None:
    if not value:
        return
    alternatives = label in ("Pre-Depends", "Depends", "Recommends", "Suggests", "Enhances")
    for group in value.split(","):
        for relation in group.split("|") if alternatives else [group]:
            match = _RELATION.fullmatch(relation.strip(" \t\n"))
            # apt passes over what breaks or replaces a package of any architecture; dpkg does not.
            any_of_all = not alternatives and relation.partition("(")[0].rstrip(" \t\n").endswith(":any")
            if match is None or any_of_all or (label == "Provides" and match.group(1) not in (None, "=")):
                raise wrong(f"its {label} has {relation.strip()[:80]!r}, which is not a relation to a package")
