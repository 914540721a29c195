"""What an upgrade would do to a site, what each step interrupts, and what speaks against it. Looking changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from ckp import __version__
from ckp.api.crds import all_crds
from ckp.kits.errors import CkpError, Conflict, InvalidInput
from ckp.rules.platform_versions import NOTES, require_next
from ckp.rules.schemas import HEAD, way_back
from ckp.site import management, version
from ckp.site.inventory import SiteHost
from ckp.site.plan.model import Action, Change
from ckp.site.releases import clusters_by_release, read_offered
from ckp.site.status import Part
from ckp.site.upgrade import agents, crds, database
from ckp.site.upgrade import record as records
from ckp.site.upgrade.record import Phase, Record

OK = "ok"


@dataclass(frozen=True)
class Situation:
    """A site as it was seen before it is upgraded.

    Args:
        version: that it is of; "" if it has no management layer.
        record: of an upgrade that is not finished.
        parts: what of the site is as it should be.
        schema: of Compass' database; "" if it could not be read.
        schema_problem: why not.
        definitions: CKP's kinds of objects that change -> how.
        definitions_problem: why they can't.
        offered: the releases that the site offers.
        clusters: its workload clusters.
        agents: of its hosts.
    """

    version: str
    record: Record | None
    parts: Sequence[Part] = ()
    schema: str = ""
    schema_problem: str = ""
    definitions: Sequence[tuple[str, str]] = ()
    definitions_problem: str = ""
    offered: Sequence[str] = ()
    clusters: Sequence[str] = ()
    agents: Sequence[agents.Agent] = ()


@dataclass(frozen=True)
class Intent:
    """What the command is to do.

    Args:
        releases: those that the site's file names.
        hosts: names of the management hosts.
        backup: where the backup goes; "" if there is to be none.
        single_compass: whether Compass has one replica.
    """

    releases: Sequence[str]
    hosts: Sequence[str]
    backup: str
    single_compass: bool = True


def look(host: SiteHost, parts: Iterable[Part]) -> Situation:
    """See how the site is.

    Args:
        parts: as of ckp.site.status; asked for only where they count.

    Raises:
        CkpError: the management cluster does not answer.
    """
    if not management.exists(host):
        return Situation("", None)
    record = records.read(host)
    if record is not None:
        return Situation(record.before, record)
    found = version.installed(host)
    if found in ("", __version__):
        return Situation(found, None)
    schema, why = "", ""
    try:
        schema = database.schema(host)
    except CkpError as error:
        why = error.details or error.brief
    live = crds.read(host)
    differ = [(each["metadata"]["name"], words) for each in all_crds() if (words := crds.changed(each, live.get(each["metadata"]["name"])))]
    problem = ""
    try:
        crds.require_possible(all_crds(), live)
    except Conflict as error:
        problem = error.details
    offered = read_offered(host)
    used = {cluster for names in clusters_by_release(host).values() for cluster in names}
    names = tuple(offered.releases.releases) if offered else ()
    return Situation(found, None, tuple(parts), schema, why, differ, problem, names, tuple(sorted(used)), tuple(agents.read(host)))


def changes(seen: Situation, intent: Intent) -> list[Change]:
    """What the upgrade does to each part, in its order; none if the site is of this version already. Pure: each case is a row of a test's table."""
    if seen.record is not None:
        return [_unfinished(seen.record)]
    if not seen.version:
        return [Change("version", Action.REFUSED, "there is no management layer", remedy="`ckp site apply` installs it")]
    if seen.version == __version__:
        return []
    return [
        _version(seen),
        *_health(seen),
        *_releases(seen, intent),
        _backup(intent),
        _database(seen),
        *_definitions(seen),
        *_layer(seen, intent),
        *_agents(seen, intent),
    ]


def require_possible(found: Sequence[Change]) -> None:
    """Refuse an upgrade that something speaks against.

    Raises:
        InvalidInput: each is in the details, with what to do about it. Nothing was changed.
    """
    if refused := [each for each in found if each.action is Action.REFUSED]:
        raise InvalidInput(
            "the site can't be upgraded as it is, and nothing was changed",
            details="\n".join(f"{each.part}: {each.detail} (what to do: {each.remedy})" for each in refused),
            resolution="`ckp site upgrade --plan` shows this with all that the upgrade does",
        )


