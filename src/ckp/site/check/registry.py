"""Checking a registry that was there before the site: that it is reached and trusted, and what its two users may do. An upload is begun and cancelled."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from ckp.clients.oci.registry import Registry
from ckp.distribution.bundles import PREFIX
from ckp.kits.errors import CkpError
from ckp.site.check.model import Finding, Severity, SiteToCheck, failed
from ckp.site.inventory import OutsideRegistry
from ckp.site.registries import existing

CHECK = "registry"
REACH = "correct registry.existing.address and caFile, or let {who} through to it"


def request_of(site: SiteToCheck) -> dict[str, Any] | None:
    """What each host is to ask (remote.ask_registry). It holds the login, and goes by standard input."""
    place = site.registry
    if place is None:
        return None
    repository = f"{place.prefix}/{existing.NONE}" if place.prefix else existing.NONE
    return {"host": place.host, "repository": repository, "ca": place.ca.read_text() if place.ca is not None else "", "basic": place.login}


def not_pulled(place: OutsideRegistry, host: str, answer: int | str) -> Finding:
    """Why a host can't pull.

    Args:
        answer: as of `Survey.registry`.
    """
    if isinstance(answer, str):
        return Finding(host, CHECK, Severity.ERROR, f"the registry {place.host} is not reached from there: {answer}", REACH.format(who="the host"))
    if answer in (401, 403) and not place.login:
        what = f"the registry {place.host} asks hosts for a password ({answer})"
        return Finding(host, CHECK, Severity.ERROR, what, "write pullCredentialsFile with a user who may read")
    if answer in (401, 403):
        what = f"the registry {place.host} does not let the user of pullCredentialsFile pull ({answer})"
        remedy = "let that user read, by HTTP's Basic authentication or by tokens that the registry gives for the password; look at the password"
        return Finding(host, CHECK, Severity.ERROR, what, remedy)
    return Finding(
        host, CHECK, Severity.ERROR, f"the registry {place.host} answers a pull with {answer}", "see whether it is a registry, and what its log says"
    )


def check_registry(site: SiteToCheck, say: Callable[[str], None]) -> list[Finding]:
    """What this machine sees of it."""
    if site.registry is None:
        return []
    say(f"asking the registry {site.registry.host}")
    return list(_findings(site.registry))


def _findings(place: OutsideRegistry) -> Iterator[Finding]:
    where = f"{place.address}/{PREFIX}"
    try:
        with closing(existing.connect(place, place.credentials)) as client:
            if not client.may_push(existing.NONE):
                what = f"the registry does not let this machine push to {where}"
                yield Finding("", CHECK, Severity.ERROR, what, "write credentialsFile with a user who may push there, or another prefix")
        if place.login:
            with _as_hosts(place) as client:
                if client.may_push(existing.NONE):
                    what = f"the user of pullCredentialsFile, whom all hosts get, may push to {where}"
                    yield Finding(
                        "", CHECK, Severity.WARNING, what, "take a user who may read only: whoever takes over one host could change what all of them run"
                    )
    except CkpError as error:
        yield failed("", CHECK, error, REACH.format(who="this machine"))


@contextmanager
def _as_hosts(place: OutsideRegistry) -> Iterator[Registry]:
    """A client with the login of the hosts, which is in a file of this user's alone for as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix="ckp-check-") as folder:
        file = Path(folder) / "config.json"
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as stream:
            stream.write(existing.docker_config(place.host, place.login))
        with closing(existing.connect(place, file)) as client:
            yield client
