"""Looks at the whole, objects and hosts, and says in sentences what does not fit together. Usable on its own: it reads and changes nothing.

`check` judges a system at rest: nothing is under way, and all that was asked for has had its time. `check_always` judges any moment.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509

from ckp.agent.node.engine import STEPS
from ckp.api import kinds
from ckp.api.host_protocol import Desired
from ckp.api.names import DESIRED_KEY, HOSTS_NAMESPACE
from ckp.clients.kube import Kube, Obj
from ckp.rules import certificates
from ckp.rules.conditions import get_condition
from tests.chaos.simhost import OWN_CONTENT, OWN_FILE, PACKAGES, Disk


@dataclass(frozen=True)
class Whole:
    """What there is: objects as the API server has them, and the hosts' folders by the ByoHosts' names."""

    hosts: Sequence[Obj]
    machines: Sequence[Obj]
    secrets: Sequence[Obj]
    folders: Mapping[str, Path] = field(default_factory=dict)

    @classmethod
    async def of(cls, kube: Kube, namespace: str, folders: Mapping[str, Path]) -> Whole:
        """Read it all."""
        return cls(
            await kube.list(kinds.BYO_HOST, namespace), await kube.list(kinds.BYO_MACHINE, namespace), await kube.list(kinds.SECRET, HOSTS_NAMESPACE), folders
        )

    def desired(self, host: str) -> Desired | None:
        """What the host is told; None if nothing is."""
        found = next((item for item in self.secrets if item["metadata"]["name"].partition(".")[2] == host), None)
        return Desired.model_validate_json(base64.b64decode(found["data"][DESIRED_KEY])) if found else None


def check(whole: Whole) -> list[str]:
    """What is inconsistent in a system at rest; nothing if all is well."""
    return [
        *check_always(whole),
        *_machines(whole),
        *_desired_states(whole),
        *(sentence for host in whole.hosts for sentence in _host(whole, host)),
        *(sentence for name, folder in whole.folders.items() for sentence in _folder(whole, name, folder)),
    ]


def check_always(whole: Whole) -> list[str]:
    """What must not be at any moment, whatever is under way."""
    said = []
    holders = Counter(_claim(host).get("uid") for host in whole.hosts if _claim(host))
    for host in whole.hosts:
        if holders[_claim(host).get("uid")] > 1:
            said.append(f"machine {_claim(host)['name']} holds several hosts, one of them {_name(host)}")
    for name, folder in whole.folders.items():
        said += [f"host {name}: {sentence}" for sentence in _history(Disk(folder).history())]
    return said


def _machines(whole: Whole) -> Iterator[str]:
    held = {_claim(host).get("uid"): host for host in whole.hosts if _claim(host)}
    for machine in whole.machines:
        name, status = _name(machine), machine.get("status") or {}
        condition = get_condition(machine, "BYOHostReady") or {}
        why = f"{condition.get('reason', 'nothing is said')}: {condition.get('message', '')}"
        host = held.get(machine["metadata"]["uid"])
        if "deletionTimestamp" in machine["metadata"]:
            yield f"machine {name} is being deleted and does not go ({why})"
        elif host is None:
            yield f"machine {name} holds no host ({why})"
        else:
            if not status.get("ready") or condition.get("status") != "True":
                yield f"machine {name} on {_name(host)} is not ready ({why})"
            if (status.get("hostRef") or {}).get("name") != _name(host):
                yield f"machine {name} says that its host is {(status.get('hostRef') or {}).get('name')}, it holds {_name(host)}"
            desired = whole.desired(_name(host))
            wanted = desired.membership.provider_id if desired and desired.membership else ""
            if machine["spec"].get("providerID") != wanted:
                yield f"machine {name} has the providerID {machine['spec'].get('providerID')}, its host is told {wanted or 'to be free'}"
    uids = {machine["metadata"]["uid"] for machine in whole.machines}
    for host in whole.hosts:
        if _claim(host) and _claim(host)["uid"] not in uids:
            yield f"host {_name(host)} is held by machine {_claim(host)['name']}, which there is not"


def _desired_states(whole: Whole) -> Iterator[str]:
    names = {_name(host) for host in whole.hosts}
    for secret in whole.secrets:
        if (name := secret["metadata"]["name"].partition(".")[2]) not in names:
            yield f"there is a desired state for {name}, which is no host"
    for host in whole.hosts:
        desired, claim = whole.desired(_name(host)), _claim(host)
        told = desired.membership if desired else None
        if desired is None:
            yield f"host {_name(host)} has no desired state"
        if claim and told is None:
            yield f"host {_name(host)} is held by {claim['name']} and told to be free"
        if told and not claim:
            yield f"host {_name(host)} is held by nobody and told to be {told.machine}"
        if told and claim and (told.machine, told.provider_id.rpartition("/")[2]) != (claim["name"], claim["uid"][:8]):
            yield f"host {_name(host)} is held by {claim['name']} and told to be {told.machine}"


def _host(whole: Whole, host: Obj) -> Iterator[str]:
    name, status = _name(host), host.get("status") or {}
    desired = whole.desired(name)
    observed, agent = status.get("observed") or {}, status.get("agent") or {}
    if "deletionTimestamp" in host["metadata"]:
        yield f"host {name} is being removed and does not go"
    if not agent.get("connected"):
        yield f"host {name} is not connected"
    for condition, value in (("AgentConnected", "True"), ("IdentityUnique", "True"), ("Stable", "True"), ("Available", "False" if _claim(host) else "True")):
        found = get_condition(host, condition) or {}
        if found.get("status") != value:
            yield f"host {name}: {condition} is {found.get('status')} ({found.get('reason', '')}: {found.get('message', '')})"
    if desired is not None:
        if observed.get("generation") != desired.generation:
            yield f"host {name} has said nothing of generation {desired.generation}, its last word is of {observed.get('generation')}"
        phase = "Joined" if desired.membership else "Free"
        if observed.get("phase") != phase or observed.get("reason"):
            yield f"host {name} is {observed.get('phase')}, it should be {phase} ({observed.get('reason', '')}: {observed.get('message', '')})"
    if certificates.certificate_serial(host) and certificates.certificate_serial(host) == certificates.revoked_serial(host):
        yield f"host {name}: its only certificate is revoked"
    if folder := whole.folders.get(name):
        yield from _certificate(host, folder / "state")


def _certificate(host: Obj, state: Path) -> Iterator[str]:
    name = _name(host)
    try:
        serial = f"{x509.load_pem_x509_certificate((state / 'cert.pem').read_bytes()).serial_number:x}"
    except (OSError, ValueError) as error:
        yield f"host {name} has no certificate: {error}"
        return
    current, following = certificates.certificate_serial(host), certificates.next_serial(host)
    if not certificates.may_connect(host, serial):
        yield f"host {name} is locked out: it has the certificate {serial[:8]}, known are {current[:8]} and as the next {following[:8] or 'none'}"
    elif serial != current:
        yield f"host {name} has a renewed certificate that it does not use"
    told = json.loads(Disk(state.parent).flag("state/status.json") or "{}").get("channel", {})
    if told.get("state") != "Connected":
        yield f"host {name}: its agent says {told.get('state')}: {told.get('message')}"


def _folder(whole: Whole, name: str, folder: Path) -> Iterator[str]:
    disk, desired = Disk(folder), whole.desired(name)
    wanted = desired.membership if desired else None
    node, packages = disk.node, disk.installed()
    journal = json.loads(disk.flag("state/journal.json") or "{}")
    member = journal.get("member") or {}
    if wanted is None:
        if node or packages or disk.read("prepared") or disk.read("bundle") or disk.read("bootstrap.conf") or disk.read("run/join.yaml"):
            yield f"host {name} should be free and holds {', '.join(sorted(path.name for path in disk.root.iterdir()))} {node.get('machine', '')}"
        if disk.read(OWN_FILE) != OWN_CONTENT or (disk.root / "etc/ckp").exists():
            yield f"host {name} should be free, and its own files are not as they were"
        if member or journal.get("packages") or journal.get("saved") or journal.get("files"):
            yield f"host {name} should be free, and its journal says that it is {member.get('machine')} with {journal.get('packages')}"
        return
    if (node.get("machine"), node.get("provider_id"), node.get("cluster")) != (wanted.machine, wanted.provider_id, wanted.cluster):
        yield f"host {name} should be the node of {wanted.machine} and is the one of {node.get('machine', 'nobody')}"
    if packages != sorted(PACKAGES) or any(disk.read(f"packages/{package}") != wanted.bundle.image for package in packages):
        yield f"host {name} has the packages {packages}, not those of its bundle"
    if disk.read("prepared") != wanted.provider_id or disk.read(OWN_FILE) != f"of ckp for {wanted.machine}\n":
        yield f"host {name} is not prepared for {wanted.machine}"
    if member.get("key") != f"{wanted.cluster}|{wanted.machine}|{wanted.provider_id}" or any(step not in journal.get("done", []) for step in STEPS):
        yield f"host {name}: its journal says {member.get('key')} with {journal.get('done')}"
    if sorted(journal.get("packages", [])) != sorted(PACKAGES):
        yield f"host {name}: its journal knows of {journal.get('packages')}, so that a reset leaves something"
    if str(disk.root / OWN_FILE) not in journal.get("saved", {}):
        yield f"host {name}: its journal does not know what was in {OWN_FILE}"


def _history(history: list[dict[str, Any]]) -> Iterator[str]:
    """Rules of what may follow what: no node is joined twice or over another one, nothing is changed before it was verified."""
    node, clean = "", True
    for entry in history:
        what = entry["what"]
        if what == "joined":
            if entry["provider_id"] == node:
                yield f"it joined twice as {entry['machine']}"
            if not clean:
                yield f"it joined as {entry['machine']} without a whole reset before"
            node, clean = entry["provider_id"], False
        elif what == "was reset" or (what == "power cut" and "node.json" in entry["lost"]):
            node, clean = "", True


def _claim(host: Obj) -> dict[str, Any]:
    return dict((host.get("spec") or {}).get("machineRef") or {})


def _name(obj: Obj) -> str:
    return str(obj["metadata"]["name"])