def _unfinished(record: Record) -> Change:
    what = f"the upgrade from {record.before} to {record.to}"
    if record.to != __version__:
        return Change("version", Action.REFUSED, f"{what} is not finished, and this is CKP {__version__}", remedy=f"finish it with CKP {record.to}")
    if record.phase is Phase.BACK:
        return Change("version", Action.CHANGE, f"{what} is taken back, since it failed: {record.failure}", "as far as it has come, the same as upgrading")
    return Change("version", Action.CHANGE, f"{what} goes on, from its phase `{record.phase}`", "the same as from its beginning")


def _version(seen: Situation) -> Change:
    try:
        require_next(seen.version, __version__)
    except Conflict as error:
        return Change(
            "version", Action.REFUSED, error.brief.removesuffix(", and nothing was changed").removesuffix("; nothing was changed"), remedy=error.resolution
        )
    return Change("version", Action.CHANGE, f"CKP {seen.version} becomes {__version__}")


def _health(seen: Situation) -> Iterator[Change]:
    for part in seen.parts:
        if part.state != OK:
            remedy = "bring it in order first (`ckp site status`), with the version of CKP that the site is of"
            yield Change(part.name, Action.REFUSED, f"{part.state}: {part.detail}" if part.detail else part.state, remedy=remedy)


def _releases(seen: Situation, intent: Intent) -> Iterator[Change]:
    if sorted(seen.offered) != sorted(intent.releases):
        remedy = f"name in `releases` of the site's file what it offers: [{', '.join(seen.offered)}]; change that before or afterwards"
        yield Change(
            "releases", Action.REFUSED, f"the site offers {', '.join(seen.offered) or 'none'}, and its file names {', '.join(intent.releases)}", remedy=remedy
        )


def _backup(intent: Intent) -> Change:
    if intent.backup:
        return Change("backup", Action.CREATE, f"of the whole site, into {intent.backup}, before anything is changed")
    return Change("backup", Action.NONE, "WITHOUT A BACKUP: what goes wrong can be taken back only as long as the upgrade is not finished")


def _database(seen: Situation) -> Change:
    part = "Compass' database"
    if not seen.schema:
        remedy = "bring Compass in order first, with the version of CKP that the site is of"
        return Change(part, Action.REFUSED, f"its schema can't be read: {seen.schema_problem}", remedy=remedy)
    if seen.schema == HEAD:
        return Change(part, Action.NONE, f"has schema {HEAD}")
    try:
        taken = way_back(HEAD, seen.schema)
    except Conflict as error:
        return Change(part, Action.REFUSED, f"there would be no way back: {error.brief}", remedy="report this: no upgrade begins that can't be taken back")
    lost = "; ".join(schema.loses for schema in reversed(taken) if schema.loses)
    return Change(part, Action.CHANGE, f"schema {seen.schema} becomes {HEAD}" + (f"; going back would lose: {lost}" if lost else ""))


def _definitions(seen: Situation) -> Iterator[Change]:
    if seen.definitions_problem:
        remedy = "store these objects again with the version of CKP that the site is of, or report this"
        yield Change("kinds of objects", Action.REFUSED, seen.definitions_problem, remedy=remedy)
        return
    for name, words in seen.definitions:
        yield Change(name, Action.CREATE if words == "is new" else Action.CHANGE, words)


def _layer(seen: Situation, intent: Intent) -> Iterator[Change]:
    yield Change(
        "cert-manager, Cluster API", Action.UNKNOWN, "as the release has them", "nothing is renewed or changed in clusters for some seconds, if they change"
    )
    yield Change("ckp-controllers", Action.RESTART, f"of {__version__}", "clusters are not changed for some seconds; they go on")
    yield Change(
        "ckp-hub", Action.RESTART, f"of {__version__}, one replica after the other", "each host connects again, to the other replica; nodes do not notice"
    )
    away = "it does not answer for some seconds" if intent.single_compass else ""
    yield Change(database.COMPASS, Action.RESTART, f"of {__version__}", away)
    if seen.clusters and (note := NOTES.get(__version__)):
        yield Change("workload clusters", Action.RESTART, ", ".join(seen.clusters), note)


def _agents(seen: Situation, intent: Intent) -> Iterator[Change]:
    for name in intent.hosts:
        yield Change(f"{name}: host tool", Action.CHANGE, "the new version's package, verified")
    left = [each.title for each in seen.agents if not each.connected]
    if count := len(seen.agents) - len(left):
        yield Change("agents", Action.CHANGE, f"of {count} hosts, one first and then in stages", "each host connects again; its node goes on")
    if left:
        yield Change("agents that are not connected", Action.NONE, f"{', '.join(left)}: they keep theirs (later: ckp host upgrade-agent)")
