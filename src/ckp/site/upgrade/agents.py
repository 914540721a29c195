"""Agents of enrolled hosts, in stages: each is asked for by the host's desired state, which the hub brings to it.

The agent does the rest itself (ckp.agent.upgrade): it pulls both packages from the site's registry by digest, verifies them, and leaves the exchange to a
guard on the host, which returns to the old version if the new one does not report. So a host has the old agent or the new one, whatever is killed when.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ckp.api.names import INFRASTRUCTURE_GROUP
from ckp.api.objects.byo_host import ByoHost
from ckp.api.states import AGENT_STAYS, ConditionType
from ckp.kits.errors import CkpError, TimedOut
from ckp.kits.retry import wait_until
from ckp.site import management
from ckp.site.inventory import SiteHost
from ckp.site.upgrade.limits import Limits

RESOURCE = f"byohosts.{INFRASTRUCTURE_GROUP}"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Agent:
    """The agent of an enrolled host."""

    namespace: str
    name: str
    version: str
    connected: bool
    reason: str = ""
    message: str = ""

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True)
class Outcome:
    """What became of the agents.

    Args:
        upgraded: hosts whose agent is of the new version now.
        left: hosts that were not connected, and keep theirs until somebody upgrades them.
    """

    upgraded: tuple[str, ...] = ()
    left: tuple[str, ...] = ()


def read(host: SiteHost) -> list[Agent]:
    """All agents of the site, by project and name. Raises CkpError if the management cluster does not answer."""
    found = json.loads(management.kubectl(host, "get", RESOURCE, "--all-namespaces", "--output=json", timeout=120))["items"]
    return sorted((_agent(ByoHost.of(item)) for item in found if not item["metadata"].get("deletionTimestamp")), key=lambda each: each.title)


def _read_one(host: SiteHost, agent: Agent) -> Agent | None:
    """The agent as it is now; None if its host was deleted, or is being deleted."""
    namespace = f"--namespace={agent.namespace}"
    text = management.kubectl(host, "get", RESOURCE, agent.name, namespace, "--ignore-not-found", "--output=json", timeout=120)
    found = json.loads(text) if text.strip() else None
    return None if found is None or found["metadata"].get("deletionTimestamp") else _agent(ByoHost.of(found))


def _agent(host: ByoHost) -> Agent:
    observed, connected = host.status.observed, host.condition(ConditionType.AGENT_CONNECTED).is_true
    return Agent(host.metadata.namespace, host.name, host.status.agent.version, connected, observed.reason, observed.message)


def stages(names: Sequence[str], at_once: int) -> Iterator[Sequence[str]]:
    """One alone, then `at_once` at a time."""
    if names:
        yield names[:1]
    for first in range(1, len(names), at_once):
        yield names[first : first + at_once]


def upgrade(host: SiteHost, wanted: str, at_once: int, limits: Limits, say: Say) -> Outcome:
    """Bring the agents to a version. The next stage begins when all of the one before report with it; the first that does not ends it.

    Args:
        wanted: the version of the agent's package, which the site's registry has.
        at_once: how many hosts a stage has, from the second on.

    Raises:
        CkpError: one returned to its old version. It is no longer asked for there; the same again goes on.
        TimedOut: one did neither in time.
    """
    todo = [each for each in read(host) if each.version != wanted]
    left = tuple(each.title for each in todo if not each.connected)
    for title in left:
        say(f"{title}: not connected, its agent stays as it is")
    there = {each.title: each for each in todo if each.connected}
    done: list[str] = []
    for stage in stages(list(there), at_once):
        for title in stage:
            _ask(host, there[title], wanted)
        for title in stage:
            _wait(host, there[title], wanted, limits)
            done.append(title)
            say(f"{title}: {wanted}")
    return Outcome(tuple(done), left)


def _ask(host: SiteHost, agent: Agent, wanted: str | None) -> None:
    patch = json.dumps({"spec": {"agentVersion": wanted}})
    management.kubectl(host, "patch", RESOURCE, agent.name, f"--namespace={agent.namespace}", "--type=merge", f"--patch={patch}")


def _wait(host: SiteHost, agent: Agent, wanted: str, limits: Limits) -> None:
    last = agent

    def there() -> bool:
        nonlocal last
        found = _read_one(host, agent)
        if found is None:
            return True  # somebody deleted the host
        last = found
        if last.reason in AGENT_STAYS:
            _ask(host, agent, None)
            raise CkpError(
                f"the agent of {agent.title} stays with {last.version}, and no other was touched after it",
                details=last.message,
                resolution=f"see ckp host describe {agent.name}; then run the same command again: it goes on with the hosts that are left",
            )
        return last.connected and last.version == wanted

    try:
        wait_until(there, what=f"{agent.title} reports with the agent {wanted}", timeout=limits.agent, every=2)
    except TimedOut as error:
        seen = "" if last.connected else ", and it is not connected"
        raise TimedOut(
            error.brief,
            details=f"it runs {last.version or 'an unknown version'}{seen}: {last.reason} {last.message}".rstrip(": "),
            resolution="look at ckp-agent there (journalctl -u ckp-agent); then run the same command again: it goes on with the hosts that are left",
        ) from None
