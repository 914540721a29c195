"""The management layer's objects: kept before they are changed, brought to the new version one after the other, and put back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ckp.kits.errors import CkpError
from ckp.rules.schemas import HEAD
from ckp.site import management, version
from ckp.site.install import APPLY, APPLY_SECONDS, CKP_GROUP, FIELD_MANAGER, apply_until_taken
from ckp.site.inventory import SiteHost
from ckp.site.upgrade import crds, database
from ckp.site.upgrade import record as records
from ckp.site.upgrade.applied import applied_by
from ckp.site.upgrade.limits import Limits
from ckp.site.upgrade.record import DROPPED, NEW, Record, Ref

Obj = dict[str, Any]
Groups = Mapping[str, Sequence[Obj]]
"""The layer's groups in their order, as ckp.site.install.Site.groups renders them."""
Say = Callable[[str], None]
MANAGER = FIELD_MANAGER.partition("=")[2]
DEPLOYMENT = "Deployment"
LASTING = (crds.KIND, "Namespace", "PersistentVolumeClaim", "Secret")
"""Kinds of which nothing is deleted because a version has it no longer."""
ORDER = ("ckp-controllers", "ckp-hub", database.COMPASS)
"""CKP's own Deployments, one after the other."""


# -- keeping


def keep(host: SiteHost, groups: Groups) -> tuple[Ref, ...]:
    """Keep what is there of each group's objects; returns those that are not there yet.

    Raises:
        Conflict: a definition can't be brought to the new version (crds.require_possible). Nothing was changed.
        CkpError: the management cluster does not answer.
    """
    live = crds.read(host)
    crds.require_possible(crds.of([each for objects in groups.values() for each in objects]), live)
    new: list[Ref] = []
    for name, objects in groups.items():
        refs = [Ref.of(each) for each in objects]
        found = {Ref.of(each).key: each for each in _live(host, refs, live)}
        new += [ref for ref in refs if ref.key not in found]
        records.keep(host, name, [_as_it_was(found[ref.key]) for ref in refs if ref.key in found])
    records.keep(host, DROPPED, [applied_by(each, MANAGER) for each in dropped(host, groups, live)])
    records.keep(host, NEW, [compass_of(groups)])
    return tuple(new)


def dropped(host: SiteHost, groups: Groups, definitions: Mapping[str, Obj]) -> list[Obj]:
    """What CKP has applied of the layer's kinds and the new version has no longer, with managed fields: by the field manager, which nobody else uses.

    Data is not among them, and nothing that others would go with: definitions of kinds, namespaces, claims of volumes. Secrets are not, as they are
    applied beside the groups.

    Raises:
        CkpError: the management cluster does not answer.
    """
    refs = [Ref.of(each) for objects in groups.values() for each in objects]
    served = {(each["spec"]["group"], each["spec"]["names"]["kind"]) for each in definitions.values()}
    kinds = sorted({ref.resource for ref in refs if ref.kind not in LASTING and (_is_builtin(ref.group) or (ref.group, ref.kind) in served)})
    if not kinds:
        return []
    said = management.kubectl(host, "get", ",".join(kinds), "--all-namespaces", "--show-managed-fields", "--output=json", timeout=300)
    wanted = {ref.key for ref in refs}
    return [each for each in json.loads(said)["items"] if Ref.of(each).key not in wanted and _is_ours(each)]


def _is_ours(obj: Obj) -> bool:
    """Whether CKP has applied it as a part of the layer: not its own records of the upgrade, which go by themselves."""
    by_us = any(each.get("manager") == MANAGER and each.get("operation") == "Apply" for each in obj["metadata"].get("managedFields") or ())
    return by_us and not (obj["kind"] == "ConfigMap" and obj["metadata"]["name"].startswith(version.UPGRADING))


def _as_it_was(found: Obj) -> Obj:
    """What the way back applies: what this layer's manager has set. Of an object that it has set nothing of, all that people set: somebody else has made it."""
    ours = applied_by(found, MANAGER)
    if ours.keys() - {"apiVersion", "kind", "metadata"} or ours["metadata"].keys() - {"name", "namespace"}:
        return ours
    meta = {key: value for key, value in found["metadata"].items() if key in ("name", "namespace", "labels", "annotations")}
    return {**{key: value for key, value in found.items() if key != "status"}, "metadata": meta}


