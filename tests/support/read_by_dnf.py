"""What dnf reads in repositories. A program of its own: dnf's libraries belong to the system's Python, which runs it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PYTHON = "/usr/bin/python3"
PROGRAM = """
import json, os, sys
import dnf

def read(work, root):
    base = dnf.Base()
    conf = base.conf
    conf.reposdir, conf.varsdir, conf.pluginpath = [], [], []
    for name in ("cachedir", "persistdir", "logdir", "installroot"):
        folder = os.path.join(work, name)
        os.makedirs(folder, exist_ok=True)
        setattr(conf, name, folder)
    conf.substitutions.update(releasever="9", arch="x86_64", basearch="x86_64")
    base.repos.add_new_repo("ckp", conf, baseurl=["file://" + root], skip_if_unavailable=False)
    try:
        base.fill_sack(load_system_repo=False)
        return [shown(package) for package in base.sack.query()]
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        base.close()

KINDS = ("provides", "conflicts", "obsoletes", "recommends", "suggests", "supplements", "enhances")

def shown(package):
    relations = {kind: sorted({str(relation) for relation in getattr(package, kind)}) for kind in KINDS}
    relations["requires"] = sorted({str(relation) for relation in (*package.requires, *package.requires_pre)})
    texts = {name: getattr(package, name) or "" for name in ("name", "version", "release", "arch", "location", "vendor", "packager", "baseurl", "sourcerpm")}
    numbers = {"epoch": package.epoch, "size": package.downloadsize}
    return {**texts, **numbers, "digest": package.chksum[1].hex(), "relations": relations, "files": sorted(package.files)}

for number, root in enumerate(sys.argv[2:]):
    print(json.dumps(read(os.path.join(sys.argv[1], str(number)), root)))
"""


def is_there() -> bool:
    """Whether the system's Python has dnf's libraries."""
    return Path(PYTHON).exists() and subprocess.run([PYTHON, "-c", "import dnf"], check=False, capture_output=True).returncode == 0


def read_by_dnf(work: Path, roots: Sequence[Path]) -> list[str | list[Mapping[str, Any]]]:
    """For each repository the packages that dnf reads in it, or the words by which it refuses it.

    Args:
        work: for dnf's caches, a folder of its own for each repository.
    """
    argv = [PYTHON, "-c", PROGRAM, str(work), *map(str, roots)]
    done = subprocess.run(argv, env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "HOME": str(work)}, capture_output=True, text=True, timeout=300, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]
