"""Rules of a site's file for a site on an existing cluster."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ckp.site.spec.findings import Finding, absent, at, given


def rules(part: Any) -> Iterator[Finding]:
    """What can't be together with a cluster whose hosts are not CKP's.

    Args:
        part: a SiteSpec, or what could be read of one.
    """
    if at(part, "storage", "etcd", "path") is not None:
        what = "CKP makes no folders on the hosts of an existing cluster"
        yield Finding(("storage", "etcd", "path"), what, "write className with a StorageClass of that cluster, or remove `storage`")
    if given(at(part, "registry"), "own"):
        what = "CKP's own registry runs on management hosts, and there are none: the hosts of an existing cluster are not CKP's"
        yield Finding(("registry", "own"), what, "write `existing` with a registry that the cluster's nodes pull from")
    if given(at(part, "registry", "existing"), "pull_credentials_file"):
        what = "the nodes of an existing cluster can't be given a password, and CKP's pods are pulled by them"
        yield Finding(("registry", "existing", "pullCredentialsFile"), what, "let everybody pull below the prefix, and remove the key")
    for name, key, why in (
        ("cilium_pool", "ciliumPool", "the network of an existing cluster is not CKP's"),
        ("on_hosts", "onHosts", "its hosts are not CKP's"),
    ):
        if given(at(part, "addresses", "load_balancers"), name):
            yield Finding(("addresses", "loadBalancers", key), f"{why}, and Services get their addresses as they do there", "write className")
    if given(part, "backup"):
        yield Finding(("backup",), "an existing cluster's etcd and hosts are its owner's, who backs them up", "remove the key")
    if at(part, "workers", "systems") == () or absent(part, "workers") or at(part, "workers") is None:
        what = "workers.systems is missing: with an existing cluster there are no management hosts whose system says which bundles are needed"
        yield Finding(("workers",), what, "write systems: [debian-12], or what workers run")
    if at(part, "host_settings"):
        yield Finding(("hostSettings",), "they are for management hosts, and there are none", "remove the key")
    if at(part, "addresses", "api", "names") or at(part, "addresses", "api", "cert_sans"):
        yield Finding(("addresses", "api"), "an existing cluster has a certificate of its own", "remove names and certSANs")
