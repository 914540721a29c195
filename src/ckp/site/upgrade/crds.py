"""Kinds of objects from one version of CKP to the next: first they are widened, so that both versions work with them, and narrowed once there is no way back.

widened    the new definition, with the versions that only the old one has, and objects stored as the old one stores them
narrowed   the new definition; every object is stored again, in its version, before one that objects were stored in goes away
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ckp.kits.errors import CkpError, Conflict
from ckp.kits.retry import wait_until
from ckp.site import management
from ckp.site.install import APPLY
from ckp.site.inventory import SiteHost

Obj = dict[str, Any]
KIND = "CustomResourceDefinition"
RESOURCE = "customresourcedefinitions"
WAIT_SECONDS = 60
STORE_SECONDS = 120.0
CHUNK = 200
"""Objects that are stored again with one call."""


def read(host: SiteHost) -> dict[str, Obj]:
    """All definitions of the management cluster, by name. Raises CkpError."""
    items = json.loads(management.kubectl(host, "get", RESOURCE, "--output=json", timeout=120))["items"]
    return {str(item["metadata"]["name"]): item for item in items}


def of(objects: Sequence[Obj]) -> list[Obj]:
    """The definitions among objects."""
    return [each for each in objects if each["kind"] == KIND]


def changed(new: Obj, live: Obj | None) -> str:
    """What of the versions of a definition changes, in a few words; "" if none does."""
    if live is None:
        return "is new"
    come, go = _names(new) - _names(live), _names(live) - _names(new)
    words = [f"{', '.join(sorted(come))} comes"] if come else []
    words += [f"{', '.join(sorted(go))} goes"] if go else []
    if _storage(new) != _storage(live):
        words.append(f"objects are stored as {_storage(new)} instead of {_storage(live)}")
    return ", ".join(words)


def require_possible(new: Sequence[Obj], live: Mapping[str, Obj]) -> None:
    """Refuse definitions that objects which are stored could not be read with, or that there would be no way back from.

    Raises:
        Conflict: each is named in the details. Nothing was changed.
    """
    found = []
    for each in new:
        name = each["metadata"]["name"]
        there = live.get(name)
        if there is None:
            continue
        if unknown := sorted(_stored(there) - _names(each)):
            found.append(f"{name}: objects are stored as {', '.join(unknown)}, which the new definition does not know")
        if there["spec"]["scope"] != each["spec"]["scope"]:
            found.append(f"{name}: its objects are {there['spec']['scope']}, and would be {each['spec']['scope']}")
    if found:
        raise Conflict(
            f"{len(found)} kinds of objects can't be brought to this version, and nothing was changed",
            details="\n".join(found),
            resolution="store their objects again in a version that both definitions have (with the version of CKP before), or report this",
        )


def widened(new: Obj, live: Obj | None) -> Obj:
    """The definition with which the old version and the new one work side by side, and from which there is a way back. `require_possible` has passed."""
    if live is None:
        return new
    found, stored = copy.deepcopy(new), _storage(live)
    for version in found["spec"]["versions"]:
        version["storage"] = version["name"] == stored
    old = [copy.deepcopy(version) for version in live["spec"]["versions"] if version["name"] not in _names(new)]
    found["spec"]["versions"] += [{**version, "storage": False} for version in old]
    return found


def apply(host: SiteHost, definitions: Sequence[Obj]) -> None:
    """Apply definitions, and wait until the API server serves them. Raises CkpError."""
    if not definitions:
        return
    management.kubectl(host, *APPLY, stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(definitions)}), timeout=300)
    names = [f"{RESOURCE}/{each['metadata']['name']}" for each in definitions]
    management.kubectl(host, "wait", "--for=condition=Established", f"--timeout={WAIT_SECONDS}s", *names, timeout=2 * WAIT_SECONDS)


def narrow(host: SiteHost, definitions: Sequence[Obj]) -> list[str]:
    """Let the new definitions alone be so; returns the names of those whose objects were stored again. Done already is fine.

    Raises:
        CkpError: the management cluster does not answer, or refuses something: the same again goes on.
    """
    stored_again, live = [], read(host)
    for each in definitions:
        name, wanted = each["metadata"]["name"], _storage(each)
        there = live[name]
        if _stored(there) != {wanted}:
            both = widened(each, there)
            for version in both["spec"]["versions"]:
                version["storage"] = version["name"] == wanted
            apply(host, [both])
            _store_again(host, name)
            status = json.dumps({"status": {"storedVersions": [wanted]}})
            management.kubectl(host, "patch", RESOURCE, name, "--subresource=status", "--type=merge", f"--patch={status}")
            stored_again.append(name)
    apply(host, definitions)
    return stored_again


def _store_again(host: SiteHost, name: str) -> None:
    """Every object of a kind: the API server writes one again, in the version that it stores now, if it is patched with nothing.

    Raises:
        TimedOut: one could not be written in STORE_SECONDS, however often. (One that is deleted meanwhile fails one attempt.)
    """
    last: list[str] = []

    def stored() -> bool:
        try:
            _patch_all(host, name)
        except CkpError as error:
            last[:] = (error.details or error.brief).splitlines()[-6:]
            return False
        return True

    wait_until(stored, what=f"storing all {name} again", timeout=STORE_SECONDS, every=2, reason=lambda: "\n".join(last))


def _patch_all(host: SiteHost, name: str) -> None:
    columns = "--output=custom-columns=A:.apiVersion,K:.kind,S:.metadata.namespace,N:.metadata.name"
    lines = management.kubectl(host, "get", name, "--all-namespaces", "--no-headers", columns, timeout=300).splitlines()
    refs = [_ref(*line.split()) for line in lines if line.strip()]
    for first in range(0, len(refs), CHUNK):
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": refs[first : first + CHUNK]})
        management.kubectl(host, "patch", "-f", "-", "--type=merge", "--patch={}", stdin=text, timeout=300)


def _ref(api_version: str, kind: str, namespace: str, name: str) -> Obj:
    meta = {"name": name} if namespace == "<none>" else {"name": name, "namespace": namespace}
    return {"apiVersion": api_version, "kind": kind, "metadata": meta}


def _names(definition: Obj) -> set[str]:
    return {str(version["name"]) for version in definition["spec"]["versions"]}


def _storage(definition: Obj) -> str:
    return str(next(version["name"] for version in definition["spec"]["versions"] if version.get("storage")))


def _stored(definition: Obj) -> set[str]:
    return set((definition.get("status") or {}).get("storedVersions") or ())
