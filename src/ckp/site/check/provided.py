"""Checking what the site's owner provides (ckp.site.provided)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from ckp.kits.errors import CkpError, Conflict
from ckp.site import management
from ckp.site.check.model import Finding, HostToCheck, Severity, SiteToCheck, failed
from ckp.site.provided import storage

STORAGE = "storage"


def check_storage(site: SiteToCheck, hosts: Sequence[HostToCheck]) -> list[Finding]:
    """What volumes of etcd are made of.

    Args:
        hosts: the management hosts that are reached.
    """
    return [*_folders(site.storage.etcd_path, hosts), *_class(site, hosts)]


def _folders(folder: str, hosts: Sequence[HostToCheck]) -> Iterator[Finding]:
    for item in hosts if folder else ():
        try:
            storage.refuse_folder(item.host, folder)
        except Conflict as error:
            yield Finding(item.name, STORAGE, Severity.ERROR, error.brief, error.resolution)
        except CkpError as error:
            yield failed(item.name, STORAGE, error)


def _class(site: SiteToCheck, hosts: Sequence[HostToCheck]) -> Iterator[Finding]:
    if not site.storage.etcd_class or not hosts:
        return
    try:
        first = next((item.host for item in hosts if management.exists(item.host)), None)
        seen = storage.look(partial(management.kubectl, first)) if first is not None else None
    except CkpError as error:
        yield failed("", STORAGE, error)
        return
    for problem in storage.problems(site.storage, seen):
        yield Finding("", STORAGE, Severity.ERROR if problem.certain else Severity.WARNING, problem.what, problem.remedy)
