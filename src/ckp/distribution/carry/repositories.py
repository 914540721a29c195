"""The publisher's package repositories at a site that imports releases from files and has no signing key.

One signature of the maker's covers an apt repository with all its components, so nothing can be added to it without the maker's key: each
release keeps the repositories that came with it, below a folder of its name. A host follows one of them, or several.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from ckp.distribution.carry.airgap import ImportedRelease
from ckp.distribution.repositories.files import make_folder, require_exchange, scratch_folder, switch
from ckp.kits.errors import Conflict
from ckp.kits.files import exclusive, require_free_space, sha256_file, tree_size

LOCK_TIMEOUT = 1800.0


def take_repositories(release: ImportedRelease, root: Path, *, replace: bool = False) -> Path:
    """Lay the repositories of a release below `root`, as they were signed; the same again changes nothing. Returns their folder.

    They are there when they are whole, and not before. The lock is that of repositories which the site signs itself (ckp.distribution.repositories.publish).

    Args:
        replace: let them take the place of others that are there for this release.

    Raises:
        Conflict: there are others for this release. Nothing was changed.
    """
    final = root.absolute() / release.release.name
    with exclusive(root.absolute() / ".lock", what=f"a change of the repositories in {root}", timeout=LOCK_TIMEOUT):
        if final.exists():
            here, there = _contents(release.repositories), _contents(final)
            wrong = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
            if not wrong:
                release.say(f"the package repositories in {final} are there already: nothing was changed")
                return final
            if not replace:
                raise Conflict(
                    f"{final} has other repositories of {release.release.name} than the file; nothing was changed",
                    details="\n".join([*wrong[:10], *([f"and {len(wrong) - 10} more"] if len(wrong) > 10 else [])]),
                    resolution="was the release exported twice, or changed here? `--replace` replaces them with the file's",
                )
        require_free_space(root, tree_size(release.repositories) / (1 << 30) + 0.1, what=f"the package repositories of {release.release.name}")
        with scratch_folder(root.absolute()) as scratch:
            replaced = final.exists()
            if replaced:
                require_exchange(scratch)
            new = make_folder(scratch / "new", below=scratch)
            for name in _files(release.repositories):
                make_folder((new / name).parent, below=new)
                shutil.copyfile(release.repositories / name, new / name)
                (new / name).chmod(0o644)
            switch(new, final)
    release.say(f"package repositories in {final}" + (", which replaced others" if replaced else ""))
    return final


def _files(folder: Path) -> list[str]:
    """What is served: hidden files are locks and scratch folders."""
    names = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if not path.is_dir())
    return [str(name) for name in names if not any(part.startswith(".") for part in name.parts)]


def _contents(folder: Path) -> dict[str, str]:
    return {name: "no regular file" if (folder / name).is_symlink() or not (folder / name).is_file() else sha256_file(folder / name) for name in _files(folder)}
