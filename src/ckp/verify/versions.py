"""Comparison of package versions, as dpkg and rpm do it, and the rule against unrequested downgrades."""

from __future__ import annotations

import re
from typing import Mapping

from ckp.hostkit.errors import VerificationFailed


def compare_deb(first: str, second: str) -> int:
    """-1, 0 or 1, as `dpkg --compare-versions` orders them (deb-version(7))."""
    left, right = _parts(first), _parts(second)
    return _decimal(left[0], right[0]) or _deb_part(left[1], right[1]) or _deb_part(left[2], right[2])


def _parts(version: str) -> tuple[str, str, str]:
    """Epoch, version, and revision or release; "" for each that is absent."""
    epoch, colon, rest = version.partition(":")
    upstream, dash, revision = (rest if colon else version).rpartition("-")
    return epoch if colon else "", upstream if dash else revision, revision if dash else ""


def _deb_order(text: str, position: int) -> int:
    """The sort order of a character: `~`, the end, letters, all others."""
    if position >= len(text) or text[position] in "0123456789":
        return 0
    letter = text[position]
    return -1 if letter == "~" else ord(letter) if letter.isascii() and letter.isalpha() else ord(letter) + 256


def _deb_part(first: str, second: str) -> int:
    left = right = 0
    while left < len(first) or right < len(second):
        while (left < len(first) and first[left] not in "0123456789") or (right < len(second) and second[right] not in "0123456789"):
            order = _numbers(_deb_order(first, left), _deb_order(second, right))
            if order:
                return order
            left, right = left + 1, right + 1
        left_number, right_number = _digits(first, left), _digits(second, right)
        order = _decimal(left_number, right_number)
        if order:
            return order
        left, right = left + len(left_number), right + len(right_number)
    return 0


def _digits(text: str, position: int) -> str:
    end = position
    while end < len(text) and text[end] in "0123456789":
        end += 1
    return text[position:end]


def _decimal(first: str, second: str) -> int:
    """Compare digits as numbers of any length."""
    left, right = first.lstrip("0"), second.lstrip("0")
    return _numbers(len(left), len(right)) or (left > right) - (left < right)


def _numbers(first: int, second: int) -> int:
    return (first > second) - (first < second)


def compare_rpm(first: str, second: str) -> int:
    """-1, 0 or 1, as rpm orders `[epoch:]version[-release]` (rpmverCmp in rpm's lib/rpmver.c); a version without release is older than with any."""
    left, right = _parts(first), _parts(second)
    order = _decimal(left[0], right[0]) or _rpm_part(left[1], right[1])
    if order or not (left[2] and right[2]):
        return order or _numbers(bool(left[2]), bool(right[2]))
    return _rpm_part(left[2], right[2])


def _rpm_part(first: str, second: str) -> int:
    """Compare runs of digits and of letters one by one; other characters only separate them, except `~` and `^`."""
    left, right = _runs(first), _runs(second)
    for index in range(max(len(left), len(right))):
        one = left[index] if index < len(left) else ""
        two = right[index] if index < len(right) else ""
        if one == two:
            continue
        if "~" in (one, two):
            return -1 if one == "~" else 1
        if "^" in (one, two):
            # newer than the end, older than anything else
            other = two if one == "^" else one
            return (1 if other == "" else -1) if one == "^" else (-1 if other == "" else 1)
        if not one or not two:
            return 1 if one else -1
        if one[0].isdigit() != two[0].isdigit():
            return 1 if one[0].isdigit() else -1
        order = _decimal(one, two) if one[0].isdigit() else (one > two) - (one < two)
        if order:
            return order
    return 0


def _runs(version: str) -> list[str]:
    return re.findall(r"[0-9]+|[A-Za-z]+|~|\^", version)


def canonical(kind: str, version: str) -> str:
    """One text for all versions that compare as equal, which 1.0, 0:1.00 and 1.0-0 do for dpkg, and 1.0 and 1_00 for rpm.

    Args:
        kind: as of `compare`.
    """
    epoch, *parts = _parts(version)
    if kind == "rpm":
        runs = [["-" if part else ""] + [run.lstrip("0") or "0" if run[0].isdigit() else run for run in _runs(part)] for part in parts]
    else:
        runs = [[run for pair in re.findall(r"([^0-9]*)([0-9]*)", part) for run in (pair[0], pair[1].lstrip("0"))] for part in parts]
        for part in runs:
            while part and not part[-1]:
                part.pop()
    return "\n".join([epoch.lstrip("0"), *("\t".join(part) for part in runs)])


def compare(kind: str, first: str, second: str) -> int:
    """-1, 0 or 1 for two versions of debs (`dpkg`, `deb`) or rpms (`rpm`)."""
    return compare_rpm(first, second) if kind == "rpm" else compare_deb(first, second)


def refuse_downgrade(kind: str, installed: Mapping[str, str], wanted: Mapping[str, str], *, allowed: bool = False) -> None:
    """Refuse to replace an installed package by an older one, even if that is signed, unless the desired state allows it.

    Args:
        kind: `dpkg` or `rpm`, an Installer's name.
        installed: versions of what is installed, by package.
        wanted: versions of what is to be installed, by package.
        allowed: the desired state allows it.

    Raises:
        VerificationFailed: with each such package (check `downgrade`).
    """
    older = [name for name in sorted(wanted) if name in installed and compare(kind, wanted[name], installed[name]) < 0]
    if older and not allowed:
        raise VerificationFailed(
            f"{older[0]} {installed[older[0]]} is installed, and {wanted[older[0]]} is older: a downgrade is refused",
            check="downgrade",
            details="\n".join(f"{name}: installed {installed[name]}, wanted {wanted[name]}" for name in older),
            resolution="take a newer bundle, or set `allow_downgrade` in the desired state",
        )
