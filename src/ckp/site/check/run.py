"""Looking at a site's hosts, side by side. Nothing is changed and no file is left there; every wait has a limit."""

from __future__ import annotations

import base64
import json
import secrets
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from threading import Event
from typing import Any

from pydantic import ValidationError

from ckp.distribution.packages.agent import write_zipapp
from ckp.kits.errors import CkpError
from ckp.kits.stopping import pool
from ckp.site.check import provided, registry, remote, rules
from ckp.site.check.model import Blocked, Clock, Finding, HostToCheck, Role, Seen, Severity, SiteToCheck, Survey, failed

REACH_SECONDS = 60.0
SURVEY_SECONDS = 180.0
LISTEN_SECONDS = 60.0
"""After which a listener ends even if nobody tells it to."""
CLOCK_LOOKS = 3
MAX_FREE = 32
THREADS = 16
PYTHON = ["python3", "-I"]
_REMOTE = Path(__file__).with_name("remote.py")


def check(site: SiteToCheck, say: Callable[[str], None] = lambda _line: None) -> list[Finding]:
    """All findings about a site; errors first.

    Args:
        say: takes lines of progress.
    """
    hosts = list(site.hosts)
    found: list[Finding] = []
    seen = Seen()
    with pool(THREADS, "check") as threads:
        say(f"looking at {len(hosts)} hosts")
        looks = list(threads.map(lambda item: _look(site, item), hosts))
        found += [finding for look in looks for finding in look.findings]
        surveys = {item.name: look.survey for item, look in zip(hosts, looks, strict=True) if look.survey is not None}
        clocks = {item.name: look.clock for item, look in zip(hosts, looks, strict=True) if look.clock is not None}
        there = [item for item in hosts if item.name in surveys]
        seen = Seen(surveys, clocks)
        if there and site.free:
            say("looking whether addresses are free")
            answers, failed = _answers(site, there[0])
            found += failed
            seen = replace(seen, answers=answers)
    if site.leads:
        seen = replace(seen, here=remote.resolve(list(site.leads)))
    if len(there) > 1:
        say("connecting hosts to each other")
        blocked, failed = _connect(site, there, surveys)
        found += failed
        seen = replace(seen, blocked=blocked)
    found += registry.check_registry(site, say)
    found += provided.check_storage(site, [item for item in there if item.role is Role.MANAGEMENT])
    return rules.sort(site, [*found, *rules.judge(site, seen)])


# -- one host


@dataclass(frozen=True)
class _Look:
    findings: Sequence[Finding]
    survey: Survey | None = None
    clock: Clock | None = None


def _look(site: SiteToCheck, item: HostToCheck) -> _Look:
    name = item.name
    try:
        user = item.host.run(["id", "-u"], timeout=REACH_SECONDS).stdout.strip()
        if user != "0":
            return _Look([Finding(name, "root", Severity.ERROR, f"commands run there as user {user}, not as root", "log in as root, or as a user with sudo")])
        clock = _clock(item)
        version = item.host.run([*PYTHON, "-c", "import sys; print(sys.version_info >= (3, 9))"], timeout=REACH_SECONDS, check=False)
        if version.stdout.strip() != "True":
            what = "its python3 is older than 3.9" if version.code == 0 else "it has no python3, which the agent needs"
            return _Look([Finding(name, "python", Severity.ERROR, what, "install the package python3, or use another host")], clock=clock)
    except CkpError as error:
        return _Look([failed(name, "reachable", error)])
    more: dict[str, Any] = {"pods": site.pods, "services": site.services} if site.pods and site.services and item.role is Role.MANAGEMENT else {}
    if item.role is Role.MANAGEMENT:
        several = sum(each.role is Role.MANAGEMENT for each in site.hosts) > 1
        more |= {"address": item.host.address, "several": several}
    request: dict[str, Any] = {"action": "survey", "role": item.role.value, "more": more, "settings": json.dumps(dict(site.settings)), "ports": [*site.ports]}
    request |= {"names": list(site.names), "proxy": site.proxy, "tool": _tool()}
    request["registry"] = registry.request_of(site)
    request["database"] = list(site.database) if site.database and item.role is Role.MANAGEMENT else None
    request |= {"site_settings": site.site_settings, "nameservers": [*site.nameservers], "time_servers": [*site.time_servers]}
    try:
        answer = item.host.run([*PYTHON, "-"], timeout=SURVEY_SECONDS, stdin=_script(request), what="looking at the host").stdout
        return _Look([], Survey.model_validate_json(answer), clock)
    except ValidationError as error:
        return _Look(
            [Finding(name, "preflight", Severity.ERROR, f"what it says of itself is not understood: {error.errors()[0]['msg']}", "report this")], clock=clock
        )
    except CkpError as error:
        return _Look([failed(name, "preflight", error)], clock=clock)


