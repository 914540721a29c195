"""ByoHost.status as the hub writes it. Pure.

The hub applies its fields (server-side apply, manager ckp-hub), and apply means: what it stops naming goes away. So every write names all of
them, carried over from what was there. Two things are never named here: other controllers' conditions, and the certificate's serial.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from ipaddress import ip_address
from typing import Any

from ckp.api import kinds
from ckp.api.host_protocol import HostFacts, Report
from ckp.api.states import ConditionType, Reason
from ckp.clients.kube import Obj
from ckp.hub.identity import HostId
from ckp.kits.clock import rfc3339
from ckp.rules.certificates import agent_of
from ckp.rules.conditions import get_condition

JOURNAL_ENTRIES = 50
MAX_MESSAGE = 1000
MAX_ENTRY_MESSAGE = 400
MAX_ADDRESSES = 32
CONDITION = str(ConditionType.AGENT_CONNECTED)
UNIQUE = str(ConditionType.IDENTITY_UNIQUE)
"""False while two machines show the same host's certificate: an operator must decide which of them it is."""
OWN_CONDITIONS = (CONDITION, UNIQUE)
CARRIED = ("connected", "lastSeen", "version", "address", "clockOffsetSeconds", "bootIDs", "bootIDsOf")
BOOTS_KEPT = 8

Status = dict[str, Any]


def hub_of(host: Obj) -> str:
    """The replica that holds the host's connection; '' if none does."""
    return str(agent_of(host).get("hub") or "")


def condition_of(host: Obj, kind: str = CONDITION) -> Mapping[str, Any]:
    """One of our conditions, or nothing."""
    return get_condition(host, kind) or {}


def carried_over(host: Obj) -> Status:
    """The hub's own part of a status, as it stands."""
    status = host.get("status") or {}
    agent = {name: value for name, value in agent_of(host).items() if name in CARRIED}
    kept: Status = {name: status[name] for name in ("facts", "hostinfo", "network", "observed", "journal") if name in status}
    if agent:
        kept["agent"] = agent
    if conditions := [dict(found) for kind in OWN_CONDITIONS if (found := condition_of(host, kind))]:
        kept["conditions"] = conditions
    return kept


def written_of(host: Obj) -> Status:
    """All that the hub has written into a status, as it stands."""
    kept = carried_over(host)
    return kept | {"agent": kept.get("agent", {}) | ({"hub": hub} if (hub := hub_of(host)) else {})}


def with_boot(status: Status, boot_id: str, serial: str, *, machine_id: str, enrolled_machine: str, at: datetime) -> Status:
    """After a Hello: is this still the one machine that the certificate was given to?

    A boot's id never comes back after another one was seen, and the machine-id is the one that was approved; else two machines use one
    certificate, or its files were copied. Shown until the host has a new certificate, since only people know which machine is the right one.
    """
    agent = dict(status.get("agent") or {})
    boots = list(agent.get("bootIDs") or []) if agent.get("bootIDsOf") == serial else []
    fresh_certificate = agent.get("bootIDsOf") != serial
    reason = message = ""
    if boot_id in boots[:-1]:
        reason, message = Reason.CLONED_MACHINE, "two machines use this host's certificate in turn: one is a clone of the other"
    elif enrolled_machine and machine_id != enrolled_machine:
        reason, message = Reason.OTHER_MACHINE, f"the machine-id is {machine_id}, the machine that was approved has {enrolled_machine}"
    if message:
        message += "; revoke its certificate (ckp host revoke), and approve the machine that is the right one"
    if not boots or boots[-1] != boot_id:
        boots = [*(boot for boot in boots if boot != boot_id), boot_id][-BOOTS_KEPT:]
    status = status | {"agent": agent | {"bootIDs": boots, "bootIDsOf": serial}}
    known = _condition_in(status, UNIQUE)
    if message:
        return _with_condition(status, UNIQUE, False, reason, message, at)
    if fresh_certificate or not known:
        return _with_condition(status, UNIQUE, True, Reason.ONE_MACHINE, "", at)
    return status


def _condition_in(status: Status, kind: str) -> Mapping[str, Any]:
    return next((entry for entry in status.get("conditions") or [] if entry["type"] == kind), {})


def _with_condition(status: Status, kind: str, value: bool, reason: str, message: str, at: datetime) -> Status:
    before = _condition_in(status, kind)
    text = "True" if value else "False"
    since = before.get("lastTransitionTime", rfc3339(at)) if before.get("status") == text else rfc3339(at)
    entry = {"type": kind, "status": text, "reason": str(reason), "message": message, "lastTransitionTime": since}
    others = [other for other in status.get("conditions") or [] if other["type"] != kind]
    return status | {"conditions": sorted([*others, entry], key=lambda one: str(one["type"]))}


def with_facts(status: Status, facts: HostFacts, *, address: str, at: datetime) -> Status:
    """After a Hello. `address` is where the connection came from.

    The offset of the host's clock includes the time that the message took, so it is exact to a second: enough for certificates and leases.
    """
    offset = {"clockOffsetSeconds": round(facts.clock - at.timestamp())} if facts.clock else {}
    addresses = [text for text in dict.fromkeys((facts.default_address, *facts.addresses)) if _is_address(text)][:MAX_ADDRESSES]
    return status | {
        "facts": facts.model_dump(mode="json", exclude={"clock"}),
        "hostinfo": {"osname": "linux", "osimage": f"{facts.os_id} {facts.os_version}", "architecture": facts.architecture},
        "network": [{"ipAddrs": addresses, "isDefault": True}] if addresses else [],
        "agent": (status.get("agent") or {}) | {"version": facts.agent_version, "address": address} | offset,
    }


def with_report(status: Status, report: Report, *, at: datetime) -> Status:
    """After a Report; its time changes only when something else in it does."""
    observed: Status = {
        "generation": report.generation,
        "phase": report.phase,
        "cluster": report.cluster[:253],
        "machine": report.machine[:253],
        "release": report.release[:63],
        "reason": report.reason[:128],
        "message": report.message[:MAX_MESSAGE],
        "attempts": report.attempts,
    }
    if report.upgrade is not None:
        observed["upgrade"] = report.upgrade.model_dump(mode="json") | {
            "reason": report.upgrade.reason[:128],
            "message": report.upgrade.message[:MAX_MESSAGE],
            "at": report.upgrade.at[:40],
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


def with_connection(status: Status, *, hub: str, condition: bool | None, reason: str, message: str, seen: datetime, at: datetime) -> Status:
    """With the connection's state.

    Args:
        status: carried over, so without a replica's name.
        hub: the replica that holds the connection; '' when there is none.
        condition: None leaves AgentConnected as it is: a broken connection may come back before anyone must know.
    """
    fresh = status | {"agent": (status.get("agent") or {}) | ({"hub": hub} if hub else {}) | {"connected": bool(hub), "lastSeen": rfc3339(seen)}}
    if condition is None:
        return fresh
    return _with_condition(fresh, CONDITION, condition, reason, message, at)


def without_time(status: Status) -> Status:
    """For the question whether anything but the time has changed."""
    return status | {"agent": {name: value for name, value in (status.get("agent") or {}).items() if name != "lastSeen"}}


def apply_body(host: HostId, status: Status, *, version: str = "") -> Obj:
    """The object to apply on the status subresource; with a resourceVersion only on top of that one, else the API server answers Conflict."""
    return {
        "apiVersion": kinds.BYO_HOST.api_version,
        "kind": "ByoHost",
        "metadata": {"name": host.name, "namespace": host.namespace} | ({"resourceVersion": version} if version else {}),
        "status": status,
    }


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
