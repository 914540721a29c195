"""ByoHost.status as the hub writes it. Pure.

The hub applies its fields (server-side apply, manager ckp-hub), and apply means: what it stops naming goes away. So every write names all of
them, carried over from what was there. Two things are never named here: other controllers' conditions, and the certificate's serial.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from ipaddress import ip_address
from typing import Any

from ckp.api.host_protocol import HostFacts, Report
from ckp.clients import kinds
from ckp.clients.kube import Obj
from ckp.hub.identity import HostId
from ckp.kits.clock import rfc3339

JOURNAL_ENTRIES = 50
MAX_MESSAGE = 1000
MAX_ENTRY_MESSAGE = 400
MAX_FACTS_BYTES = 16_384
MAX_ADDRESSES = 32
CONDITION = "AgentConnected"

Status = dict[str, Any]


def certificate_serial(host: Obj) -> str:
    """The serial of the only certificate that this host may connect with; '' if none was given out."""
    return str((((host.get("status") or {}).get("agent")) or {}).get("certificateSerial") or "")


def agent_condition(host: Obj) -> Mapping[str, Any]:
    """The AgentConnected condition, or nothing."""
    for entry in (host.get("status") or {}).get("conditions") or []:
        if entry.get("type") == CONDITION:
            return dict(entry)
    return {}


def carried_over(host: Obj) -> Status:
    """The hub's own part of a status, as it stands."""
    status = host.get("status") or {}
    agent = {name: value for name, value in (status.get("agent") or {}).items() if name in ("connected", "lastSeen", "version", "address")}
    kept: Status = {name: status[name] for name in ("facts", "hostinfo", "network", "observed", "journal") if name in status}
    if agent:
        kept["agent"] = agent
    if condition := agent_condition(host):
        kept["conditions"] = [condition]
    return kept


def with_facts(status: Status, facts: HostFacts, *, address: str) -> Status:
    """After a Hello. `address` is where the connection came from."""
    addresses = [text for text in dict.fromkeys((facts.default_address, *facts.addresses)) if _is_address(text)][:MAX_ADDRESSES]
    return status | {
        "facts": facts.model_dump(mode="json"),
        "hostinfo": {"osname": "linux", "osimage": f"{facts.os_id} {facts.os_version}", "architecture": facts.architecture},
        "network": [{"ipAddrs": addresses, "isDefault": True}] if addresses else [],
        "agent": (status.get("agent") or {}) | {"version": facts.agent_version, "address": address},
    }


def with_report(status: Status, report: Report, *, at: datetime) -> Status:
    """After a Report; its time changes only when something else in it does."""
    observed = {
        "generation": report.generation,
        "phase": report.phase,
        "cluster": report.cluster[:253],
        "machine": report.machine[:253],
        "release": report.release[:63],
        "reason": report.reason[:128],
        "message": report.message[:MAX_MESSAGE],
        "attempts": report.attempts,
    }
    before = dict(status.get("observed") or {})
    since = before.pop("at", None)
    journal = [
        {
            "at": entry.at[:40],
            "step": entry.step[:128],
            "outcome": entry.outcome,
            "seconds": round(entry.seconds, 3),
            "message": entry.message[:MAX_ENTRY_MESSAGE],
        }
        for entry in report.journal[-JOURNAL_ENTRIES:]
    ]
    return status | {"observed": observed | {"at": since if observed == before and since else rfc3339(at)}, "journal": journal}


def with_connection(status: Status, *, connected: bool, condition: bool | None, reason: str, message: str, seen: datetime, at: datetime) -> Status:
    """With the connection's state. `condition` None leaves AgentConnected as it is: a broken connection may come back before anyone must know."""
    fresh = status | {"agent": (status.get("agent") or {}) | {"connected": connected, "lastSeen": rfc3339(seen)}}
    if condition is None:
        return fresh
    before = (status.get("conditions") or [{}])[0]
    value = "True" if condition else "False"
    changed = before.get("status") != value
    fresh["conditions"] = [
        {
            "type": CONDITION,
            "status": value,
            "reason": reason,
            "message": message,
            "lastTransitionTime": rfc3339(at) if changed else before.get("lastTransitionTime", rfc3339(at)),
        }
    ]
    return fresh


def without_time(status: Status) -> Status:
    """For the question whether anything but the time has changed."""
    return status | {"agent": {name: value for name, value in (status.get("agent") or {}).items() if name != "lastSeen"}}


def apply_body(host: HostId, status: Status) -> Obj:
    """The object to apply on the status subresource."""
    return {
        "apiVersion": kinds.BYO_HOST.api_version,
        "kind": "ByoHost",
        "metadata": {"name": host.name, "namespace": host.namespace},
        "status": status,
    }


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