def _live(host: SiteHost, refs: Sequence[Ref], definitions: Mapping[str, Obj]) -> list[Obj]:
    """Those of these objects that are there, with their managed fields. Of a kind that is not known yet there are none."""
    served = {(each["spec"]["group"], each["spec"]["names"]["kind"]): each["spec"]["versions"] for each in definitions.values()}
    asked = []
    for ref in refs:
        versions = served.get((ref.group, ref.kind))
        if versions is None:
            if _is_builtin(ref.group):
                asked.append(ref.minimal())
            continue
        names = [str(each["name"]) for each in versions if each["served"]]
        wanted = ref.api_version.rpartition("/")[2]
        asked.append({**ref.minimal(), "apiVersion": f"{ref.group}/{wanted if wanted in names else names[0]}"})
    if not asked:
        return []
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": asked})
    said = management.kubectl(host, "get", "-f", "-", "--ignore-not-found", "--show-managed-fields", "--output=json", stdin=text, timeout=300)
    if not said.strip():
        return []
    found = json.loads(said)
    return list(found["items"]) if found["kind"] == "List" else [found]


def _is_builtin(group: str) -> bool:
    return "." not in group or group.endswith(".k8s.io")


def compass_of(groups: Groups) -> Obj:
    """Compass' Deployment."""
    return next(each for each in groups[CKP_GROUP] if each["kind"] == DEPLOYMENT and each["metadata"]["name"] == database.COMPASS)


# -- forward


def migrate(host: SiteHost, groups: Groups, limits: Limits, say: Say) -> None:
    """The database, then the kinds of objects: what the old version works with as well. Raises CkpError."""
    database.bring_up(host, compass_of(groups), limits)
    say(f"Compass' database: schema {HEAD}")
    live = crds.read(host)
    wanted = [crds.widened(each, live.get(each["metadata"]["name"])) for each in crds.of(groups[CKP_GROUP])]
    crds.apply(host, wanted)
    say(f"{len(wanted)} kinds of objects")


def bring_others(host: SiteHost, groups: Groups, limits: Limits, say: Say) -> None:
    """What CKP's own stands on: namespaces, cert-manager, Cluster API. Raises CkpError."""
    for name, objects in groups.items():
        if name != CKP_GROUP:
            live = crds.read(host)
            apply(host, [crds.widened(each, live.get(each["metadata"]["name"])) if each["kind"] == crds.KIND else each for each in objects], limits)
            for each in deployments(objects):
                wait_ready(host, each, limits, say)


def roll(host: SiteHost, groups: Groups, limits: Limits, say: Say) -> None:
    """CKP's own: first what its pods need, then one Deployment after the other, each when the one before it is ready; what is no longer needed goes.

    Raises CkpError.
    """
    ours = groups[CKP_GROUP]
    apply(host, [each for each in ours if each["kind"] not in (crds.KIND, DEPLOYMENT) and not _is_version(each)], limits)
    for each in deployments(ours):
        apply(host, [each], limits)
        wait_ready(host, each, limits, say)
    prune(host, say)


def prune(host: SiteHost, say: Say) -> None:
    """Delete what the new version has no longer, as it was kept. What is gone already is fine. Raises CkpError."""
    for each in records.kept(host, DROPPED):
        ref = Ref.of(each)
        delete(host, ref, "--wait=false")
        say(f"{ref.resource} {ref.name}: deleted, as CKP has it no longer")


def delete(host: SiteHost, ref: Ref, *options: str) -> None:
    """Delete an object; none there is fine. Raises CkpError."""
    where = [f"--namespace={ref.namespace}"] if ref.namespace else []
    management.kubectl(host, "delete", ref.resource, ref.name, *where, *options, "--ignore-not-found", timeout=120)


def commit(host: SiteHost, groups: Groups, say: Say) -> None:
    """From here on the site is of the new version. Done already is fine. Raises CkpError."""
    for objects in groups.values():
        for name in crds.narrow(host, crds.of(objects)):
            say(f"{name}: all objects are stored again")
    management.kubectl(host, *APPLY, stdin=json.dumps(version.config_map()))


