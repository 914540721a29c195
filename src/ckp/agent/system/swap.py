"""No swap while the host is a node: now, after a restart, and whoever turns it on. What its owner had comes back, line by line."""

from __future__ import annotations

import os
import re

from ckp.agent.journal import Journal
from ckp.agent.system import facts
from ckp.hostkit.errors import AgentError, ProcessFailed
from ckp.hostkit.files import atomic_write, read_text
from ckp.hostkit.logs import log
from ckp.hostkit.processes import run

FSTAB = "/etc/fstab"
UNITS = "/etc/systemd/system"
MARK = "# off for Kubernetes (ckp-agent): "
_LINE = re.compile(r"^(?P<head>\s*[^#\s]\S*\s+\S+\s+swap)(?P<options>\s+\S+)?(?P<rest>.*)$")


def _without(line: str) -> str:
    """A swap line of fstab that is not turned on at boot.

    It is not taken away: with no swap in fstab systemd turns on the swap partitions that it finds by itself (systemd-gpt-auto-generator(8)).
    """
    match = _LINE.match(line)
    if match is None or "noauto" in (match["options"] or "").strip().split(","):
        return line
    return f"{match['head']}{match['options'] or ' defaults'},noauto{match['rest']}"


def fstab_off(text: str) -> str:
    """fstab with its swap lines turned off; each stands above as it was, behind MARK."""
    lines: list[str] = []
    for line in text.split("\n"):
        off = _without(line)
        lines += [line] if off == line else [MARK + line, off]
    return "\n".join(lines)


def fstab_on(text: str) -> str:
    """fstab as it was before `fstab_off`; what was written to it since stays. Knows also the lines that earlier agents had only marked."""
    lines: list[str] = []
    ours: str | None = None
    for line in text.split("\n"):
        if line.startswith(MARK):
            lines.append(line[len(MARK) :])
            ours = _without(lines[-1])
            continue
        if line != ours:
            lines.append(line)
        ours = None
    return "\n".join(lines)


def _write_fstab(text: str) -> None:
    path = os.path.realpath(FSTAB)
    atomic_write(path, text, mode=os.stat(path).st_mode & 0o7777)


def devices() -> list[str]:
    """What is swapped to now."""
    return [line.split()[0] for line in read_text("/proc/swaps").splitlines()[1:]]


def units() -> list[str]:
    """systemd's units of the swap that is on: of fstab, of its own search, of zram, or somebody's own."""
    said = run(["systemctl", "list-units", "--type=swap", "--state=active", "--no-legend", "--plain", "--full"], timeout=30, check=False)
    return [line.split()[0] for line in said.stdout.splitlines() if line.split() and line.split()[0].endswith(".swap")]


def swap_off(journal: Journal) -> list[str]:
    """No swap, now and after a restart."""
    notes = []
    fstab = read_text(FSTAB)
    if (off := fstab_off(fstab)) != fstab:
        journal.note("fstab", True)
        _write_fstab(off)
        notes.append("swap lines in /etc/fstab are off")
    if facts.swap_on():
        before: list[str] = journal.notes.get("swap", [])
        journal.note("swap", [*before, *(device for device in devices() if device not in before)])
        for unit in units():
            if "/" not in unit:
                journal.replace_file(f"{UNITS}/{unit}", "")  # an empty unit is a masked one: nothing turns it on
        turn_off()
        notes.append("swap was on and is off now")
    if notes:
        run(["systemctl", "daemon-reload"], timeout=60, check=False)
    return notes


def turn_off() -> None:
    """Turn all swap off.

    Raises:
        AgentError: something is still swapped to.
    """
    try:
        run(["swapoff", "-a"], timeout=300, what="turning swap off")
    except ProcessFailed as error:
        raise AgentError(error.brief, details=error.details, resolution="turn swap off by hand; the kubelet does not start with it", reason="SwapOn") from None
    if facts.swap_on():
        raise AgentError("swap is still on after swapoff -a", resolution="turn it off by hand (swapon --show lists it)", reason="SwapOn")


def keep_off(journal: Journal) -> str:
    """On a node: whatever turned swap on since is turned off again, or its kubelet would not start. A sentence if that was so; "" if not."""
    if not facts.swap_on():
        return ""
    found = ", ".join(devices())
    try:
        swap_off(journal)
    except AgentError as error:
        return error.sentence()
    log(f"swap had come on again ({found}) and is off now")
    return f"swap had come on again ({found}) and was turned off"


def restore_fstab(journal: Journal) -> None:
    """Give fstab its swap lines back, and leave everything else in it. An earlier agent had kept the whole file: its copy is not used."""
    if "fstab" in journal.notes or FSTAB in journal.saved:
        fstab = read_text(FSTAB)
        if (on := fstab_on(fstab)) != fstab:
            _write_fstab(on)
        journal.drop_original(FSTAB)


def restore_swap(journal: Journal) -> None:
    """Turn on the swap that was on before us, when fstab and units are as they were."""
    for device in journal.notes.get("swap", []):
        if device not in devices():
            run(["swapon", device], timeout=60, check=False)
