"""What only Debian packages have: the ar archive with its signature, the copyright file, the changelog's form, the notes for lintian.

The signature is a `_gpgorigin` member over the members before it, as debsigs and dpkg-sig know it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ckp.clients.signing.openpgp import SigningKey
from ckp.kits.errors import CkpError

SOURCE_DATE = "1767225600"
"""2026-01-01: the time of every file in a package, so that the same content gives the same bytes."""
AR_MAGIC = b"!<arch>\n"
COMMON_LICENCES = ("Apache-2.0", "LGPL-2.1", "MPL-2.0")
"""Licences whose text every Debian system has in /usr/share/common-licenses (Debian policy 12.5); SPDX and Debian name them alike."""


def sign_deb(unsigned: bytes, key: SigningKey) -> bytes:
    """The package with a `_gpgorigin` member: a detached signature over the concatenated content of all members before it (debsigs(1))."""
    signature = key.sign(b"".join(content for _, content in ar_members(unsigned)))
    return unsigned + ar_member("_gpgorigin", signature)


def ar_members(archive: bytes) -> list[tuple[str, bytes]]:
    """Names and contents of an ar archive that we made ourselves. Untrusted ones are read by ckp.verify."""
    if not archive.startswith(AR_MAGIC):
        raise CkpError("not an ar archive")
    members, position = [], len(AR_MAGIC)
    while position < len(archive):
        header = archive[position : position + 60]
        size = int(header[48:58])
        members.append((header[:16].decode().strip().rstrip("/"), archive[position + 60 : position + 60 + size]))
        position += 60 + size + size % 2
    return members


def ar_member(name: str, content: bytes) -> bytes:
    """One member with its header (deb(5)): fixed time and owner, padded to an even length."""
    header = f"{name:<16}{SOURCE_DATE:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
    return header + content + (b"\n" if len(content) % 2 else b"")


def copyright_file(package: str, origins: Sequence[Mapping[str, str]]) -> str:
    """The machine-readable copyright file (DEP-5, copyright-format 1.0).

    Args:
        origins: of each component in the package: `name`, `version`, `source`, `holder`, `licence` (SPDX) and, where a Debian system does not
            have the licence's text, `text`.
    """
    names = ", ".join(f"{item['name']} {item['version']}".strip() for item in origins)
    lines = [
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/",
        f"Upstream-Name: {origins[0]['name']}",
        f"Source: {' '.join(item['source'] for item in origins)}",
        f"Comment: Built by Coredge.io from the source of {names}.",
        " The modules that are linked into the programs, and their licences, are",
        f" listed in /usr/share/doc/{package}/THIRD_PARTY.",
        "",
    ]
    for number, item in enumerate(origins):
        # DEP-5 gives the last matching paragraph the say; the components after the first are named by their folder in the source.
        lines += [f"Files: {'*' if number == 0 else item['name'] + '/*'}", f"Copyright: {item['holder']}", f"License: {item['licence']}", ""]
    for licence in sorted({item["licence"] for item in origins}):
        lines.append(f"License: {licence}")
        if licence in COMMON_LICENCES:
            lines += [" On Debian systems the text of this licence is in", f" /usr/share/common-licenses/{licence}."]
        else:
            text = next(item["text"] for item in origins if item["licence"] == licence)
            lines += [f" {line}".rstrip() if line.strip() else " ." for line in text.strip().splitlines()]
        lines.append("")
    return "\n".join(lines[:-1]) + "\n"


def lintian_overrides(package: str, notes: Sequence[tuple[str, str, str]]) -> str:
    """The overrides file (lintian's manual, 2.4): each (tag, context, reason) with its reason above it."""
    return "".join(f"# {reason}\n{package}: {tag} {context}".rstrip() + "\n" for tag, context, reason in notes)
