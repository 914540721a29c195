"""What applying does to the database that Compass has. Pure, as ckp.site.plan.rules, of which it is a part."""

from __future__ import annotations

from collections.abc import Iterator

from ckp.site.database import ANNOTATION
from ckp.site.plan.model import COMPASS, Action, Change, Seen, Wanted
from ckp.site.publish import NAMESPACE


def changes(wanted: Wanted, seen: Seen) -> Iterator[Change]:
    """Compass' data is in the one that it was made with, and applying moves none."""
    part, new = "database", wanted.inventory.database.place if wanted.inventory.database else ""
    layer = seen.layer
    if layer is None or COMPASS not in layer.deployments:
        yield Change(part, Action.CREATE, _named(new))
        return
    compass = layer.deployments[COMPASS]
    old = compass.template.get(f"annotation {ANNOTATION}", "")
    if old == new:
        yield Change(part, Action.NONE, _named(new))
    elif not old or not new:
        yield Change(
            part,
            Action.REFUSED,
            f"Compass has keys, requests, groups and its audit log in {_named(old)}, and applying moves none to {_named(new)}",
            remedy=f"write {'`postgresql` with its URL' if old else '`sqlite: {}`'} back; a site is made with one of them, and keeps it",
        )
    elif compass.replicas:
        yield Change(
            part,
            Action.REFUSED,
            f"Compass runs on {_named(old)}, and its replicas would write into that and into {_named(new)} at the same time",
            remedy=f"write the URL of {old} back; or, if the data was moved, end Compass first "
            f"(kubectl --namespace={NAMESPACE} scale deployment {COMPASS} --replicas=0), and apply again",
        )
    else:
        yield Change(part, Action.CHANGE, f"{_named(old)} becomes {_named(new)}")


def _named(place: str) -> str:
    return f"PostgreSQL {place}" if place else "SQLite"