def _clock(item: HostToCheck) -> Clock | None:
    """The host's clock against ours: it was read between our two readings. Of several looks the quickest, which is the surest."""
    best: Clock | None = None
    for _ in range(CLOCK_LOOKS):
        before = time.time()
        text = item.host.run(["date", "+%s.%N"], timeout=REACH_SECONDS).stdout.strip()
        after = time.time()
        try:
            clock = Clock(float(text) - (before + after) / 2, (after - before) / 2)
        except ValueError:
            return None
        if best is None or clock.uncertain < best.uncertain:
            best = clock
    return best


# -- hosts and addresses


def _answers(site: SiteToCheck, item: HostToCheck) -> tuple[dict[str, str], list[Finding]]:
    addresses = list(dict.fromkeys(site.free.values()))[:MAX_FREE]
    try:
        done = item.host.run([*PYTHON, "-"], timeout=REACH_SECONDS, stdin=_script({"action": "answers", "addresses": addresses}), what="asking for addresses")
        found: dict[str, str] = json.loads(done.stdout)
    except (CkpError, ValueError) as error:
        return {}, [failed(item.name, "free addresses", error if isinstance(error, CkpError) else CkpError(f"what it answers is not understood: {error}"))]
    return found, []


def _connect(site: SiteToCheck, there: Sequence[HostToCheck], surveys: dict[str, Survey]) -> tuple[list[Blocked], list[Finding]]:
    """From each host to the ports of each management host that it must reach, with listeners where nothing listens yet."""
    targets = {item.name: item for item in there if item.role is Role.MANAGEMENT}
    between = {name: sorted({*surveys[name].ports_between, *site.ports}) for name in targets}
    token, ready = secrets.token_hex(16), {name: Event() for name in targets}
    blocked: list[Blocked] = []
    found: list[Finding] = []

    def serve(item: HostToCheck) -> None:
        request = {"action": "listen", "ports": between[item.name], "token": token, "seconds": LISTEN_SECONDS}
        try:
            item.host.stream([*PYTHON, "-c", _script(request)], timeout=LISTEN_SECONDS + 30, on_line=lambda _line: ready[item.name].set())
        finally:
            ready[item.name].set()

    def attempt(item: HostToCheck) -> list[Blocked]:
        wanted = [
            (other.host.address, port, other.name)
            for other in targets.values()
            if other.name != item.name
            for port in (between[other.name] if item.role is Role.MANAGEMENT else site.ports)
        ]
        names = {address: name for address, _, name in wanted}
        results = _ask(item, [[address, port] for address, port, _ in wanted], "")
        return [Blocked(item.name, names[address], port, why) for address, port, why in results if why]

    # Threads of their own for the listeners: they end when the others have been there.
    with ThreadPoolExecutor(max(1, len(targets))) as listeners, pool(THREADS, "connect") as threads:
        served = {name: listeners.submit(serve, item) for name, item in targets.items()}
        for event in ready.values():
            event.wait(LISTEN_SECONDS)
        for item, attempted in [(item, threads.submit(attempt, item)) for item in there]:
            try:
                blocked += attempted.result()
            except CkpError as error:
                found.append(failed(item.name, "firewall", error))
        for item in targets.values():
            try:
                _ask(item, [["127.0.0.1", port] for port in between[item.name]], token)
            except CkpError:
                continue  # it ends by itself
        for name, listened in served.items():
            try:
                listened.result()
            except CkpError as error:
                found.append(failed(name, "firewall", error))
    return blocked, found


def _ask(item: HostToCheck, targets: list[list[Any]], say: str) -> list[tuple[str, int, str]]:
    if not targets:
        return []
    request = {"action": "connect", "targets": targets, "say": say}
    done = item.host.run([*PYTHON, "-"], timeout=REACH_SECONDS, stdin=_script(request), what="connecting to other hosts")
    return [(str(address), int(port), str(why)) for address, port, why in json.loads(done.stdout)]


# -- what is sent


def _script(request: dict[str, Any]) -> str:
    return f"{_REMOTE.read_text()}\n\nmain({request!r})\n"


@cache
def _tool() -> str:
    """The host tool's code, packed and in base64. It is sent, not installed: a host that is only looked at gets nothing."""
    with tempfile.TemporaryDirectory(prefix="ckp-check-") as folder:
        target = Path(folder) / "ckp-agent"
        write_zipapp(target, [])
        return base64.b64encode(target.read_bytes()).decode()