def deployments(objects: Iterable[Obj]) -> list[Obj]:
    """Those among objects, CKP's own in ORDER."""
    found = [each for each in objects if each["kind"] == DEPLOYMENT]
    return sorted(found, key=lambda each: ORDER.index(each["metadata"]["name"]) if each["metadata"]["name"] in ORDER else len(ORDER))


def apply(host: SiteHost, objects: Sequence[Obj], limits: Limits) -> None:
    """Apply objects. Raises TimedOut as `apply_until_taken`."""
    if objects:
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        what = f"applying {len(objects)} objects"
        apply_until_taken(lambda words: management.kubectl(host, *words, stdin=text, timeout=APPLY_SECONDS), what, limits.apply)


def wait_ready(host: SiteHost, deployment: Obj, limits: Limits, say: Say) -> None:
    """Wait until all pods of a Deployment are as it says, and ready.

    Raises:
        CkpError: they are not in time; pods and events are in the details.
    """
    name, namespace = deployment["metadata"]["name"], deployment["metadata"]["namespace"]
    where, seconds = f"--namespace={namespace}", int(limits.ready)
    try:
        # Its `timeout` is of all requests together here: a watch is one request, and has half of it (management.kubectl).
        management.kubectl(host, "rollout", "status", f"deployment/{name}", where, f"--timeout={seconds}s", timeout=2 * seconds + 60)
    except CkpError as error:
        raise CkpError(f"{namespace}/{name} did not become ready within {seconds} s", details=f"{error.details}\n{_pods(host, where)}") from None
    say(f"{name}: ready")


def _pods(host: SiteHost, where: str) -> str:
    try:
        return management.kubectl(host, "get", "pods,events", where, "--sort-by=.metadata.creationTimestamp")
    except CkpError as error:
        return error.brief


def _is_version(obj: Obj) -> bool:
    return bool(obj["kind"] == "ConfigMap" and obj["metadata"]["name"] == version.CONFIG)


# -- back


def go_back(host: SiteHost, record: Record, names: Sequence[str], limits: Limits, say: Say) -> None:
    """Put everything back as it was kept. Done in part is fine: the same again goes on.

    Controllers and hub first, then Compass with its database, and kinds of objects last: the new pods have ended by then.

    Args:
        names: the groups, in their order.

    Raises:
        CkpError: something can't be put back, or is not ready as it was.
    """
    kept = {name: records.kept(host, name) for name in names}
    ours = kept[CKP_GROUP]
    apply(host, records.kept(host, DROPPED), limits)  # the old pods may need it
    for each in deployments(ours):
        if each["metadata"]["name"] != database.COMPASS:
            apply(host, [each], limits)
            wait_ready(host, each, limits, say)
    _database_back(host, record, limits, say)
    apply(host, [each for each in ours if each["kind"] != crds.KIND], limits)
    for each in deployments(ours):
        wait_ready(host, each, limits, say)
    _remove(host, record.made, say)
    crds.apply(host, crds.of(ours))
    for name in reversed(names):
        if name != CKP_GROUP:
            apply(host, kept[name], limits)
            for each in deployments(kept[name]):
                wait_ready(host, each, limits, say)


def _database_back(host: SiteHost, record: Record, limits: Limits, say: Say) -> None:
    try:
        if database.schema(host) == record.schema_before:
            return
    except CkpError:
        pass  # no Compass runs: the Job looks
    [compass] = records.kept(host, NEW)
    database.take_back(host, compass, record.schema_before, limits)
    say(f"Compass' database: schema {record.schema_before}")


def _remove(host: SiteHost, made: Sequence[Ref], say: Say) -> None:
    """What the new version brought. A kind of which there are objects by now stays: they would go with it, and the old version does not know it."""
    for ref in made:
        options = ["--wait=false"]
        if ref.kind == crds.KIND:
            there = management.kubectl(host, "get", crds.RESOURCE, ref.name, "--ignore-not-found", "--output=name").strip()
            if not there:
                continue
            if management.kubectl(host, "get", ref.name, "--all-namespaces", "--output=name").strip():
                say(f"{ref.name} stays: there are objects of it")
                continue
            options = ["--timeout=60s"]  # gone before it may come again
        delete(host, ref, *options)
