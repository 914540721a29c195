"""What happens in a run, and when: all of it drawn from the seed before the run begins."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Event:
    """One thing that happens. Faults say how long they last (`seconds`); wishes are what people and Cluster API ask for."""

    at: float
    kind: str
    target: str = ""
    args: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        more = " ".join(f"{name}={value}" for name, value in self.args.items())
        return f"{self.at:6.2f}  {self.kind:<22}{self.target:<10}{more}".rstrip()


@dataclass(frozen=True)
class Schedule:
    """A whole run."""

    seed: int
    hosts: tuple[str, ...]
    due: frozenset[str]  # hosts whose first certificate is to be renewed at once
    replicas: int
    events: tuple[Event, ...]
    seconds: float

    def __str__(self) -> str:
        head = f"seed {self.seed}: {len(self.hosts)} hosts, {self.replicas} hubs, {self.seconds:.1f} s; renewal due at {', '.join(sorted(self.due)) or 'none'}"
        return "\n".join([head, *map(str, self.events)])


FAULTS = {
    "kill": 10,  # SIGKILL of the agent at a moment
    "die-after": 14,  # SIGKILL of the agent between two instructions
    "power-cut": 8,  # the same, and what was not synced is lost
    "cut": 5,
    "slow-net": 3,
    "hold": 5,  # half open: nothing passes, then all of it
    "strand": 6,  # the hub is left with a connection whose host is gone
    "hub": 7,  # SIGKILL of a hub
    "hub-restart": 2,  # a rolling update of a hub
    "controllers": 6,
    "api-away": 5,
    "api-slow": 5,
    "api-lossy": 4,
    "api-lag": 5,
    "api-forgets": 2,
    "registry": 7,
    "full": 5,
    "clock": 3,
}


def draw(seed: int, *, hosts: int = 0, seconds: float = 0.0) -> Schedule:
    """The schedule of a seed."""
    choose = random.Random(seed)
    names = tuple(f"host-{number}" for number in range(1, (hosts or choose.randint(2, 3)) + 1))
    length = seconds or choose.uniform(5.0, 7.0)
    due = frozenset(name for name in names if choose.random() < 0.5)
    events = [*_wishes(choose, names, length), *_faults(choose, names, length)]
    return Schedule(seed, names, due, choose.choice((1, 2, 2)), tuple(sorted(events, key=lambda event: event.at)), length)


def _faults(choose: random.Random, hosts: tuple[str, ...], length: float) -> list[Event]:
    events = []
    at = choose.uniform(0.3, 1.0)
    while at < length:
        kind = choose.choices(list(FAULTS), list(FAULTS.values()))[0]
        host = choose.choice(hosts)
        lasts = {"seconds": round(choose.uniform(0.2, 1.5), 2)}
        match kind:
            case "kill" | "power-cut" | "cut" | "hold" | "full":
                events.append(Event(at, kind, host, lasts))
            case "die-after":
                events.append(Event(at, kind, host, {"ticks": choose.randint(0, 60), "power": choose.random() < 0.4, **lasts}))
            case "slow-net":
                events.append(Event(at, kind, host, {"delay": round(choose.uniform(0.02, 0.3), 2), **lasts}))
            case "strand":
                events.append(Event(at, kind, host, {"seconds": round(choose.uniform(0.3, 4.0), 2)}))
            case "clock":
                events.append(Event(at, kind, host, {"skew": choose.choice((-86400 * 400, -3600, 120, 7200, 86400 * 4000))}))
            case "registry":
                events.append(Event(at, kind, host, {"mode": choose.choice(("down", "slow", "garbage", "wrong-digest")), **lasts}))
            case "api-slow":
                events.append(Event(at, kind, "", {"slow": round(choose.uniform(0.1, 1.2), 2), **lasts}))
            case "api-lossy":
                events.append(Event(at, kind, "", {"share": 0.5, **lasts}))
            case "api-lag":
                events.append(Event(at, kind, "", {"lag": round(choose.uniform(0.2, 1.0), 2), **lasts}))
            case "hub" | "hub-restart":
                events.append(Event(at, kind, str(choose.randint(0, 1)), lasts))
            case _:
                events.append(Event(at, kind, "", lasts))
        at += choose.uniform(0.1, 0.5)
    return events


def _wishes(choose: random.Random, hosts: tuple[str, ...], length: float) -> list[Event]:
    """Machines come and go, hosts are taken away and enrolled again; there are never more machines than hosts."""
    events: list[Event] = []
    alive: list[str] = []
    number, at = 0, 0.05
    enrolled = dict.fromkeys(hosts, 0.0)  # and since when
    while at < length:
        roll = choose.random()
        if not alive or (roll < 0.5 and len(alive) < len(hosts)):
            number += 1
            name = f"m{number}"
            alive.append(name)
            data = choose.random() < 0.6
            events.append(Event(at, "machine", name, {"data": data}))
            if not data:
                events.append(Event(at + choose.uniform(0.5, 2.0), "data", name))
        elif alive and roll < 0.8:
            name = alive.pop(choose.randrange(len(alive)))
            events.append(Event(at, "leave", name, {"force": choose.random() < 0.25}))
        else:
            host = choose.choice(hosts)
            if enrolled[host] < at:
                back = at + choose.uniform(0.3, 2.0)
                enrolled[host] = back + 0.5
                events.append(Event(at, choose.choice(("remove-host", "revoke")), host))
                events.append(Event(back, "enrol", host))
        at += choose.uniform(0.3, 1.3)
    for _ in range(choose.randint(0, len(hosts) - len(alive))):  # so that some of what is judged in the end has joined
        number += 1
        events.append(Event(length - choose.uniform(0.0, 1.0), "machine", f"m{number}", {"data": True}))
    return events
