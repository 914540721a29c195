"""Checking an existing cluster that CKP is to be installed onto."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from ckp.kits.errors import CkpError
from ckp.site import management
from ckp.site.check.model import Finding, Severity, failed
from ckp.site.check.provided import STORAGE
from ckp.site.clusters import brought, look
from ckp.site.clusters.existing import ExistingCluster
from ckp.site.described import storage_of
from ckp.site.provided import storage
from ckp.site.spec.model import SiteSpec

CHECK = "cluster"


def check(spec: SiteSpec) -> list[Finding]:
    """What is wrong with the existing cluster of a site; nothing where CKP installs its own."""
    if spec.management.kubeconfig is None:
        return []
    try:
        return list(_findings(spec, ExistingCluster(spec.management.kubeconfig)))
    except CkpError as error:
        return [failed("", CHECK, error)]


def _findings(spec: SiteSpec, cluster: ExistingCluster) -> Iterator[Finding]:
    kubectl = partial(management.kubectl, cluster)
    addresses = {"Compass": str(spec.addresses.compass.address), "the hub": str(spec.addresses.hub.address)}
    for found in look.problems(look.look(kubectl), addresses):
        yield Finding("", CHECK, Severity.ERROR, found.what, found.remedy)
    if other := brought.other_site(kubectl, spec.metadata.name):
        yield Finding("", CHECK, Severity.ERROR, f"the cluster carries the site {other}", "take another cluster; one carries one site")
    classes, wanted = storage.look(kubectl), storage_of(spec)
    for each in storage.problems(wanted, classes):
        yield Finding("", STORAGE, Severity.ERROR if each.certain else Severity.WARNING, each.what, each.remedy)
    needs_default = [what for what, needed in (("etcd", not wanted.etcd_class), ("Compass' SQLite", spec.database.postgresql is None)) if needed]
    if needs_default and not classes.default:
        what = f"the cluster has no default StorageClass, and {' and '.join(needs_default)} would get no volume"
        yield Finding("", STORAGE, Severity.ERROR, what, "make one the default, or write storage.etcd.className and database.postgresql")
