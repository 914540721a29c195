"""The packages of a node are held while it is one: a general upgrade of the host must not replace them by other versions, or by another maker's.

before the installation   the journal notes what the owner holds himself ▶ installation ▶ hold
reset                     release what CKP holds ▶ remove the packages ▶ hold again what the owner held
"""

from __future__ import annotations

from typing import Sequence

from ckp.agent.journal import Journal
from ckp.agent.system.installers.base import Installer
from ckp.hostkit.errors import AgentError
from ckp.hostkit.logs import log
from ckp.verify.packagefile import MAINTAINER, maintained_by_coredge

HOLDS = "holds"
"""The journal's note of package names: `ours`, held by CKP; `owners`, held by the host's owner before."""
VERSIONS = "versions"
"""The journal's note of the versions that CKP installed, by package."""


def remember(journal: Journal, installer: Installer, names: Sequence[str]) -> None:
    """Note which of these packages the owner holds, before the installation (which may lift a hold) and before CKP holds them."""
    known = journal.notes.get(HOLDS, {})
    ours, owners = list(known.get("ours", [])), list(known.get("owners", []))
    new = [name for name in names if name not in (*ours, *owners)]
    if new:
        held = installer.held(new)
        journal.note(HOLDS, {"ours": [*ours, *(name for name in new if name not in held)], "owners": [*owners, *held]})


def hold(journal: Journal, installer: Installer, names: Sequence[str]) -> None:
    """Hold packages that were installed just now, and note their versions. Raises AgentError."""
    installer.hold(names)
    journal.note(VERSIONS, {**journal.notes.get(VERSIONS, {}), **installer.installed(names)})


def release(journal: Journal, installer: Installer) -> None:
    """Release what CKP holds, and only that. Raises AgentError."""
    installer.release(journal.notes.get(HOLDS, {}).get("ours", []))


def give_back(journal: Journal, installer: Installer) -> None:
    """Hold again what the owner held, after the removal of the packages. A package manager that no longer knows the name does not fail the reset."""
    owners = journal.notes.get(HOLDS, {}).get("owners", [])
    if owners:
        try:
            installer.hold(owners)
        except AgentError as error:
            log(f"the owner's holds of {', '.join(owners)} were not restored: {error.sentence()}")


def adopt(journal: Journal, installer: Installer) -> None:
    """Hold the packages of a node that an agent without holds (0.2.0) installed. Does nothing on any other host."""
    if not journal.packages or VERSIONS in journal.notes:
        return
    try:
        remember(journal, installer, journal.packages)
        ours = [name for name, (_, maintainer) in installer.sources(journal.packages).items() if maintained_by_coredge(maintainer)]
        hold(journal, installer, ours)
        log(f"held: {', '.join(ours)}")
    except AgentError as error:  # the package manager is busy, say: it is tried again in a minute
        log(f"the node's packages are not held: {error.sentence()}")


def changed(journal: Journal, installer: Installer) -> list[str]:
    """Sentences about packages that CKP installed and that are no longer what it installed: another version, another maker's, or gone."""
    if not {"install", "packages"} & set(journal.done):  # the last step that installs some: of a worker, of a standalone cluster
        return []
    versions = journal.notes.get(VERSIONS, {})
    found = installer.sources(journal.packages)
    lines = []
    for name in journal.packages:
        version, maintainer = found.get(name, ("", ""))
        wanted = versions.get(name, "")
        if name not in found:
            lines.append(f"the package {name}, which CKP installed, is gone")
        elif not maintained_by_coredge(maintainer):
            lines.append(f"{name} {version} is a package of {maintainer or 'nobody'}, not of {MAINTAINER}" + (f" ({wanted} was installed)" if wanted else ""))
        elif wanted and version != wanted:
            lines.append(f"{name} is {version}, and CKP installed {wanted}")
    return lines


REMEDY = "switch off the package source it came from, then `ckp host remove` and `ckp host uncordon`: the next machine has the release's packages"
